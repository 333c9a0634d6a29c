"""Gaussian channel of a given rate: the noise of an ideal quantizer, with exact gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from codec.config import ConfigError
from codec.quantizers.base import Quantized
from codec.quantizers.continuous import Identity, no_codes
from codec.quantizers.layout import rows
from codec.system.distributed import all_reduce_sum


class GaussianChannel(Identity):
    """Gaussian channel of `bits` per latent: white noise on latents `[B, D, F]`, then the Wiener estimate.

    The rate of noise of variance s is `1/2 log2 det(I + C / s)` bits for Gaussian latents with covariance C
    (Cover and Thomas, "Elements of Information Theory", 9.4 and 10.3). Each step solves for s. The gradient
    is taken at a fixed rate: a direction that grows takes bits from the others. The encoder therefore learns
    an efficient spectrum, and the decoder the error of a vector quantizer of that rate. `bits[k - 1]` is the
    rate of `num_quantizers = k`. Mean and covariance are averages over training. Without a generator latents
    pass unchanged. Codes are empty `[B, 0, F]`.
    """

    POOL = 4096  # latents for the initial covariance
    WEIGHT = 0.02  # of a batch in the averages

    mean: Tensor
    covariance: Tensor
    initialised: Tensor

    def __init__(self, dim: int, bits: Sequence[float]):
        super().__init__(dim)
        if not bits or not all(0 < rate < math.inf for rate in bits):
            raise ValueError(f"bits of a latent must be positive and finite, got {list(bits)}")
        self.bits = tuple(bits)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))
        self.register_buffer("initialised", torch.tensor(False))

    def pool_size(self) -> int:
        """Number of latents for the initial covariance; 0 once initialized."""
        return 0 if bool(self.initialised) else max(self.POOL, 4 * self.dim)

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Take mean and covariance from a pool `[N, D]`."""
        self.mean.copy_(pool.mean(0))
        self.covariance.copy_(pool.T.cov())
        self.initialised.fill_(True)

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Pass latents `[B, D, F]` through the channel at the rate of each example's `num_quantizers`."""
        if mask is not None:
            raise ValueError("a channel takes no mask: its covariance is that of all latents")
        passed = latents
        if generator is not None:
            rates = torch.as_tensor(len(self.bits) if num_quantizers is None else num_quantizers)
            passed = self.transmit(latents.float().mT, rates.expand(len(latents)) - 1, generator).mT
        return Quantized(passed, no_codes(latents), {}, latents.detach())

    def transmit(self, latents: Tensor, rates: Tensor, generator: torch.Generator) -> Tensor:
        """Wiener estimate of `[B, F, D]` after the channel, example b at the rate `bits[rates[b]]`."""
        deviations = latents - self.mean
        levels, level_of = rates.to(latents.device).unique(return_inverse=True)
        with torch.no_grad():
            # In float64 on the CPU, for stable directions of components of nearly equal strength.
            strengths, directions = torch.linalg.eigh(self.covariance.cpu().double())
            strengths = strengths.clamp(min=0)
            powers = [noise_for(strengths, self.bits[index]) for index in levels.tolist()]
            noise = torch.tensor(powers, dtype=torch.float64)
            variances, axes, noise = (
                strengths.to(deviations),
                directions.to(deviations),
                noise.to(deviations)[:, None],
            )
            gains = variances / (variances + noise)  # Wiener filter of each principal component
            wiener = (axes * gains[:, None]) @ axes.T
            slope = gains.sum(1)  # derivative of the rate by the logarithm of the latents' gain
            price = (axes / (variances + noise)[:, None]) @ axes.T / 2  # derivative by the covariance
        flat = deviations.reshape(-1, self.dim)
        bits = (price * (flat.T @ flat / len(flat))).sum((1, 2)) / slope
        # Value 1; its gradient lowers the gain of growing latents to keep the rate.
        gain = (bits.detach() - bits).exp()[level_of, None, None]
        noise_sample = torch.empty_like(deviations).normal_(generator=generator)
        received = deviations * gain + noise_sample * noise.sqrt()[level_of, None]
        return received @ wiener[level_of] + self.mean

    @torch.no_grad()
    def update(self, quantized: Quantized) -> None:
        """Move mean and covariance toward those of a batch over all processes."""
        inputs = rows(quantized.inputs.float())
        deviations = inputs - self.mean
        count = torch.tensor([float(len(inputs))], device=inputs.device)
        sums, total = all_reduce_sum(
            [torch.cat([deviations.T @ deviations, deviations.sum(0, keepdim=True)]), count]
        )
        if not torch.isfinite(sums.sum()):
            return
        means = sums / total
        shift = self.WEIGHT * means[-1]
        self.mean.add_(shift)
        self.covariance.lerp_(means[:-1], self.WEIGHT).sub_(torch.outer(shift, shift))


def noise_for(variances: Tensor, bits: float) -> float:
    """Variance of white noise for a rate of `bits = 1/2 sum log2(1 + variance / noise)` of components `[D]`.

    ConfigError if all variances are 0.
    """
    largest = float(variances.max())
    if not 0 < largest < math.inf:
        raise ConfigError("latents do not vary: lower optimizer.generator.lr, and look at the audio")
    low, high = -80.0, 40.0  # natural logarithms of the noise, relative to the largest variance
    for _ in range(60):
        middle = (low + high) / 2
        rate = 0.5 * float(torch.log2(1 + variances / (largest * math.exp(middle))).sum())
        low, high = (middle, high) if rate > bits else (low, middle)
    return largest * math.exp((low + high) / 2)
