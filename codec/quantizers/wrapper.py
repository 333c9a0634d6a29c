"""Base of quantizers that map latents for an inner quantizer, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from codec.quantizers.base import Quantized, Quantizer


class Wrapper(Quantizer):
    """Delegates to an inner quantizer; subclasses define `to_inner` and `from_inner`.

    `length` is the number of latents in one latent of the inner quantizer.
    """

    quantizer: Quantizer

    def __init__(self, dim: int, length: int = 1):
        super().__init__()
        self.dim, self.length = dim, length

    def wrap(self, quantizer: Quantizer) -> Quantizer:
        """Take over sizes, weights and stride of the inner quantizer; returns it."""
        self.codebook_sizes, self.loss_weights = quantizer.codebook_sizes, quantizer.loss_weights
        self.stride = self.length * quantizer.stride
        return quantizer

    def to_inner(self, latents: Tensor) -> Tensor:
        """Latents `[B, D', F / length]` of the inner quantizer from `[B, D, F]`."""
        raise NotImplementedError

    def from_inner(self, latents: Tensor) -> Tensor:
        """Latents `[B, D, F]` from `[B, D', F / length]` of the inner quantizer."""
        raise NotImplementedError

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Map, quantize, map back."""
        inner = self.quantizer(self.to_inner(latents), num_quantizers, mask, generator)
        branches = tuple(Quantized(self.from_inner(one.latents), *one[1:]) for one in inner.branches)
        output = self.from_inner(inner.latents)
        return Quantized(output, inner.codes, inner.losses, latents.detach(), branches)

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Codes of the mapped latents."""
        self.check_finite(latents)
        return self.quantizer.encode(self.to_inner(latents), num_quantizers, beam)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F * stride]` of codes `[B, k, F]`, mapped back."""
        self.check_codes(codes)
        return self.from_inner(self.quantizer.decode(codes))

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Random number of stages `[B]` of the inner quantizer."""
        return self.quantizer.draw_num_quantizers(batch, generator)

    def pool_size(self) -> int:
        """Pool size of the inner quantizer, in latents of this one."""
        return self.quantizer.pool_size() * self.length

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Fit the inner quantizer to the mapped pool."""
        patches = pool[: len(pool) // self.length * self.length]
        self.quantizer.initialise(self.to_inner(patches.T[None])[0].T)

    def inside(self, quantized: Quantized) -> Quantized:
        """Record for the inner quantizer."""
        return quantized._replace(inputs=self.to_inner(quantized.inputs))

    @torch.no_grad()
    def update(self, quantized: Quantized) -> None:
        """Update the inner quantizer."""
        self.quantizer.update(self.inside(quantized))

    @torch.no_grad()
    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Revive dead codes of the inner quantizer."""
        return self.quantizer.revive(self.inside(quantized), seed)
