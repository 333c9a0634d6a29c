"""Numbers of like strength that know nothing of each other, for quantizers that round each by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RunningWhitening(nn.Module):
    """Takes numbers `[N, d]` to mean 0, variance 1 and no correlation, by averages over training.

    Of numbers that say the same, or whose scale grows while the encoder learns, few levels are used. `ridge`,
    a share of their mean variance, keeps directions that hold less than that from becoming as loud as the
    others: at first they are noise. A batch weighs 4 %, half of that every 200 updates: the averages forget
    a young encoder, and come to rest. If they followed for ever, nothing would keep latents from growing.
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
        """Whitened `[N, d]`."""
        # A copy, that `update` may come before the gradients as with other codebooks.
        return (inputs - self.mean) @ self.matrix.T.clone()

    def fit(self, pool: Tensor) -> None:
        """Begin with mean and covariance of a pool `[N, d]`."""
        self.mean.copy_(pool.mean(0))
        self.move(*self.moments(pool, torch.ones_like(pool[:, 0])), torch.ones(()).to(pool))

    def moments(self, inputs: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Sums `[d + 1, d]` of the `used` deviations' products and of deviations, and their number `[1]`."""
        away = torch.where(used[:, None] > 0, inputs - self.mean, 0.0)
        return torch.cat([away.T @ away, away.sum(0, keepdim=True)]), used.sum().to(inputs)[None]

    def learn(self, sums: Tensor, count: Tensor) -> None:
        """Learn from `moments` summed over the processes; no-op unless all is finite."""
        known = torch.isfinite(sums.sum()) & (count > 0).all()
        self.move(torch.where(known, sums, 0.0), count, known * 0.04 * 0.5 ** (self.updates / 200))
        self.updates.add_(known)

    def move(self, sums: Tensor, count: Tensor, weight: Tensor) -> None:
        """Move the averages towards those of a batch, and solve for what whitens."""
        means = sums / count.clamp(min=1)
        shift = weight * means[-1]
        self.mean.add_(shift)
        self.covariance.lerp_(means[:-1], weight).sub_(torch.outer(shift, shift))
        floor = self.ridge * self.covariance.diagonal().mean().clamp(min=1e-12)
        unit = torch.eye(len(self.mean), device=sums.device)
        factor, _ = torch.linalg.cholesky_ex(self.covariance + floor * unit)
        self.matrix.copy_(torch.linalg.solve_triangular(factor, unit, upper=False))


def whitening_projection(inputs: Tensor, count: int) -> Tensor:
    """Projection `[count, D]` of inputs `[N, D]` to numbers of variance 1, uncorrelated for `count` up to D.

    The `count` strongest principal components at equal strength, turned at random (Gong and Lazebnik 2011,
    "Iterative quantization", where signs are taken of them, too): no number has less to say than another.
    """
    # In float64 on the CPU: components of nearly equal strength turn with the rounding of float32.
    strengths, axes = torch.linalg.eigh(inputs.T.cpu().double().cov())
    kept = min(count, inputs.shape[1])
    equal = axes[:, -kept:] / strengths[-kept:].clamp(min=max(1e-6 * float(strengths[-1]), 1e-12)).sqrt()
    generator = torch.Generator().manual_seed(count)
    turn = nn.init.orthogonal_(torch.empty(count, kept), generator=generator)
    return (functional.normalize(turn, dim=1).to(equal) @ equal.T).to(inputs)


def regression(numbers: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `[D, d]` and bias `[D]` that say inputs `[N, D]` best by numbers `[N, d]`."""
    known = torch.cat([numbers, torch.ones_like(numbers[:, :1])], 1).cpu().double()
    solved = (torch.linalg.pinv(known.T @ known) @ (known.T @ inputs.cpu().double())).to(inputs)
    return solved[:-1].T, solved[-1]
