"""Check the names in `codec-train a=1 group=option` before Hydra does, to say what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from codec.config import CONFIG_DIR, ConfigError


def check_names(arguments: Sequence[str]) -> None:
    """ConfigError that names every unknown option, and the one that was probably meant.

    Arguments with a prefix (`+`, `~`), flags and Hydra's own options are left to Hydra.
    """
    given = [argument.partition("=")[::2] for argument in arguments if "=" in argument]
    plain = [(key, value) for key, value in given if key.replace(".", "").isidentifier()]
    plain = [(key, value) for key, value in plain if key.split(".")[0] != "hydra"]
    # What is no list of names, as choice(...) and glob(...), is Hydra's to read.
    groups = {
        key: [] if "(" in value else value.split(",") for key, value in plain if (CONFIG_DIR / key).is_dir()
    }
    named = [(key, name) for key, names in groups.items() for name in names]
    problems = [problem for key, name in named if (problem := unknown_choice(key, name))]
    if not problems:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            chosen = [f"{key}={names[0]}" for key, names in groups.items() if names]
            composed: Any = OmegaConf.to_container(compose("train", chosen), resolve=False)
        keys = [key for key, _ in plain if key not in groups]
        problems = [problem for key in keys if (problem := unknown_key(key, composed))]
    if problems:
        raise ConfigError("\n".join(problems))


def unknown_choice(group: str, name: str) -> str:
    """What is wrong with `group=name`; nothing if there is such an option."""
    options = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    if name in options or name in ("null", "''"):
        return ""
    return f"{group}={name}: there is no such option{meant(name, options)}; there are {', '.join(options)}"


def unknown_key(key: str, config: Mapping[str, Any]) -> str:
    """What is wrong with a dotted key of the composed config; nothing if it exists, or lies below a value."""
    node: Any = config
    path = key.split(".")
    for depth, name in enumerate(path):
        if not isinstance(node, Mapping):
            return ""
        if name not in node:
            where = ".".join(path[:depth])
            close = meant(name, [option for option in node if not option.startswith("_")], where)
            if not close and "_target_" in node:
                close = f" in its yaml; if {node['_target_']} has it, add it with +{key}=..."
            return f"{key}: there is no such option{close}"
        node = node[name]
    return ""


def meant(name: str, options: Iterable[str], where: str = "") -> str:
    """`; did you mean ...?` if an option is close."""
    close = difflib.get_close_matches(name, list(options), 1)
    return f"; did you mean {f'{where}.' if where else ''}{close[0]}?" if close else ""
