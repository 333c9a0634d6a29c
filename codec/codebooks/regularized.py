"""Gradient codebook with regularizers against similar and unused vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from codec.codebooks.gradient import GradientCodebook
from codec.codebooks.nearest import half_norms
from codec.system.distributed import all_reduce_with_gradient


class RegularizedCodebook(GradientCodebook):
    """Gradient codebook for inputs `[N, D]` with two more losses; a weight of 0 switches a loss off.

    "orthogonality": mean squared cosine between different vectors (arXiv 2112.00384). "diversity": entropy
    deficit of the mean soft assignment, as a share of log(codebook_size).
    """

    SOFTNESS = 0.1  # of the assignment, as a share of the vectors' mean squared length

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, the codebook error per input `[N]` and both scalar regularizers."""
        vectors, codes, losses = super().forward(inputs, used, generator)
        losses |= {"orthogonality": self.orthogonality(), "diversity": self.diversity(inputs, used)}
        return vectors, codes, losses

    def orthogonality(self) -> Tensor:
        """Mean squared cosine of two different vectors, 0 to 1."""
        unit = functional.normalize(self.vectors, dim=1)
        size = self.codebook_size
        return ((unit.T @ unit).square().sum() - size).clamp(min=0) / (size * (size - 1))

    def diversity(self, inputs: Tensor, used: Tensor) -> Tensor:
        """Entropy deficit of the mean soft assignment: 0 for equal use of all vectors, 1 for a single one."""
        scale = 2 / (self.SOFTNESS * self.vectors.detach().square().sum(1).mean())
        scores = torch.addmm(half_norms(self.vectors), inputs, self.vectors.T)
        return lacking_entropy((scale * scores).softmax(1), used, self.training)


def lacking_entropy(assignment: Tensor, used: Tensor, joint: bool) -> Tensor:
    """Entropy deficit 1 − H(mean of assignments `[N, K]`) / log K; `joint` averages over processes."""
    share = torch.where(used[:, None], assignment, 0.0).sum(0)
    total = torch.cat([share, used.sum().to(share.dtype)[None]])
    if joint:
        total = all_reduce_with_gradient(total)
    mean = (total[:-1] / total[-1].clamp(min=1)).clamp(min=1e-8)
    return 1 + torch.xlogy(mean, mean).sum() / math.log(assignment.shape[1])
