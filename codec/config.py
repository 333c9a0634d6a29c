"""Configs: find them, check them against constructors' signatures, build the objects they describe."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
# A wheel has the configs inside the package, a checkout next to it. The inside is searched first, because
# an installed package has other packages next to it.
CONFIG_DIR = next(
    p for p in (PACKAGE / "configs", PACKAGE.parent / "configs") if (p / "train.yaml").is_file()
)
TARGET, PARTIAL = "_target_", "_partial_"
# Saved configs name a part by its room, not by its file: `codec.quantizers.Residual`.
MODEL_PART = re.compile(r"codec\.(Codec|(autoencoders|layers|quantizers|codebooks)\.\w+)", re.ASCII)
MODEL_CLASS = re.compile(r"codec\.(model|autoencoders|layers|quantizers|codebooks)\.\w+\.\w+", re.ASCII)
MODEL_FUNCTION = re.compile(r"codec\.codebooks\.estimators\.\w+", re.ASCII)

PARTS = "neural_audio_codec.parts"  # entry-point group of packages with parts of codecs
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


class ConfigError(ValueError):
    """Invalid config: one line per problem, each with the option's path and a remedy."""


def locate(target: str) -> Any:
    """Class or function at a dotted path; ConfigError if there is none."""
    parts = str(target).split(".")
    if not all(map(str.isidentifier, parts)):
        raise ConfigError(f"expected the dotted name of a class or function, got {target!r}")
    for end in range(len(parts), 0, -1):
        try:
            attribute: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name and not ".".join(parts[:end]).startswith(error.name):
                raise
            continue
        attribute = functools.reduce(lambda value, name: getattr(value, name, None), parts[end:], attribute)
        if callable(attribute):
            return attribute
        break
    raise ConfigError(f"there is no class or function {target!r} to import")


@contextmanager
def trusting(packages: str | Iterable[str]) -> Iterator[None]:
    """Allow saved models to name parts of these packages or modules, beside the `registered_modules`."""
    names = [packages] if isinstance(packages, str) else list(packages)
    if not all(isinstance(name, str) and name.replace(".", "").isidentifier() for name in names):
        raise ConfigError(f"trust: expected names of packages, got {names}")
    token = _trusted.set(_trusted.get() | frozenset(names))
    try:
        yield
    finally:
        _trusted.reset(token)


@functools.cache
def registered_modules() -> frozenset[str]:
    """Modules of installed packages that are registered as parts of codecs, in the group `PARTS`."""
    return frozenset(entry.module for entry in entry_points(group=PARTS))


def locate_own(target: str) -> Any:
    """Model class or function at a dotted path, of this package or a trusted one; ConfigError for others.

    The defining module of a class is checked, because a path may lead through modules of a package into
    other packages (`codec.layers.torch.hub.load`). Of this package, only names that match `MODEL_PART` are
    imported; of others, only public modules that the user trusts. Saved files never extend the trust.
    """
    package, public = str(target).partition(".")[0], not re.search(r"(^|\.)_", str(target))
    trusted = any(str(target).startswith(f"{name}.") for name in _trusted.get() | registered_modules())
    if package != "codec" and trusted and public:
        member = locate(target)
        is_own = inspect.isclass(member) and member.__module__.partition(".")[0] == package
        if is_own and any(base.__module__.startswith("torch.nn.") for base in member.__mro__):
            return member
        raise ConfigError(f"{target!r} is refused: a saved model may name only subclasses of torch.nn.Module")
    if MODEL_PART.fullmatch(str(target)):
        member = locate(target)
        for kind, allowed in ((inspect.isclass, MODEL_CLASS), (inspect.isfunction, MODEL_FUNCTION)):
            if kind(member) and allowed.fullmatch(f"{member.__module__}.{member.__qualname__}"):
                return member
    remedy = f"; if you trust the package {package!r}, name it: --trust {package}, or trust=[{package!r}]"
    raise ConfigError(
        f"{target!r} is refused: a saved model may name only the model classes of this package"
        + (remedy if package.isidentifier() and package != "codec" else "")
    )


