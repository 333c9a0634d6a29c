"""Latents at mean 0 and deviation 1, for codebooks that compare directions or signs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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


def whitening(inputs: Tensor, count: int) -> Tensor:
    """Projection `[count, D]` of inputs `[N, D]` to numbers of variance 1, uncorrelated for `count` up to D.

    The `count` strongest principal components at equal strength, turned at random (Gong and Lazebnik 2011,
    "Iterative quantization", where signs are taken of them, too): no number has less to say than another.
    """
    strengths, axes = torch.linalg.eigh(inputs.T.cov())
    kept = min(count, inputs.shape[1])
    equal = axes[:, -kept:] / strengths[-kept:].clamp(min=1e-6 * float(strengths[-1])).sqrt()
    generator = torch.Generator().manual_seed(count)
    turn = nn.init.orthogonal_(torch.empty(count, kept), generator=generator).to(inputs)
    return functional.normalize(turn, dim=1) @ equal.T


def regression(numbers: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `[D, d]` and bias `[D]` that say inputs `[N, D]` best by numbers `[N, d]`."""
    known = torch.cat([numbers, torch.ones_like(numbers[:, :1])], 1)
    solved = torch.linalg.pinv(known.T @ known) @ (known.T @ inputs)
    return solved[:-1].T, solved[-1]
