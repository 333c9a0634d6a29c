"""Parts that the SEANets of `transformers` share: numbers of layers, names, codebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.autoencoders.seanet import ResidualUnits
from codec.codebooks.base import Codebook
from codec.codebooks.vectors import VectorCodebook
from codec.config import ConfigError
from codec.layers.conv import Conv1d, ConvTranspose1d
from codec.layers.recurrent import LSTM
from codec.quantizers.residual import Residual

KERNEL = 7  # size in SEANet's first and last convolutions
FAR = 1e15  # entry of an unused vector, never the nearest; its square fits in float32


def flattened(autoencoder: nn.Module, side: str) -> list[tuple[str, nn.Module]]:
    """Layers of the encoder or decoder with their names here, each residual unit as one layer."""
    flat: list[tuple[str, nn.Module]] = []
    for index, layer in enumerate(cast(nn.Sequential, autoencoder.get_submodule(side))):
        units = list(enumerate(layer)) if isinstance(layer, ResidualUnits) else []
        own_name = f"autoencoder.{side}.{index}"
        flat += [(f"{own_name}.{number}", unit) for number, unit in units] or [(own_name, layer)]
    return flat


def convolutions(layer: nn.Module, own_name: str, peer_name: str) -> Iterator[tuple[str, str]]:
    """Yield each convolution's name here and in `transformers` of a layer of those names."""
    if isinstance(layer, Conv1d | ConvTranspose1d):
        yield f"{own_name}.conv", f"{peer_name}.conv"
    elif hasattr(layer, "block"):
        yield f"{own_name}.block.1.conv", f"{peer_name}.block.1.conv"
        yield f"{own_name}.block.3.conv", f"{peer_name}.block.3.conv"
        yield f"{own_name}.skip.conv", f"{peer_name}.shortcut.conv"
    elif isinstance(layer, LSTM):
        yield f"{own_name}.lstm", f"{peer_name}.lstm"


def codebook_from(plain: Mapping[str, Tensor], prefix: str, own_name: str) -> dict[str, Tensor]:
    """Weights of a codebook from those of EnCodec's kind; ConfigError without vectors."""
    if f"{prefix}.embed" not in plain:
        raise ConfigError(f"{prefix}.embed is missing")
    vectors = plain[f"{prefix}.embed"]
    counts = plain.get(f"{prefix}.cluster_size", torch.zeros(len(vectors)))
    has_counts = bool(counts.sum() > 0)
    usage = counts / counts.sum() if has_counts else torch.full_like(counts, 1 / len(counts))
    initialised = torch.tensor(True)
    return {
        f"{own_name}.vectors": vectors,
        f"{own_name}.usage": usage,
        f"{own_name}.initialised": initialised,
    }


def codebook_to(stage: Codebook, size: int, prefix: str) -> dict[str, Tensor]:
    """Weights of a codebook of EnCodec's kind with `size` vectors."""
    missing = size - stage.codebook_size
    usage = functional.pad(cast(Tensor, stage.usage), (0, missing))
    table = functional.pad(stage.table(), (0, 0, 0, missing), value=FAR)
    weights = {"embed": table, "embed_avg": table * usage[:, None], "cluster_size": usage}
    return {f"{prefix}.{name}": tensor for name, tensor in weights.items()} | {
        f"{prefix}.inited": torch.ones(1)
    }


def euclidean(quantizer: nn.Module) -> bool:
    """Return True for a residual cascade whose stages all select the nearest vector of a table."""
    return (
        isinstance(quantizer, Residual)
        and set(quantizer.strides) == {1}
        and all(
            isinstance(stage, VectorCodebook) and type(stage).encode is VectorCodebook.encode
            for stage in quantizer.codebooks
        )
    )
