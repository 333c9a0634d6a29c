"""Normalization of inputs: each dimension to mean 0 and deviation 1, and whitening for FSQ and LFQ."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class RunningWhitening(nn.Module):
    """Whitens inputs `[N, d]` to mean 0, variance 1 and no correlation, by averages over training.

    Correlated inputs, and inputs that grow during training, use only a few levels. `ridge`, a share of the
    mean variance, limits the gain of weaker directions, which initially are noise. The weight of a batch is
    4 %, halved every 200 updates: the averages forget the untrained encoder and then settle. Averages that
    continue to follow would let latents grow without bound.
    """

    mean: Tensor
    covariance: Tensor
    matrix: Tensor
    updates: Tensor

    def __init__(self, dim: int, ridge: float = 0.005):
        super().__init__()
        self.ridge = ridge
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))
        self.register_buffer("matrix", torch.eye(dim))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        """Whiten `[N, d]`."""
        # A copy, because `update` may change the matrix before the backward pass.
        return (inputs - self.mean) @ self.matrix.T.clone()

    def fit(self, pool: Tensor) -> None:
        """Set mean and covariance to those of a pool `[N, d]`."""
        self.mean.copy_(pool.mean(0))
        self.move(*self.moments(pool, torch.ones_like(pool[:, 0])), torch.ones(()).to(pool))

    def moments(self, inputs: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Sums `[d + 1, d]` of products of deviations and of deviations, and their count `[1]`, of `used`."""
        centered = torch.where(used[:, None] > 0, inputs - self.mean, 0.0)
        return torch.cat([centered.T @ centered, centered.sum(0, keepdim=True)]), used.sum().to(inputs)[None]

    def learn(self, sums: Tensor, count: Tensor) -> None:
        """Learn from `moments` summed over the processes; no-op unless all are finite."""
        finite = torch.isfinite(sums.sum()) & (count > 0).all()
        self.move(torch.where(finite, sums, 0.0), count, finite * 0.04 * 0.5 ** (self.updates / 200))
        self.updates.add_(finite)

    def move(self, sums: Tensor, count: Tensor, weight: Tensor) -> None:
        """Move the averages toward those of a batch, and compute the whitening matrix."""
        means = sums / count.clamp(min=1)
        shift = weight * means[-1]
        self.mean.add_(shift)
        self.covariance.lerp_(means[:-1], weight).sub_(torch.outer(shift, shift))
        floor = self.ridge * self.covariance.diagonal().mean().clamp(min=1e-12)
        unit = torch.eye(len(self.mean), device=sums.device)
        factor, _ = torch.linalg.cholesky_ex(self.covariance + floor * unit)
        self.matrix.copy_(torch.linalg.solve_triangular(factor, unit, upper=False))


def whitening_projection(inputs: Tensor, count: int) -> Tensor:
    """Whitening projection `[count, D]` of inputs `[N, D]`: variance 1, uncorrelated for `count` up to D.

    The `count` strongest principal components, scaled to equal strength and rotated at random, as for the
    signs in "Iterative quantization" (Gong and Lazebnik 2011): all outputs are equally informative.
    """
    # In float64 on the CPU: rounding in float32 rotates components of nearly equal strength.
    strengths, axes = torch.linalg.eigh(inputs.T.cpu().double().cov())
    rank = min(count, inputs.shape[1])
    whitened = axes[:, -rank:] / strengths[-rank:].clamp(min=max(1e-6 * float(strengths[-1]), 1e-12)).sqrt()
    generator = torch.Generator().manual_seed(count)
    rotation = nn.init.orthogonal_(torch.empty(count, rank), generator=generator)
    return (functional.normalize(rotation, dim=1).to(whitened) @ whitened.T).to(inputs)


def regression(numbers: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `[D, d]` and bias `[D]` of the least-squares regression of inputs `[N, D]` on `[N, d]`."""
    design = torch.cat([numbers, torch.ones_like(numbers[:, :1])], 1).cpu().double()
    solution = (torch.linalg.pinv(design.T @ design) @ (design.T @ inputs.cpu().double())).to(inputs)
    return solution[:-1].T, solution[-1]
