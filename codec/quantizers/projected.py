"""Quantizer between learned projections to another number of dimensions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from codec.quantizers.base import Quantized, Quantizer


class Projected(Quantizer):
    """Quantizes `quantizer_dim` projections of latents `[B, D, F]` and projects back, without bias.

    Search in fewer dimensions than those of the latents, as in EnCodec's successors (Mimi, arXiv 2410.00037:
    512 to 256). `quantizer` builds the inner quantizer from its number of dimensions. ValueError for a
    `quantizer_dim` below 1.
    """

    def __init__(self, dim: int, quantizer: Callable[[int], Quantizer], quantizer_dim: int = 8):
        super().__init__()
        if quantizer_dim < 1:
            raise ValueError(f"quantizer_dim must be at least 1, got {quantizer_dim}")
        self.dim = dim
        self.in_proj = nn.Conv1d(dim, quantizer_dim, 1, bias=False)
        self.quantizer = quantizer(quantizer_dim)
        self.out_proj = nn.Conv1d(quantizer_dim, dim, 1, bias=False)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.loss_weights = self.quantizer.loss_weights
        self.stride = self.quantizer.stride

    def project(self, latents: Tensor) -> Tensor:
        """Project `[B, D, F]` to `[B, quantizer_dim, F]` in float32."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.in_proj(latents.float())

    def forward(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Project, quantize, project back; see `Quantizer.forward`."""
        self.check_latents(latents, num_quantizers, mask)
        inner = self.quantizer(self.project(latents), num_quantizers, mask, generator)
        with torch.autocast(latents.device.type, enabled=False):
            return Quantized(self.out_proj(inner.latents), inner.codes, inner.losses, latents.detach())

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Codes of the projected latents."""
        self.check_finite(latents)
        return self.quantizer.encode(self.project(latents), num_quantizers, beam)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents of codes, projected back."""
        with torch.autocast(codes.device.type, enabled=False):
            return self.out_proj(self.quantizer.decode(codes))

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Random number of stages `[B]` of the inner quantizer."""
        return self.quantizer.draw_num_quantizers(batch, generator)

    def pool_size(self) -> int:
        """Pool size of the inner quantizer."""
        return self.quantizer.pool_size()

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Fit the inner quantizer to the projected pool."""
        self.quantizer.initialise(self.project(pool.T[None])[0].T)

    def inside(self, quantized: Quantized) -> Quantized:
        """Record for the inner quantizer."""
        return quantized._replace(inputs=self.project(quantized.inputs))

    @torch.no_grad()
    def update(self, quantized: Quantized) -> None:
        """Update the inner quantizer."""
        self.quantizer.update(self.inside(quantized))

    @torch.no_grad()
    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Revive dead codes of the inner quantizer."""
        return self.quantizer.revive(self.inside(quantized), seed)
