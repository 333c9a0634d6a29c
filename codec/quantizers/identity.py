"""No quantization: what the autoencoder could do with unlimited bits."""

from __future__ import annotations

import torch
from torch import Tensor

from codec.quantizers.base import Quantized, Quantizer


class Identity(Quantizer):
    """Passes latents `[B, D, F]` on; its codes are empty `[B, 0, F]` and its bitrate is infinite."""

    codebook_sizes = ()

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.loss_weights = {}

    def forward(
        self, latents: Tensor, num_quantizers: int | Tensor | None = None, mask: Tensor | None = None
    ) -> Quantized:
        """Return the latents, zero where masked."""
        passed = latents if mask is None else torch.where(mask[:, None], latents, 0.0)
        return Quantized(passed, self.encode(latents), {}, latents.detach())

    def encode(self, latents: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Empty codes `[B, 0, F]`."""
        return torch.empty(len(latents), 0, latents.shape[-1], dtype=torch.int64, device=latents.device)

    def decode(self, codes: Tensor) -> Tensor:
        """Raise ValueError: nothing was coded."""
        raise ValueError("quantizer=none keeps no codes to decode; train with another quantizer for tokens")
