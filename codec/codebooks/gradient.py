"""Codebooks of vectors learned by gradients: VQ-VAE's codebook loss, and SimVQ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codec.codebooks.vectors import VectorCodebook


class GradientCodebook(VectorCodebook):
    """Codebook for inputs `[N, D]`, trained by the codebook loss (VQ-VAE, arXiv 1711.00937, eq. 3)."""

    def make_vectors(self, dim: int) -> None:
        """Trainable random vectors of length 1 on average."""
        self.vectors = nn.Parameter(torch.randn(self.codebook_size, dim) / dim**0.5)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]` and the squared codebook error per input `[N]`."""
        vectors, codes, _ = super().forward(inputs, used, generator)
        return vectors, codes, {"codebook": (vectors - inputs).square().mean(1)}


class SimVQCodebook(GradientCodebook):
    """Codebook for inputs `[N, D]`: a learned linear map of frozen random vectors (SimVQ, arXiv 2411.02038).

    The map also moves unused codes, so none has to be revived.
    """

    def __init__(self, dim: int, codebook_size: int = 1024):
        super().__init__(dim, codebook_size, kmeans_frames=1, dead_threshold=0.0)

    def make_vectors(self, dim: int) -> None:
        """Frozen vectors, N(0, 1) per entry, long enough for fast learning of the map."""
        self.register_buffer("vectors", torch.randn(self.codebook_size, dim))
        self.map = nn.Linear(dim, dim, bias=False)

    def table(self) -> Tensor:
        """All vectors `[K, D]`, mapped."""
        return self.map(self.vectors)

    def sources(self) -> list[Tensor]:
        """Frozen vectors and the map."""
        return [self.vectors, self.map.weight]

    def initialise(self, pool: Tensor) -> None:
        """Scale the map to the deviation of the pool, because another scale would collapse to one code."""
        scale = pool.std() / self.table().std()
        self.map.weight.mul_(scale)
        self.initialised.fill_(True)
