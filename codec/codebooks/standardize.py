"""Standardization to mean 0 and deviation 1, for codebooks that compare directions or signs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Subtracts the mean of a pool of inputs `[N, D]` and divides by its deviation, per dimension.

    The latents of an untrained encoder are nearly constant. Without standardization they have nearly the same
    direction, and their codes carry no information.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def fit(self, pool: Tensor) -> None:
        """Set mean and deviation to those of a pool `[N, D]`."""
        self.mean.copy_(pool.mean(0))
        self.deviation.copy_(pool.std(0).clamp(min=1e-6))

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardize `[N, D]`."""
        return (inputs - self.mean) / self.deviation

    def undo(self, standard: Tensor) -> Tensor:
        """Invert the standardization of `[..., D]`."""
        return standard * self.deviation + self.mean
