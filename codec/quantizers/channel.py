"""A Gaussian channel of a given rate: the noise of an ideal quantizer, with exact gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from codec.config import ConfigError
from codec.distributed import all_reduce_sum
from codec.quantizers.base import Quantized
from codec.quantizers.frames import rows
from codec.quantizers.identity import Identity, no_codes


class GaussianChannel(Identity):
    """Adds white noise to latents `[B, D, F]` so that `bits` a latent pass, and returns the Wiener estimate.

    Noise of variance s leaves `1/2 log2 det(I + C / s)` bits of Gaussian latents with covariance C (Cover and
    Thomas, "Elements of Information Theory", 9.4 and 10.3). Each step solves for s. The gradient is that at a
    fixed rate: a direction that grows takes its bits from the others, so the encoder learns a spectrum worth
    its bits, and the decoder an error that a vector quantizer of that rate would leave. `bits[k - 1]` is the
    rate of `num_quantizers = k`. Mean and covariance are averages over training. Without a generator latents
    pass unchanged. Codes are empty `[B, 0, F]`.
    """

    POOL = 4096  # latents that the first covariance is taken from
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
        """Latents that show their covariance; 0 once it is known."""
        return 0 if bool(self.initialised) else max(self.POOL, 4 * self.dim)

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Take mean and covariance from a pool `[N, D]`."""
        self.mean.copy_(pool.mean(0))
        self.covariance.copy_(pool.T.cov())
        self.initialised.fill_(True)

    def forward(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Pass latents through the channel, at the rate of each example's `num_quantizers`."""
        self.check_latents(latents, num_quantizers)
        if mask is not None:
            raise ValueError("a channel takes no mask: its covariance is that of all latents")
        passed = latents
        if generator is not None:
            rates = torch.as_tensor(len(self.bits) if num_quantizers is None else num_quantizers)
            with torch.autocast(latents.device.type, enabled=False):
                passed = self.transmit(latents.float().mT, rates.expand(len(latents)) - 1, generator).mT
        return Quantized(passed, no_codes(latents), {}, latents.detach())

    def transmit(self, latents: Tensor, rates: Tensor, generator: torch.Generator) -> Tensor:
        """Estimate of `[B, F, D]` behind the channel, example b at the rate `bits[rates[b]]`."""
        away = latents - self.mean
        used, which = rates.to(latents.device).unique(return_inverse=True)
        with torch.no_grad():
            # In float64 on the CPU, where components of nearly equal strength keep their directions.
            strengths, directions = torch.linalg.eigh(self.covariance.cpu().double())
            strengths = strengths.clamp(min=0)
            powers = [noise_for(strengths, self.bits[index]) for index in used.tolist()]
            noise = torch.tensor(powers, dtype=torch.float64)
            variances, axes, noise = strengths.to(away), directions.to(away), noise.to(away)[:, None]
            kept = variances / (variances + noise)  # of each principal component, by the Wiener filter
            wiener = (axes * kept[:, None]) @ axes.T
            slope = kept.sum(1)  # of the rate by the logarithm of the latents' gain
            price = (axes / (variances + noise)[:, None]) @ axes.T / 2  # of a covariance's bits
        flat = away.reshape(-1, self.dim)
        spent = (price * (flat.T @ flat / len(flat))).sum((1, 2)) / slope
        # Value 1: its gradient takes back in gain the bits that growing latents would cost.
        gain = (spent.detach() - spent).exp()[which, None, None]
        drawn = torch.empty_like(away).normal_(generator=generator)
        heard = away * gain + drawn * noise.sqrt()[which, None]
        return heard @ wiener[which] + self.mean

    @torch.no_grad()
    def update(self, quantized: Quantized) -> None:
        """Move mean and covariance toward those of a batch, of all processes together."""
        inputs = rows(quantized.inputs.float())
        away = inputs - self.mean
        count = torch.tensor([float(len(inputs))], device=inputs.device)
        sums, total = all_reduce_sum([torch.cat([away.T @ away, away.sum(0, keepdim=True)]), count])
        if not torch.isfinite(sums.sum()):
            return
        means = sums / total
        shift = self.WEIGHT * means[-1]
        self.mean.add_(shift)
        self.covariance.lerp_(means[:-1], self.WEIGHT).sub_(torch.outer(shift, shift))


def noise_for(variances: Tensor, bits: float) -> float:
    """Variance of white noise that leaves `bits` of components `[D]`: `1/2 sum log2(1 + variance / noise)`.

    ConfigError when all variances are 0.
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
