"""Untrusted files: bounded reading of descriptions and weights, and bounded building of models."""

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

MOST_BYTES = 2**18  # of a description; those of the largest models have about 2^13
MOST_VALUES, DEEPEST = 2**13, 32
MOST_TENSORS, LONGEST_HEADER = 2**14, 2**22  # of weights; the largest models have about 2^11, 2^18 bytes
LARGEST = 2**20  # number in a small model's description; in a large one's, at most the number of weights
APART = "weights and config are of different models"


def read_small(path: Path) -> str:
    """Text of a description; ConfigError if it is larger than `MOST_BYTES`, or not UTF-8."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path}: damaged, or not a description: larger than {MOST_BYTES >> 10} KiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: damaged: {error}") from error


class PlainLoader(yaml.SafeLoader):
    """YAML loader that refuses aliases: a few lines of them can expand beyond any memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose the next node; YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias (*{self.peek_event().anchor}): write out the values it refers to")
        return super().compose_node(parent, index)


class PlainDumper(yaml.SafeDumper):
    """YAML dumper that writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always True: repeated values are written out."""
        return True


def read_yaml(path: Path) -> Any:
    """Content of a YAML file; ConfigError if it is damaged, too large, or has aliases."""
    text = read_small(path)
    try:
        return yaml.load(text, PlainLoader)
    # PyYAML passes on errors of Python's types: a 13th month, a number of 5,000 digits.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from error


def check_plain(node: Any, path: str = "model", largest: int = 2**63) -> None:
    """ConfigError unless a description has plain values only, within the limits of number, depth and size.

    Interpolations are refused: they could insert values of this machine into a description.
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
    """Short text for an integer of any size."""
    return f"{value:.4g}" if abs(value) < 2**1000 else f"a number of {value.bit_length()} bits"


@contextmanager
def bounded_building(tensors: int) -> Iterator[None]:
    """Bound the modules, parameters and buffers built in this thread by `tensors`; ConfigError beyond it."""
    # A normalized convolution registers its parts, and itself, about three times per tensor.
    budget, thread = 4 * tensors + 4096, threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal budget
        budget -= threading.get_ident() == thread
        if budget < 0:
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
    """Tensors of a safetensors file; ConfigError if it is damaged, or has more than `MOST_TENSORS`."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > LONGEST_HEADER:
        raise ConfigError(
            f"{path}: damaged, or of more tensors than any model: a header of {header:.4g} bytes"
        )
    try:
        with safe_open(path, "pt") as file:
            count = len(file.keys())
        if count > MOST_TENSORS:
            raise ConfigError(f"{path}: {count} tensors; the largest model has fewer than {MOST_TENSORS}")
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: damaged: {error}") from error


def size_of(weights: Mapping[str, Tensor]) -> int:
    """Total number of elements of all tensors."""
    return sum(tensor.numel() for tensor in weights.values())
