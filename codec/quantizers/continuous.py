"""Bottlenecks without codes, as references: unchanged latents, and a variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from codec.codebooks.standardize import Standardize
from codec.quantizers.base import Quantized, Quantizer


class Continuous(Quantizer):
    """Bottleneck of latents `[B, D, F]` with empty codes `[B, 0, F]` and infinite bitrate."""

    codebook_sizes = ()

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Empty codes `[B, 0, F]`."""
        self.check_finite(latents)
        return no_codes(latents)

    def decode(self, codes: Tensor) -> Tensor:
        """Raise ConfigError: nothing was coded."""
        self.require_codes("decode")
        return super().decode(codes)


class Identity(Continuous):
    """Identity of latents `[B, D, F]`, with empty codes `[B, 0, F]` and infinite bitrate.

    Mimi (arXiv 2410.00037) trains on half of its sequences without quantization; here all of them are.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.loss_weights = {}

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


class Variational(Continuous):
    """Variational bottleneck (VAE, arXiv 1312.6114) of latents `[B, D, F]`: `latent_dim` Gaussian variables.

    Training draws the latents; without a generator they are the mean. The loss "kl" is the divergence from
    N(0, 1) in nats per latent dimension. Codes are empty `[B, 0, F]` and the bitrate is infinite. Latents are
    standardized and the initial noise is small: noise of variance 1 would mask an untrained encoder, and the
    decoder would learn to ignore it. ValueError for a `latent_dim` below 1.
    """

    FIRST_LOG_VARIANCE = -6.0

    initialised: Tensor

    def __init__(self, dim: int, latent_dim: int = 64, loss_weights: Mapping[str, float] | None = None):
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.dim = dim
        self.to_moments = nn.Conv1d(dim, 2 * latent_dim, 1)
        with torch.no_grad():
            cast(Tensor, self.to_moments.bias)[latent_dim:] += self.FIRST_LOG_VARIANCE
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

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Draw latents `[B, D, F]`, or return their mean without a generator; zero where masked."""
        standard = self.standardize(latents.float().mT).mT
        mean, log_variance = self.to_moments(standard).chunk(2, 1)
        log_variance = log_variance.clamp(-30, 20)
        sample = mean
        if generator is not None:
            noise = torch.empty_like(mean).normal_(generator=generator)
            sample = mean + noise * (0.5 * log_variance).exp()
        present = torch.ones_like(mean[:, :1]) if mask is None else mask[:, None].to(mean.dtype)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(1, keepdim=True)
        kl = torch.where(present > 0, divergence, 0.0).sum() / present.sum().clamp(min=1)
        output = torch.where(present > 0, self.out_proj(sample), 0.0)
        return Quantized(output, no_codes(latents), {"kl": kl}, latents.detach())


def no_codes(latents: Tensor) -> Tensor:
    """Empty codes `[B, 0, F]`."""
    return torch.empty(len(latents), 0, latents.shape[-1], dtype=torch.int64, device=latents.device)
