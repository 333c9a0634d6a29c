"""Quantization of patches of successive latents as one vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from codec.quantizers.base import Quantized, Quantizer


class Patches(Quantizer):
    """Joins `patch_length` successive latents of `[B, D, F]` to one vector and quantizes it.

    Within a shared `Grouped` of all channels this is channelwise VQ: one codebook for the patches in time of
    every channel (quantizer-pytorch's `split_size`). ValueError for a `patch_length` below 1.
    """

    def __init__(self, dim: int, quantizer: Callable[[int], Quantizer], patch_length: int = 4):
        super().__init__()
        if patch_length < 1:
            raise ValueError(f"patch_length must be at least 1 latent, got {patch_length}")
        self.dim, self.patch_length = dim, patch_length
        self.quantizer = quantizer(dim * patch_length)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.loss_weights = self.quantizer.loss_weights
        self.stride = patch_length * self.quantizer.stride

    def fold(self, latents: Tensor) -> Tensor:
        """Reshape `[B, D, F * patch_length]` to `[B, D * patch_length, F]`."""
        return latents.unflatten(2, (-1, self.patch_length)).transpose(2, 3).flatten(1, 2)

    def unfold(self, patches: Tensor) -> Tensor:
        """Undo `fold`."""
        return patches.unflatten(1, (-1, self.patch_length)).transpose(2, 3).flatten(2, 3)

    def forward(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantize patches; see `Quantizer.forward`."""
        self.check_latents(latents, num_quantizers, mask)
        inner = self.quantizer(self.fold(latents), num_quantizers, mask, generator)
        return Quantized(self.unfold(inner.latents), inner.codes, inner.losses, latents.detach())

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Codes of the patches."""
        self.check_finite(latents)
        return self.quantizer.encode(self.fold(latents), num_quantizers, beam)

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F * patch_length]` of codes `[B, k, F]`."""
        self.check_codes(codes)
        return self.unfold(self.quantizer.decode(codes))

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Random number of stages `[B]` of the inner quantizer."""
        return self.quantizer.draw_num_quantizers(batch, generator)

    def pool_size(self) -> int:
        """Pool size of the inner quantizer, times `patch_length`."""
        return self.quantizer.pool_size() * self.patch_length

    def initialise(self, pool: Tensor) -> None:
        """Fit the inner quantizer to the pool's patches."""
        patches = pool[: len(pool) // self.patch_length * self.patch_length]
        self.quantizer.initialise(self.fold(patches.T[None])[0].T)

    def inside(self, quantized: Quantized) -> Quantized:
        """Record for the inner quantizer."""
        return quantized._replace(inputs=self.fold(quantized.inputs))

    def update(self, quantized: Quantized) -> None:
        """Update the inner quantizer."""
        self.quantizer.update(self.inside(quantized))

    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Revive dead codes of the inner quantizer."""
        return self.quantizer.revive(self.inside(quantized), seed)
