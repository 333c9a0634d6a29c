"""Latents at mean 0 and deviation 1, for codebooks that compare directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Subtracts the mean of a pool of inputs `[N, D]` and divides by its deviation, per dimension.

    An encoder's first latents differ little beside what they have in common: unless that is taken away all
    point in one direction, and their codes say nothing. While it is trained both move far from where they
    started: `update` follows them, `decay` of the old kept at every step.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int, decay: float = 0.95):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def fit(self, pool: Tensor) -> None:
        """Take mean and deviation from a pool `[N, D]`."""
        self.mean.copy_(pool.mean(0))
        self.deviation.copy_(pool.std(0).clamp(min=1e-6))

    def statistics(
        self, inputs: Tensor, codes: Tensor, so_far: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sums `[3, D]` of inputs `[N, D]` with codes `[N]`, of their squares and of nothing; number."""
        counted = torch.where(codes[:, None] >= 0, inputs, 0.0)
        sums = torch.stack([counted.sum(0), counted.square().sum(0), torch.zeros_like(counted[0])])
        counts = torch.stack([(codes >= 0).sum(), codes.new_zeros(())]).to(sums.dtype)
        return (sums, counts) if so_far is None else (so_far[0] + sums, so_far[1] + counts)

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Follow `statistics` without their last rows, summed over the processes; no-op unless finite."""
        mean, power = sums / counts.clamp(min=1)
        deviation = (power - mean.square()).clamp(min=1e-12).sqrt()
        known = torch.isfinite(sums.sum()) & (counts.sum() > 1)
        for old, new in ((self.mean, mean), (self.deviation, deviation)):
            old.copy_(torch.where(known, torch.lerp(new, old, self.decay), old))

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardised `[N, D]`."""
        return (inputs - self.mean) / self.deviation
