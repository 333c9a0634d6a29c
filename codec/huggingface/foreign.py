"""Shared parts of foreign formats: weight normalization, kernel sizes, JSON configs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.config import PARTIAL, TARGET, ConfigError, fits
from codec.model.untrusted import check_plain, read_small, read_weights

GAIN, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
OLD_GAIN, OLD_DIRECTION = "weight_g", "weight_v"  # names in torch before 2.0


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold weight normalization: `weight = gain * direction / |direction|`."""
    plain = dict(weights)
    for gain, direction in ((GAIN, DIRECTION), (OLD_GAIN, OLD_DIRECTION)):
        for name in [name for name in weights if name.endswith(f".{gain}")]:
            prefix = name.removesuffix(gain)
            if f"{prefix}{direction}" not in plain:
                raise ConfigError(f"{prefix}weight: has a gain but no direction")
            direction_of = plain.pop(f"{prefix}{direction}")
            plain[f"{prefix}weight"] = direction_of / norms(direction_of, plain[name]) * plain.pop(name)
    return plain


def norms(weight: Tensor, gain: Tensor) -> Tensor:
    """Norms of a weight over the dimensions in which its gain has size 1."""
    return torch.linalg.vector_norm(
        weight, dim=[index for index, size in enumerate(gain.shape) if size == 1], keepdim=True
    )


def normalized(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `folded`: split weights into gain and direction where `own` has gains, of the same shape."""
    parametrized = dict(weights)
    for name in [name for name in own if name.endswith(f".{GAIN}")]:
        prefix = name.removesuffix(GAIN)
        if f"{prefix}weight" in parametrized:
            weight = parametrized.pop(f"{prefix}weight")
            gain = norms(weight, own[name])
            # A row of zeros would become NaN by 0 / 0; with gain 0 any direction is valid.
            parametrized[f"{prefix}{DIRECTION}"] = torch.where(gain == 0, 1.0, weight)
            parametrized[f"{prefix}{GAIN}"] = gain
    return parametrized


def renamed(weights: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Rename tensors: pairs are the old and the new name of a layer, or of a tensor; others are left out."""
    return {
        f"{new}{name.removeprefix(old)}": tensor
        for old, new in names
        for name, tensor in weights.items()
        if name == old or name.startswith(f"{old}.")
    }


def fit_kernel(weight: Tensor, size: int, causal: bool) -> Tensor:
    """Pad a stride-1 convolution's weight `[C', C, k]` with zeros to an equivalent one of `size` taps."""
    missing = size - weight.shape[2]
    trailing = 0 if causal else (size - 1) // 2 - (weight.shape[2] - 1) // 2
    return torch.nn.functional.pad(weight, (missing - trailing, trailing))


def arguments(node: Mapping[str, Any] | None, target: Callable[..., Any]) -> dict[str, Any]:
    """Keyword arguments of a config node for `target`, including the defaults."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.default is not parameter.empty
    }
    return defaults | {key: value for key, value in (node or {}).items() if key not in (TARGET, PARTIAL)}


def refuse(beginning: str, reasons: Mapping[str, Any]) -> None:
    """Raise ConfigError that lists all reasons with a true value."""
    if applying := [reason for reason, applies in reasons.items() if applies]:
        raise ConfigError(f"{beginning}: {'; '.join(applying)}")


def read_json_config(path: Path, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read a foreign `config.json`, merged into its format's defaults; ConfigError for wrong types."""
    options = read_json(path)
    check_plain({name: options[name] for name in defaults if name in options}, str(path))
    hints = {
        name: list[float] if isinstance(value, list) else type(value) if value is not None else Any
        for name, value in defaults.items()
    }
    wrong = [name for name, hint in hints.items() if name in options and not fits(options[name], hint)]
    if wrong:
        values = ", ".join(f"{name}: {options[name]!r}" for name in wrong)
        raise ConfigError(f"{path}: values of another type than this kind of model has: {values}")
    return dict(defaults) | {name: options[name] for name in defaults if name in options}


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping from a JSON file; ConfigError if it is damaged."""
    try:
        content = json.loads(read_small(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content


def read_safetensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Read the tensors of all files, floats as float32; ConfigError if one is damaged or repeats a name."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        part = read_weights(path)
        if repeated := tensors.keys() & part.keys():
            raise ConfigError(f"{path}: {min(repeated)} is in another shard, too")
        tensors |= {
            name: value.float() if value.is_floating_point() else value for name, value in part.items()
        }
    return tensors
