"""Files from elsewhere: descriptions and weights that are read, and models that are built, within bounds."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules import module as registration

from codec.config import ConfigError

MOST_BYTES = 2**18  # of a description; those of the largest models take some 2^13
MOST_VALUES, DEEPEST = 2**13, 32
MOST_TENSORS, LONGEST_HEADER = 2**14, 2**22  # of weights; the largest models have some 2^11 and 2^18 bytes
LARGEST = 2**20  # number in the description of a small model; a large one's may reach its number of weights
APART = "weights and config do not belong together"


def read_small(path: Path) -> str:
    """Text of a description; ConfigError when it is larger than any, or not UTF-8."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path}: damaged, or not a description: larger than {MOST_BYTES >> 10} KiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: damaged: {error}") from error


class PlainLoader(yaml.SafeLoader):
    """Reads YAML without aliases: a few lines of them stand for more values than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose the next node; YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias (*{self.peek_event().anchor}): write out what it stands for")
        return super().compose_node(parent, index)


class PlainDumper(yaml.SafeDumper):
    """Writes YAML without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write out each value, also one that is there twice."""
        return True


def read_yaml(path: Path) -> Any:
    """Content of a YAML file; ConfigError when it is damaged, too large, or has aliases."""
    text = read_small(path)
    try:
        return yaml.load(text, PlainLoader)
    # PyYAML lets through what Python's own types refuse: a 13th month, a number of 5,000 digits.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from error


def check_plain(node: Any, path: str = "model", largest: int = 2**63) -> None:
    """ConfigError unless a description is of plain values, not too many, too deep or too large.

    Interpolations are refused: a description is complete, and nothing of this machine goes into it.
    """
    todo, count = [(path, node, 0)], 0
    while todo:
        path, value, depth = todo.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ConfigError(f"{path}: a model's description is not so long or deeply nested")
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            todo += [(f"{path}.{key}", child, depth + 1) for key, child in value.items()]
        elif isinstance(value, list):
            todo += [(f"{path}[{index}]", child, depth + 1) for index, child in enumerate(value)]
        elif isinstance(value, str):
            if "${" in value:
                raise ConfigError(f"{path}: {value[:200]!r} is refused: nothing is interpolated in a file")
        elif isinstance(value, int):
            if abs(value) > largest:
                raise ConfigError(f"{path}: {number(value)} is more than such a model can have: {APART}")
        elif value is not None and not isinstance(value, float):
            raise ConfigError(f"{path}: expected a plain value, got {type(value).__name__}")


def number(value: int) -> str:
    """A whole number in few characters, however large."""
    return f"{value:.4g}" if abs(value) < 2**1000 else f"a number of {value.bit_length()} bits"


@contextmanager
def bounded_building(tensors: int) -> Iterator[None]:
    """Let no more be built in this thread than weights of so many tensors can fill; ConfigError stops it."""
    # A normalised convolution registers its parts, and itself, about three times a tensor.
    left, thread = 4 * tensors + 4096, threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise ConfigError(f"model: it describes more than {tensors} tensors: {APART}")

    handles = [
        register(count)
        for register in (
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
            registration.register_module_module_registration_hook,
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; ConfigError when it is damaged, or has more than any model."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > LONGEST_HEADER:
        raise ConfigError(
            f"{path}: damaged, or of more tensors than any model: a header of {header:.4g} bytes"
        )
    try:
        with safe_open(path, "pt") as file:
            found = len(file.keys())
        if found > MOST_TENSORS:
            raise ConfigError(f"{path}: {found} tensors; the largest model has fewer than {MOST_TENSORS}")
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: damaged: {error}") from error


def size_of(weights: Mapping[str, Tensor]) -> int:
    """Numbers in all tensors together."""
    return sum(tensor.numel() for tensor in weights.values())