def build(node: Any, find: Callable[[str], Any] = locate, path: str = "") -> Any:
    """Build an object from a plain config: each mapping with `_target_` becomes a call of that target.

    `_partial_: true` returns a `functools.partial` instead. A constructor's ValueError becomes a
    ConfigError with the option's path.
    """
    if isinstance(node, Mapping):
        built = {key: build(value, find, f"{path}.{key}".lstrip(".")) for key, value in node.items()}
        if TARGET not in built:
            return built
        target, partial = find(built.pop(TARGET)), built.pop(PARTIAL, False)
        try:
            return functools.partial(target, **built) if partial else target(**built)
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path or node[TARGET]}: {error}") from error
        except (RuntimeError, OverflowError) as error:  # such as sizes that exceed the memory
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ConfigError(f"{path or node[TARGET]}: cannot be built: {reason}") from error
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [build(value, find, f"{path}[{index}]") for index, value in enumerate(node)]
    return node


def complete(config: Mapping[str, Any], name: str, *arguments: Any) -> Any:
    """Call a partial of the config with more arguments; its ValueError becomes a ConfigError with `name`."""
    try:
        return build(config[name], path=name)(*arguments)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def validate(node: Any, find: Callable[[str], Any] = locate, path: str = "") -> None:
    """Check every `_target_` node against its signature; ConfigError lists all problems at once."""
    problems = list(find_problems(node, find, path))
    if problems:
        raise ConfigError("\n".join(problems))


def find_problems(node: Any, find: Callable[[str], Any], path: str) -> Iterator[str]:
    """Yield one line for each unknown, missing or mistyped option below a node."""
    children = (
        node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    )
    for key, child in children:
        yield from find_problems(child, find, f"{path}.{key}".lstrip("."))
    if not isinstance(node, Mapping) or TARGET not in node:
        return
    try:
        target = find(node[TARGET])
    except ConfigError as error:
        yield f"{path}.{TARGET}: {error}".lstrip(".")
        return
    parameters = dict(inspect.signature(target).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    options = {key: value for key, value in node.items() if key not in (TARGET, PARTIAL)}
    for key, value in options.items():
        option = f"{path}.{key}".lstrip(".")
        if key not in parameters:
            close = difflib.get_close_matches(str(key), parameters, 1)
            yield f"{option}: {target.__name__} has no such option" + (
                f"; did you mean {close[0]}?" if close else ""
            )
        elif key in hints and not fits(value, hints[key]):
            yield f"{option}: expected {describe(hints[key])}, got {value!r}"
    if not node.get(PARTIAL):
        for name, parameter in parameters.items():
            if (
                parameter.default is parameter.empty
                and name not in options
                and parameter.kind.name != "VAR_POSITIONAL"
            ):
                yield f"{path}.{name}: missing; {target.__name__} needs it".lstrip(".")


def fits(value: Any, hint: Any) -> bool:
    """True if a plain config value is valid for a parameter annotated with `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (isinstance(value, Mapping) and TARGET in value):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint in (int, float):
        if not isinstance(value, (int, float) if hint is float else int) or isinstance(value, bool):
            return False
        return -math.inf < value < math.inf
    if hint in (str, bool) or hint is type(None):
        return isinstance(value, hint)
    if hint is Path:
        return isinstance(value, str)
    container = origin or hint
    if container is Callable:
        return False  # a callable needs a `_target_`
    if not inspect.isclass(container):
        return True
    if issubclass(container, Mapping):
        return isinstance(value, Mapping) and (
            not arguments or all(fits(v, arguments[1]) for v in value.values())
        )
    if issubclass(container, Sequence):
        fixed = container is tuple and len(arguments) > 0 and arguments[-1] is not Ellipsis
        if not isinstance(value, list) or (fixed and len(value) != len(arguments)):
            return False
        return not arguments or all(
            fits(item, arguments[i] if fixed else arguments[0]) for i, item in enumerate(value)
        )
    return not isinstance(value, str | int | float | bool | list | Mapping | None)


def describe(hint: Any) -> str:
    """Readable form of a type annotation: `list of int`, `float or None`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if hint is type(None):
        return "null"
    is_part = inspect.isclass(hint) and hint.__module__.startswith("codec.") and not is_dataclass(hint)
    if origin is Callable or is_part:
        return f"a part with its {TARGET}"
    if origin is not None and arguments and issubclass(origin, Sequence):
        return f"list of {describe(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def in_quotes(value: str) -> str:
    """Quote any text for a Hydra override."""
    # Inside quotes Hydra keeps a backslash as it is, unless a quote follows it.
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), value) + "'"
