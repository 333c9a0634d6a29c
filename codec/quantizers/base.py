"""The contract of all quantizers, and the record that they return."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer makes of latents `[B, D, F]`.

    `codes` are int64 `[B, K, F]`, −1 where a frame was masked or a stage dropped. `losses` are unweighted
    scalars by name; the quantizer's `loss_weights` say what they count. `inputs` are the latents as they
    came, without gradient: all that `Quantizer.update` and `revive` need.
    """

    latents: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    inputs: Tensor


class Quantizer(nn.Module):
    """Latents `[B, D, F]` to codes `[B, K, F]` and back.

    `forward`, `encode` and `decode` change no state: what is learned without gradients changes only in
    `initialise`, `update` and `revive`, which the training step calls once each, on all processes alike.
    """

    dim: int
    codebook_sizes: tuple[int, ...]
    loss_weights: dict[str, float]

    @property
    def num_quantizers(self) -> int:
        """Number of codes per frame."""
        return len(self.codebook_sizes)

    def bits_per_frame(self, num_quantizers: int | None = None) -> float:
        """Bits of the codes of one frame; infinite for a quantizer that has no codes."""
        used = self.codebook_sizes[: self.check_depth(num_quantizers)]
        return sum(math.log2(size) for size in used) if self.codebook_sizes else math.inf

    def check_depth(self, num_quantizers: int | None) -> int:
        """Resolve and check a number of stages; ValueError outside 1..K."""
        if num_quantizers is None or not self.codebook_sizes:
            return self.num_quantizers
        if not 1 <= num_quantizers <= self.num_quantizers:
            raise ValueError(f"num_quantizers must be 1 to {self.num_quantizers}, got {num_quantizers}")
        return num_quantizers

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless codes are int64 `[B, K, F]`, each below its codebook's size."""
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.num_quantizers or codes.dtype != torch.int64:
            shape = f"[B, 1..{self.num_quantizers}, F]"
            raise ValueError(f"codes must be int64 {shape}, got {codes.dtype} {list(codes.shape)}")
        sizes = torch.tensor(self.codebook_sizes[: codes.shape[1]], device=codes.device)[:, None]
        if codes.numel() and bool(((codes < 0) | (codes >= sizes)).any()):
            raise ValueError(f"codes must be at least 0 and below the codebook sizes {self.codebook_sizes}")

    def forward(
        self, latents: Tensor, num_quantizers: int | Tensor | None = None, mask: Tensor | None = None
    ) -> Quantized:
        """Quantize latents `[B, D, F]` with the first `num_quantizers` stages, an int or `[B]` of them.

        `mask` `[B, F]` is False on padded frames: they get code −1, zero latents and no part in any loss.
        """
        raise NotImplementedError

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Stages that each example of a training batch should use, int64 `[B]`; None for all."""
        return None

    def encode(self, latents: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Codes `[B, num_quantizers, F]` of latents `[B, D, F]`."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F]` of codes `[B, k, F]`, for any prefix k of the stages."""
        raise NotImplementedError

    def pool_size(self) -> int:
        """How many latents `initialise` wants; 0 when there is nothing (more) to initialise."""
        return 0

    def initialise(self, pool: Tensor) -> None:
        """Fit the codebooks to a pool of latents `[N, D]`, the same on all processes."""

    def update(self, quantized: Quantized) -> None:
        """Learn from one training batch what gradients do not teach."""

    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Give codes that went out of use a vector of this batch; returns how many, int64 `[K]`."""
        return torch.zeros(self.num_quantizers, dtype=torch.int64)


def straight_through(inputs: Tensor, quantized: Tensor) -> Tensor:
    """Exactly `quantized`, with the gradient of `inputs` (arXiv 1308.3432)."""
    # inputs - inputs.detach() is exactly 0, where the usual inputs + (q - inputs).detach() rounds.
    return quantized.detach() + (inputs - inputs.detach()) if inputs.requires_grad else quantized
