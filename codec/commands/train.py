"""`codec-train data.root=FOLDER`: train once, or once for each run of a sweep."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codec.commands.errors import report_errors
from codec.config import CONFIG_DIR, in_quotes, registered_modules
from codec.system.address import is_address, require_local, without_secret

# Values that Hydra's grammar accepts unquoted; others, mostly paths, need quotes.
PLAIN_VALUE = re.compile(r"""[\w\-+.,:/\[\]{}()'"$=*@ ]*""", re.ASCII)
PUNCTUATION = r"[,:=() {}\[\]*'\"]"
LIST_ITEM = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]+?)\s*(?:,|$)""")


def quoted(argument: str) -> str:
    """Quote values that Hydra cannot parse in `key=value` or `key=[value,value]`, such as paths."""
    key, _, value = argument.partition("=")
    if argument.startswith("-"):
        return argument
    items = LIST_ITEM.findall(value[1:-1]) if value[:1] + value[-1:] == "[]" else []
    if items and not any(item[0] in "[{" for item in items):
        return f"{key}=[{','.join(map(quoted_value, items))}]"
    return f"{key}={quoted_value(value)}" if value else argument


def quoted_value(value: str) -> str:
    """Quote a value if Hydra cannot parse it and it is no list, mapping or interpolation."""
    if value[0] in "'\"[{$":
        return value
    plain = PLAIN_VALUE.fullmatch(value)
    return value if plain and not (os.sep in value and re.search(PUNCTUATION, value)) else in_quotes(value)


def train_once(config: Any) -> int:
    """Run the training of a composed config; returns the exit status."""
    from codec.pretrained import require_model
    from codec.training.checkpoint_path import find_checkpoint

    weights = config.get("weights")
    if find_checkpoint(Path(config.run_dir), config.resume) is None and isinstance(weights, str):
        require_model(weights)
    from codec.training.run import train

    return train(config)


def start_training(task: Callable[[Any], int] = train_once) -> int:
    """Parse the command line with Hydra; run the task for each run of a sweep; returns the exit status."""
    import hydra

    from codec.training.overrides import also_searched, check_names

    sys.argv[1:] = map(quoted, sys.argv[1:])
    check_addresses(sys.argv[1:])
    sys.argv[1:] = also_searched(sys.argv[1:], installed_configs())
    check_names(sys.argv[1:])
    if {"-m", "--multirun"} & set(sys.argv):
        from codec.sweep.ray_launcher import RayLauncher
        from codec.sweep.sweeper import Sweep

        Sweep.install()
        RayLauncher.install()
        # Flags first: Hydra's parser rejects overrides on both sides of a flag.
        overrides = [argument for argument in sys.argv[1:] if argument not in ("-m", "--multirun")]
        has_name = any(argument.startswith("name=") for argument in overrides)
        sys.argv[1:] = ["-m", *overrides, *([] if has_name else ["name=sweep"])]
    status = 0

    def job(config: Any) -> None:
        nonlocal status
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        def run() -> int:
            check_roots(config)
            return task(config)

        if HydraConfig.get().mode is RunMode.MULTIRUN:
            from codec.sweep.sweeper import recorded

            recorded(Path(config.run_dir), run)
        else:
            status = report_errors(run)

    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")(job)()
    return status


def installed_configs() -> list[Path]:
    """Folders `configs` of installed packages with parts of codecs."""
    packages = sorted({module.partition(".")[0] for module in registered_modules()})
    places = [importlib.util.find_spec(package) for package in packages]
    roots = [root for spec in places if spec for root in spec.submodule_search_locations or []]
    return [Path(root, "configs") for root in roots if Path(root, "configs").is_dir()]


def check_addresses(arguments: Sequence[str]) -> None:
    """Raise FileError for a secret in an address of data, ConfigError for one as run folder."""
    for name, _, value in (argument.partition("=") for argument in arguments):
        if name.endswith("root"):
            without_secret(value)
        if name == "run_dir":
            require_local(value.strip("'\""))


def check_roots(config: Any) -> None:
    """Raise DataError for a missing source of data, before Lightning is imported."""
    require_local(config.run_dir)
    data: Any = config.get("data") or {}
    roots = {"data": [name for name in named_roots(data) if is_address(name) or not data.get("generate")]}
    for name, node in (data.get("degradation") or {}).items():
        roots[f"data.degradation.{name}"] = named_roots(node)
    if any(roots.values()):
        from codec.data.index import of_option
        from codec.data.roots import require_source

        for option, names in roots.items():
            with of_option(f"{option}.root"):
                for name in names:
                    require_source(name)


def named_roots(node: Any) -> list[str]:
    """Names in the option `root` of a config node, which may be one or a list."""
    # `in` is false for a missing value.
    root = node["root"] if isinstance(node, Mapping) and "root" in node else None
    roots = [root] if isinstance(root, str) else root if isinstance(root, Sequence) else []
    return [name for name in roots if isinstance(name, str)]
