"""Base classes of bottlenecks and quantizers, and the record that they return."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from codec.config import ConfigError


class Quantized(NamedTuple):
    """Output of a quantizer for latents `[B, D, F]`.

    `latents` `[B, D, F]` are the quantized latents. `codes` are int64 `[B, K, F]`, −1 for masked frames and
    dropped stages. `losses` are unweighted scalars by name; the quantizer has their `loss_weights`. `inputs`
    `[B, D, F]` are the latents without gradient, for `Quantizer.update` and `revive`. `branches` are parts of
    `latents`, for losses on one of them: those of quantizers in parallel, as the semantic one of `Split`, or
    that of the first stage of a `Residual`.
    """

    latents: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    inputs: Tensor
    branches: tuple[Quantized, ...] = ()


class Bottleneck(nn.Module):
    """Base class: latents `[B, D, F * stride]` to coded frames `[B, R, F]` and back; `stride` is usually 1.

    Coded frames are the int64 codes of a `Quantizer`, or the float32 values of a `Continuous` bottleneck.
    `forward`, `encode` and `decode` do not change the state. Learning without gradients happens in
    `initialise`, `update` and `revive`, which the training step calls once each, on every process. All
    randomness comes from `generator`; without one the bottleneck is deterministic.
    """

    dim: int
    codebook_sizes: tuple[int, ...] = ()
    loss_weights: dict[str, float]
    stride: int = 1  # latents per coded frame
    latent_dim: int = 0  # rows R of continuous frames; 0 for codes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to the device of `to`, `cuda`, `half` and similar calls, but keep float32.

        A rounded codebook would give codes that differ from existing tokens.
        """

        def move(tensor: Tensor) -> Tensor:
            target = fn(tensor)
            return target if target.dtype == tensor.dtype else tensor.to(target.device)

        return super()._apply(move, recurse)

    @property
    def num_quantizers(self) -> int:
        """Number of codes per frame."""
        return len(self.codebook_sizes)

    def bits_per_frame(self, num_quantizers: int | None = None) -> float:
        """Bits per frame of the first `num_quantizers` codes; infinite for a quantizer without codes."""
        if not self.codebook_sizes:
            return math.inf
        return sum(math.log2(size) for size in self.codebook_sizes[: self.check_depth(num_quantizers)])

    def check_depth(self, num_quantizers: int | None) -> int:
        """Return a number of stages, None as all; ConfigError outside 1..K."""
        if num_quantizers is None:
            return self.num_quantizers
        if not self.codebook_sizes:
            raise ConfigError(f"num_quantizers {num_quantizers}: continuous latents have no stages to choose")
        if num_quantizers not in range(1, self.num_quantizers + 1):
            raise ConfigError(f"num_quantizers must be 1 to {self.num_quantizers}, got {num_quantizers}")
        return num_quantizers

    def require_codes(self, purpose: str) -> None:
        """Raise ConfigError for a bottleneck without codes; `purpose` is a verb, as in "to decode"."""
        if not self.codebook_sizes:
            raise ConfigError(
                f"this codec has continuous latents and no codes to {purpose}: use one with a quantizer"
            )

    @torch.no_grad()
    def check_loss_weights(self) -> None:
        """Raise ValueError unless every loss has a weight of at least 0, and every weight a loss."""
        losses = self(torch.zeros(1, self.dim, self.stride)).losses
        if set(losses) != set(self.loss_weights):
            raise ValueError(
                f"quantizer.loss_weights must name the quantizer's losses {sorted(losses)}, got "
                f"{sorted(self.loss_weights)}"
            )
        if any(weight < 0 for weight in self.loss_weights.values()):
            raise ValueError(f"quantizer.loss_weights must be at least 0, got {self.loss_weights}")

    def check_coded(self, coded: Tensor) -> None:
        """Raise ValueError unless `decode` accepts these frames; subclasses define this."""
        raise NotImplementedError

    def no_frames(self, batch: int, num_quantizers: int | None, device: torch.device) -> Tensor:
        """Coded frames `[B, R, 0]`; ConfigError for a wrong number of stages."""
        depth = self.check_depth(num_quantizers)
        if self.codebook_sizes:
            return torch.zeros(batch, depth, 0, dtype=torch.int64, device=device)
        return torch.zeros(batch, self.latent_dim, 0, device=device)

    def check_latents(
        self, latents: Tensor, num_quantizers: int | Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Raise ValueError unless latents are `[B, D, F * stride]`, not empty, and the other shapes match."""
        valid = latents.ndim == 3 and latents.shape[1] == self.dim and latents.shape[2] % self.stride == 0
        if not valid or 0 in latents.shape:
            per = f" * {self.stride}" if self.stride > 1 else ""
            raise ValueError(f"latents must be [B, {self.dim}, F{per}], not empty; got {list(latents.shape)}")
        batch, frames = len(latents), latents.shape[2] // self.stride
        if isinstance(num_quantizers, Tensor) and num_quantizers.shape != (batch,):
            shape = list(num_quantizers.shape)
            raise ValueError(f"num_quantizers must be an int, or one per example, [{batch}]; got {shape}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (batch, frames)):
            shape = f"{mask.dtype} {list(mask.shape)}"
            raise ValueError(f"mask must be bool [B, F], here [{batch}, {frames}], got {shape}")

    def check_finite(self, latents: Tensor) -> None:
        """`check_latents`, and ValueError for NaN or infinite latents, which have no nearest code."""
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
        """Quantize latents with the first `num_quantizers` codes of a frame, an int or a tensor `[B]`.

        `mask` `[B, F]` is False on padded frames: they get code −1 and zero latents and count in no loss.
        `generator` is for stochastic quantizers, which take the most probable code without it. All arithmetic
        is float32, also under autocast. ValueError for wrong shapes.
        """
        self.check_latents(latents, num_quantizers, mask)
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize(latents, num_quantizers, mask, generator)

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Quantize latents that were checked; autocast is disabled. Subclasses define this."""
        raise NotImplementedError

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Random number of stages for each example of a training batch, int64 `[B]`; None for all stages."""
        return None

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Coded frames `[B, R, F]` of latents `[B, D, F * stride]`."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F * stride]` of coded frames `[B, R, F]`."""
        raise NotImplementedError

    def pool_size(self) -> int:
        """Number of latents that `initialise` needs; 0 if nothing is left to initialize."""
        return 0

    def initialise(self, pool: Tensor) -> None:
        """Fit the codebooks to a pool of successive latents `[N, D]`, the same on all processes."""

    def update(self, quantized: Quantized) -> None:
        """Learn from one training batch without gradients, as by moving averages."""

    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Replace the vectors of dead codes; returns the number of them per stage, int64 `[K]`."""
        return torch.zeros(self.num_quantizers, dtype=torch.int64, device=quantized.inputs.device)


class Quantizer(Bottleneck):
    """Bottleneck with codes: latents `[B, D, F * stride]` to int64 codes `[B, K, F]` and back."""

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless codes are int64 `[B, 1..K, F]`, not empty, and below the codebook sizes."""
        if torch.compiler.is_compiling():
            return
        valid = codes.ndim == 3 and codes.shape[1] <= self.num_quantizers and 0 not in codes.shape
        if not valid or codes.dtype != torch.int64:
            shape = f"[B, 1..{self.num_quantizers}, F]"
            raise ValueError(f"codes must be int64 {shape}, got {codes.dtype} {list(codes.shape)}")
        least, most = torch.stack(torch.aminmax(codes)).tolist()  # one transfer from a GPU
        if least >= 0 and most < min(self.codebook_sizes):
            return
        if least < 0 or any(map(operator.ge, codes.amax((0, 2)).tolist(), self.codebook_sizes)):
            raise ValueError(f"codes must be at least 0 and below the codebook sizes {self.codebook_sizes}")

    def check_coded(self, coded: Tensor) -> None:
        """Raise ValueError unless these are codes; see `check_codes`."""
        self.check_codes(coded)

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Codes `[B, num_quantizers, F]` of latents `[B, D, F * stride]`.

        `beam` is the number of residual paths in a beam search, and the factor of its cost. Codes of fewer
        stages are then no prefix of codes of more stages. Quantizers without a cascade ignore it.
        """
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F * stride]` of codes `[B, k, F]`, of the first k stages.

        ValueError for invalid codes, except during compilation.
        """
        raise NotImplementedError
