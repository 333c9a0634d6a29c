"""Check the names in `codec-train a=1 group=option` before Hydra does, and suggest similar ones."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from codec.config import CONFIG_DIR, ConfigError, in_quotes

FLAGS = "--config-dir", "-cd"
SEARCHED = "hydra.searchpath="
OVERRIDE = re.compile(r"[+~]*[a-zA-Z_][\w./@:]*=")
REMOVED_ITEM = re.compile(r"~([a-zA-Z_][\w.]*)\.\d+(=.*)?")


def check_names(arguments: Sequence[str]) -> None:
    """ConfigError with every unknown option and the most similar valid one.

    Arguments with a prefix (`+`, `~`), flags and Hydra's own options are checked by Hydra alone. Options on
    `hydra.searchpath` and in `--config-dir` are valid too.
    """
    check_readable(arguments)
    pairs = [argument.partition("=")[::2] for argument in arguments if "=" in argument]
    plain = [(key, value) for key, value in pairs if key.replace(".", "").isidentifier()]
    plain = [(key, value) for key, value in plain if key.split(".")[0] != "hydra"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        path = search_path(arguments)
        options = {key: options_of(key, path) for key, _ in plain if "." not in key}
        # Functions such as choice(...) and glob(...) are checked by Hydra.
        groups = {key: [] if "(" in value else value.split(",") for key, value in plain if options.get(key)}
        choices = [(key, name) for key, names in groups.items() for name in names]
        problems = [problem for key, name in choices if (problem := unknown_choice(key, name, options[key]))]
        if not problems:
            chosen = [f"{key}={names[0]}" for key, names in groups.items() if names]
            composed: Any = OmegaConf.to_container(compose("train", [*path, *chosen]), resolve=False)
            composed = dict.fromkeys(config_groups()) | composed  # experiment has no node of its own
            keys = [key for key, _ in plain if key not in groups]
            problems = [problem for key in keys if (problem := unknown_key(key, composed))]
    if problems:
        raise ConfigError("\n".join(problems))


def check_readable(arguments: Sequence[str]) -> None:
    """ConfigError, with an example, for the first argument that Hydra's grammar rejects, or cannot apply."""
    for match in filter(None, map(REMOVED_ITEM.fullmatch, arguments)):
        raise ConfigError(
            f"{match[0]}: Hydra removes no item of a list: give the whole list, {match[1]}=[...]"
        )
    parser = OverridesParser.create()
    for argument in filter(OVERRIDE.match, arguments):
        try:
            parser.parse_override(argument)
        except HydraException as error:
            key, _, value = argument.partition("=")
            is_list = value[:1] + value[-1:] == "[]"
            example = f"{key}=['a (path)','another']" if is_list else f"{key}={in_quotes(value)}"
            reason = str(error).partition("\n")[0]
            in_shell = shlex.quote(example) if re.search(r'["$`\\!]', example) else f'"{example}"'
            raise ConfigError(f"{argument}: cannot be read ({reason}). Quote it twice: {in_shell}") from error


def search_path(arguments: Sequence[str]) -> list[str]:
    """Override of `hydra.searchpath` from the arguments, including `--config-dir`."""
    folders = []
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in FLAGS:
            folders = [Path(value if equals else "".join(arguments[place + 1 : place + 2]))]
    return [one for one in also_searched(arguments, folders) if one.startswith(SEARCHED)]


def also_searched(arguments: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Arguments with folders at the end of `hydra.searchpath`, after those of the user."""
    urls = [in_quotes(f"file://{folder.absolute()}") for folder in folders]
    if not urls:
        return list(arguments)
    pairs = enumerate(zip(["", *arguments], arguments, strict=False))
    places = [i for i, (flag, one) in pairs if OVERRIDE.match(one) and flag not in FLAGS]
    extended = list(arguments)
    lists = [i for i in places if arguments[i].startswith(SEARCHED + "[")]
    if lists:
        urls.insert(0, arguments[lists[-1]].strip().removeprefix(SEARCHED)[1:-1])
        extended.pop(lists[-1])
    # Beside the other overrides: Hydra's parser rejects overrides on both sides of a flag.
    place = lists[-1] if lists else places[0] if places else len(arguments)
    extended.insert(place, f"{SEARCHED}[{','.join(filter(str.strip, urls))}]")
    return extended


def options_of(group: str, path: Sequence[str]) -> list[str]:
    """Options of a config group; empty if there is no such group."""
    loader: Any = GlobalHydra.instance().config_loader()
    return sorted(loader.get_group_options(group, config_name="train", overrides=list(path)))


def config_groups() -> list[str]:
    """Names of all config groups."""
    loader: Any = GlobalHydra.instance().config_loader()
    return loader.list_groups("")


def unknown_choice(group: str, name: str, options: Sequence[str]) -> str:
    """Problem with `group=name`; empty if the option exists."""
    if name in options or name in ("null", "''"):
        return ""
    return f"{group}={name}: there is no such option{meant(name, options)}; there are {', '.join(options)}"


def unknown_key(key: str, config: Mapping[str, Any]) -> str:
    """Problem with a dotted key of the composed config; empty if it exists, or is below a plain value."""
    node: Any = config
    path = key.split(".")
    for depth, name in enumerate(path):
        if not isinstance(node, Mapping):
            return ""
        if name not in node:
            group = ".".join(path[:depth])
            close = meant(name, [option for option in node if not option.startswith("_")], group)
            if not close and "_target_" in node:
                close = f" in its yaml; if {node['_target_']} has it, add it with +{key}=..."
            return f"{key}: there is no such option{close}"
        node = node[name]
    return ""


def meant(name: str, options: Iterable[str], where: str = "") -> str:
    """Suggestion `; did you mean ...?` of the most similar option; empty without one."""
    close = difflib.get_close_matches(name, list(options), 1)
    return f"; did you mean {f'{where}.' if where else ''}{close[0]}?" if close else ""
