"""Continuous bottlenecks, without codes: unchanged latents, and variational autoencoders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from codec.codebooks.normalization import Standardize
from codec.quantizers.base import Bottleneck, Quantized


class Continuous(Bottleneck):
    """Bottleneck whose coded frames are float32 `[B, latent_dim, F]`; the bitrate is infinite.

    `encode` is deterministic: the mean of a distribution, not a sample. `Quantized.codes` are empty.
    """

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Frames `[B, latent_dim, F]` of latents `[B, D, F]`; ConfigError for a number of stages."""
        self.check_depth(num_quantizers)
        self.check_finite(latents)
        with torch.autocast(latents.device.type, enabled=False):
            return self.compress(latents.float())

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F]` of frames `[B, latent_dim, F]` of any float type."""
        self.check_coded(codes)
        with torch.autocast(codes.device.type, enabled=False):
            return self.expand(codes.float())

    def compress(self, latents: Tensor) -> Tensor:
        """Frames `[B, latent_dim, F]` of checked latents `[B, D, F]`, without noise."""
        raise NotImplementedError

    def expand(self, frames: Tensor) -> Tensor:
        """Latents `[B, D, F]` of checked frames `[B, latent_dim, F]`."""
        raise NotImplementedError

    def check_coded(self, coded: Tensor) -> None:
        """Raise ValueError unless frames are finite floats `[B, latent_dim, F]`, not empty."""
        if torch.compiler.is_compiling():
            return
        shape = f"float [B, {self.latent_dim}, F], not empty"
        valid = coded.ndim == 3 and coded.shape[1] == self.latent_dim and 0 not in coded.shape
        if not valid or not coded.is_floating_point():
            raise ValueError(f"continuous latents must be {shape}; got {coded.dtype} {list(coded.shape)}")
        if not bool(torch.isfinite(coded).all()):
            raise ValueError("continuous latents hold NaN or infinite values")


class Identity(Continuous):
    """Identity of latents `[B, D, F]`, with empty codes `[B, 0, F]` and infinite bitrate.

    Mimi (arXiv 2410.00037) trains on half of its sequences without quantization; here all of them are.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = self.latent_dim = dim
        self.loss_weights = {}

    def compress(self, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents

    def expand(self, frames: Tensor) -> Tensor:
        """Return the latents."""
        return frames

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Return the latents, zero where masked."""
        output = latents if mask is None else torch.where(mask[:, None], latents, 0.0)
        return Quantized(output, no_codes(latents), {}, latents.detach())


class Gaussian(Continuous):
    """Autoencoder of `latent_dim` Gaussian variables (VAE, arXiv 1312.6114) of latents `[B, D, F]`.

    Training draws the variables; without a generator they are their mean. The loss "kl" is the divergence
    from N(0, 1) in nats per variable. Latents are standardized. Subclasses define `moments`, computed from
    `count` values per variable. ValueError for a `latent_dim` below 1.
    """

    initialised: Tensor

    def __init__(self, dim: int, latent_dim: int, count: int, loss_weights: Mapping[str, float] | None):
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.dim, self.latent_dim = dim, latent_dim
        self.to_moments = nn.Conv1d(dim, count * latent_dim, 1)
        self.out_proj = nn.Conv1d(latent_dim, dim, 1)
        self.loss_weights = {"kl": 0.01} if loss_weights is None else dict(loss_weights)
        self.standardize = Standardize(dim)
        self.register_buffer("initialised", torch.tensor(False))

    def pool_size(self) -> int:
        """Number of latents for their mean and deviation; 0 once initialized."""
        return 0 if bool(self.initialised) else 4096

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Fit the standardization to a pool `[N, D]`."""
        self.standardize.fit(pool)
        self.initialised.fill_(True)

    def moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, each `[B, latent_dim, F]`, of latents `[B, D, F]`."""
        raise NotImplementedError

    def statistics(self, latents: Tensor) -> Tensor:
        """Output of `to_moments`, `[B, count * latent_dim, F]`, for standardized latents."""
        return self.to_moments(self.standardize(latents.float().mT).mT)

    def compress(self, latents: Tensor) -> Tensor:
        """Mean `[B, latent_dim, F]` of the variables."""
        return self.moments(latents)[0]

    def expand(self, frames: Tensor) -> Tensor:
        """Latents `[B, D, F]` of variables `[B, latent_dim, F]`."""
        return self.out_proj(frames)

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Draw latents `[B, D, F]`, or return their mean without a generator; zero where masked."""
        mean, log_variance = self.moments(latents)
        sample = mean
        if generator is not None:
            noise = torch.empty_like(mean).normal_(generator=generator)
            sample = mean + noise * (0.5 * log_variance).exp()
        present = torch.ones_like(mean[:, :1]) if mask is None else mask[:, None].to(mean.dtype)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(1, keepdim=True)
        kl = torch.where(present > 0, divergence, 0.0).sum() / present.sum().clamp(min=1)
        output = torch.where(present > 0, self.expand(sample), 0.0)
        return Quantized(output, no_codes(latents), {"kl": kl}, latents.detach())


class Variational(Gaussian):
    """Gaussian variables with a learned variance, for latents `[B, D, F]`.

    Source: Kingma and Welling 2014 (1312.6114).
    The initial noise is small: noise of variance 1 would mask an untrained encoder, and the decoder would
    learn to ignore it.
    """

    FIRST_LOG_VARIANCE = -6.0

    def __init__(self, dim: int, latent_dim: int = 64, loss_weights: Mapping[str, float] | None = None):
        super().__init__(dim, latent_dim, 2, loss_weights)
        with torch.no_grad():
            cast(Tensor, self.to_moments.bias)[latent_dim:] += self.FIRST_LOG_VARIANCE

    def moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, each `[B, latent_dim, F]`."""
        mean, log_variance = self.statistics(latents).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)


class FixedSigma(Gaussian):
    """Gaussian variables with the standard deviation `sigma` (σ-VAE of LatentLM, arXiv 2412.08635).

    A fixed variance cannot collapse, which a diffusion model of the variables needs. ValueError for a `sigma`
    of 0 or less.
    """

    def __init__(
        self,
        dim: int,
        latent_dim: int = 64,
        sigma: float = 0.5,
        loss_weights: Mapping[str, float] | None = None,
    ):
        if sigma <= 0:
            raise ValueError(f"sigma must be above 0, got {sigma}")
        super().__init__(dim, latent_dim, 1, loss_weights)
        self.log_variance = 2 * math.log(sigma)

    def moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `[B, latent_dim, F]`, and the same logarithm of the variance for all variables."""
        mean = self.statistics(latents)
        return mean, torch.full_like(mean, self.log_variance)


def no_codes(latents: Tensor) -> Tensor:
    """Empty codes `[B, 0, F]`."""
    return torch.empty(len(latents), 0, latents.shape[-1], dtype=torch.int64, device=latents.device)
