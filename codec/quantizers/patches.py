"""Quantization of patches of successive latents as one vector."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from codec.quantizers.base import Quantizer
from codec.quantizers.wrapper import Wrapper


class Patches(Wrapper):
    """Joins `patch_length` successive latents of `[B, D, F]` to one vector and quantizes it.

    Codes are `[B, K, F / patch_length]`. Within a shared `Grouped` of all channels this is channelwise VQ:
    one codebook for the patches in time of every channel (NWT, arXiv 2106.04283; quantizer-pytorch's
    `split_size`). ValueError for a `patch_length` below 1.
    """

    def __init__(self, dim: int, quantizer: Callable[[int], Quantizer], patch_length: int = 4):
        super().__init__(dim, patch_length)
        if patch_length < 1:
            raise ValueError(f"patch_length must be at least 1 latent, got {patch_length}")
        self.quantizer = self.wrap(quantizer(dim * patch_length))

    def to_inner(self, latents: Tensor) -> Tensor:
        """Reshape `[B, D, F * patch_length]` to `[B, D * patch_length, F]`."""
        return latents.unflatten(2, (-1, self.length)).transpose(2, 3).flatten(1, 2)

    def from_inner(self, latents: Tensor) -> Tensor:
        """Undo `to_inner`."""
        return latents.unflatten(1, (-1, self.length)).transpose(2, 3).flatten(2, 3)
