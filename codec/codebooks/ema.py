"""Codebooks of vectors learned by moving averages, of inputs or of their directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from codec.codebooks.vectors import VectorCodebook


class EMACodebook(VectorCodebook):
    """Codebook for inputs `[N, D]` of moving averages of its inputs (VQ-VAE, arXiv 1711.00937, A.1)."""

    def make_vectors(self, dim: int) -> None:
        """Random vectors of length 1 on average."""
        self.register_buffer("vectors", torch.randn(self.codebook_size, dim) / dim**0.5)

    def learn(self, sums: Tensor, counts: Tensor, known: Tensor) -> None:
        """Update vectors and usage by statistics if `known`."""
        super().learn(sums, counts, known)
        # Online k-means, equal to the quotient of the two moving averages (sums over usage). The vector of
        # a code without inputs stays exactly constant, for any usage.
        usage = self.usage.clamp(min=torch.finfo(sums.dtype).tiny)
        weight = (1 - self.decay) / counts.sum().clamp(min=1) / usage
        weight = torch.where(known, weight, 0.0)
        self.vectors.mul_((1 - counts * weight)[:, None])
        self.vectors.addcmul_(torch.where(known, sums, 0.0), weight[:, None])


class CosineCodebook(EMACodebook):
    """Codebook for inputs `[N, D]` of unit vectors: largest cosine, mean directions of the inputs.

    The l2-normalized codes of ViT-VQGAN (arXiv 2110.04627, §3.2), learned by spherical k-means.
    """

    def table(self) -> Tensor:
        """All vectors `[K, D]`, of length 1."""
        return functional.normalize(self.vectors, dim=1)

    def choose(self, inputs: Tensor, table: Tensor, generator: torch.Generator | None) -> Tensor:
        """Codes `[N]` of the largest cosine, or drawn by the distance of the directions."""
        if generator is not None and self.temperature:
            inputs = functional.normalize(inputs, dim=1)
        return super().choose(inputs, table, generator)

    def initialise(self, pool: Tensor) -> None:
        """Set the vectors to the centroids of the pool's directions."""
        super().initialise(functional.normalize(pool, dim=1))

    def statistics(
        self, inputs: Tensor, codes: Tensor, so_far: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sums `[K + 1, D]` of the inputs' directions and their counts `[K + 1]`."""
        return super().statistics(functional.normalize(inputs, dim=1), codes, so_far)
