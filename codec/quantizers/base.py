"""The contract of all quantizers, and the record that they return."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from codec.config import ConfigError


class Quantized(NamedTuple):
    """What a quantizer makes of latents `[B, D, F]`.

    `codes` are int64 `[B, K, F]`, −1 where a frame was masked or a stage dropped. `losses` are unweighted
    scalars by name; the quantizer's `loss_weights` say what they count. `inputs` are the latents
    without gradient, as far as they count: all that `Quantizer.update` and `revive` need.
    """

    latents: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    inputs: Tensor


class Quantizer(nn.Module):
    """Latents `[B, D, F * stride]` to codes `[B, K, F]` and back; `stride` is 1 for most.

    `forward`, `encode` and `decode` change no state: what is learned without gradients changes only in
    `initialise`, `update` and `revive`, which the training step calls once each, on all processes alike.
    Nothing is random but what is drawn from the `generator` that a training step gives.
    """

    dim: int
    codebook_sizes: tuple[int, ...]
    loss_weights: dict[str, float]
    stride: int = 1  # latents per frame of codes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda`, `half` and the like call: a quantizer moves, but stays float32.

        Codes of a rounded codebook would be other codes than those of the tokens that exist.
        """

        def moved(tensor: Tensor) -> Tensor:
            there = fn(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        return super()._apply(moved, recurse)

    @property
    def num_quantizers(self) -> int:
        """Number of codes per frame."""
        return len(self.codebook_sizes)

    def bits_per_frame(self, num_quantizers: int | None = None) -> float:
        """Bits of the codes of one frame; infinite for a quantizer that has no codes."""
        used = self.codebook_sizes[: self.check_depth(num_quantizers)]
        return sum(math.log2(size) for size in used) if self.codebook_sizes else math.inf

    def check_depth(self, num_quantizers: int | None) -> int:
        """Resolve and check a number of stages; ConfigError outside 1..K."""
        if num_quantizers is None or not self.codebook_sizes:
            return self.num_quantizers
        if num_quantizers not in range(1, self.num_quantizers + 1):
            raise ConfigError(f"num_quantizers must be 1 to {self.num_quantizers}, got {num_quantizers}")
        return num_quantizers

    @torch.no_grad()
    def check_loss_weights(self) -> None:
        """Raise ValueError unless the weights, 0 or more, name exactly the losses that are computed."""
        losses = self(torch.zeros(1, self.dim, self.stride)).losses
        if set(losses) != set(self.loss_weights):
            raise ValueError(
                f"quantizer.loss_weights must name the quantizer's losses {sorted(losses)}, got "
                f"{sorted(self.loss_weights)}"
            )
        if any(weight < 0 for weight in self.loss_weights.values()):
            raise ValueError(f"quantizer.loss_weights must be at least 0, got {self.loss_weights}")

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless codes are int64 `[B, K, F]`, not empty, each below its codebook's size."""
        if torch.compiler.is_compiling():
            return
        if not self.codebook_sizes:
            raise ValueError("this quantizer keeps no codes to decode; train with another one for tokens")
        good = codes.ndim == 3 and codes.shape[1] <= self.num_quantizers and 0 not in codes.shape
        if not good or codes.dtype != torch.int64:
            shape = f"[B, 1..{self.num_quantizers}, F]"
            raise ValueError(f"codes must be int64 {shape}, got {codes.dtype} {list(codes.shape)}")
        least, most = torch.stack(torch.aminmax(codes)).tolist()  # read once, if it is on a GPU
        if least >= 0 and most < min(self.codebook_sizes):
            return
        if least < 0 or any(map(operator.ge, codes.amax((0, 2)).tolist(), self.codebook_sizes)):
            raise ValueError(f"codes must be at least 0 and below the codebook sizes {self.codebook_sizes}")

    def check_latents(
        self, latents: Tensor, num_quantizers: int | Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Raise ValueError unless latents are `[B, D, F * stride]`, not empty, and the others fit to them."""
        good = latents.ndim == 3 and latents.shape[1] == self.dim and latents.shape[2] % self.stride == 0
        if not good or 0 in latents.shape:
            per = f" * {self.stride}" if self.stride > 1 else ""
            raise ValueError(f"latents must be [B, {self.dim}, F{per}], not empty; got {list(latents.shape)}")
        batch, frames = len(latents), latents.shape[2] // self.stride
        if isinstance(num_quantizers, Tensor) and num_quantizers.shape != (batch,):
            got = list(num_quantizers.shape)
            raise ValueError(f"num_quantizers must be an int, or one an example, [{batch}]; got {got}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (batch, frames)):
            got = f"{mask.dtype} {list(mask.shape)}"
            raise ValueError(f"mask must be bool [B, F], here [{batch}, {frames}], got {got}")

    def check_finite(self, latents: Tensor) -> None:
        """`check_latents`, and ValueError for latents that are not finite: they have no nearest code."""
        self.check_latents(latents)
        if torch.compiler.is_compiling() or math.isfinite(latents.detach().sum()):
            return
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("latents hold NaN or infinite values: look at the audio and the weights")

    def forward(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantize latents with the first `num_quantizers` codes of a frame, an int or `[B]` of them.

        `mask` `[B, F]` is False on padded frames: they get code −1, zero latents and no part in any loss.
        `generator` is for stochastic quantizers; without it they take their most probable code.
        """
        raise NotImplementedError

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Stages that each example of a training batch should use, int64 `[B]`; None for all."""
        return None

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Codes `[B, num_quantizers, F]` of latents.

        With `beam` above 1 the best of several residual paths is taken, at that many times the cost; then
        fewer codes are no prefix of more. Quantizers that are no cascade ignore it.
        """
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F]` of codes `[B, k, F]`, for any prefix k of the stages.

        ValueError for what are no codes of this quantizer, unless a compiler traces.
        """
        raise NotImplementedError

    def pool_size(self) -> int:
        """How many latents `initialise` wants; 0 when there is nothing (more) to initialise."""
        return 0

    def initialise(self, pool: Tensor) -> None:
        """Fit the codebooks to a pool of latents `[N, D]`, successive ones, the same on all processes."""

    def update(self, quantized: Quantized) -> None:
        """Learn from one training batch what gradients do not teach."""

    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Give codes that went out of use a vector of this batch; returns how many, int64 `[K]`."""
        return torch.zeros(self.num_quantizers, dtype=torch.int64)
