"""Quantizer between learned projections to another number of dimensions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from codec.quantizers.base import Quantizer
from codec.quantizers.wrapper import Wrapper


class Projected(Wrapper):
    """Quantizes projections `[B, quantizer_dim, F]` of latents `[B, D, F]` and projects back, without bias.

    Search in fewer dimensions than those of the latents, as in EnCodec's successors (Mimi, arXiv 2410.00037:
    512 to 256). `quantizer` builds the inner quantizer from its number of dimensions. ValueError for a
    `quantizer_dim` below 1.
    """

    def __init__(self, dim: int, quantizer: Callable[[int], Quantizer], quantizer_dim: int = 8):
        super().__init__(dim)
        if quantizer_dim < 1:
            raise ValueError(f"quantizer_dim must be at least 1, got {quantizer_dim}")
        self.in_proj = nn.Conv1d(dim, quantizer_dim, 1, bias=False)
        self.quantizer = self.wrap(quantizer(quantizer_dim))
        self.out_proj = nn.Conv1d(quantizer_dim, dim, 1, bias=False)

    def to_inner(self, latents: Tensor) -> Tensor:
        """Project `[B, D, F]` to `[B, quantizer_dim, F]` in float32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.in_proj(latents.float())

    def from_inner(self, latents: Tensor) -> Tensor:
        """Project `[B, quantizer_dim, F]` to `[B, D, F]` in float32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.out_proj(latents)
