"""Parts that the SEANets of `transformers` share: numbers of layers, names, codebooks."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from codec.autoencoders.seanet import ResidualUnits, SEANet
from codec.codebooks.vectors import VectorCodebook
from codec.layers.conv import Conv1d, ConvTranspose1d
from codec.quantizers.residual import Residual

KERNEL = 7  # size in SEANet's first and last convolutions
FAR = 1e15  # entry of an unused vector, never the nearest; its square fits in float32


def flattened(autoencoder: SEANet, side: str) -> list[tuple[str, nn.Module]]:
    """Layers of the encoder or decoder with their names here, each residual unit as one layer."""
    flat: list[tuple[str, nn.Module]] = []
    for index, layer in enumerate(getattr(autoencoder, side)):
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
