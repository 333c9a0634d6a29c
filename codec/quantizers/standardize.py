"""Latents at mean 0 and deviation 1, for codebooks that compare directions or signs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Subtracts the mean of a pool of inputs `[N, D]` and divides by its deviation, per dimension.

    An encoder's first latents differ little beside what they have in common: unless that is taken away all
    point in one direction, and their codes say nothing.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def fit(self, pool: Tensor) -> None:
        """Take mean and deviation from a pool `[N, D]`."""
        self.mean.copy_(pool.mean(0))
        self.deviation.copy_(pool.std(0).clamp(min=1e-6))

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardised `[N, D]`."""
        return (inputs - self.mean) / self.deviation

    def undo(self, standard: Tensor) -> Tensor:
        """What was standardised to `[..., D]`."""
        return standard * self.deviation + self.mean
