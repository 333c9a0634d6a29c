"""Codebook behind a frozen random projection (BEST-RQ)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.codebooks.base import Codebook
from codec.codebooks.cache import CachedTable
from codec.codebooks.estimators import straight_through
from codec.codebooks.lookup import Estimator, look_up
from codec.codebooks.nearest import best, best_few
from codec.codebooks.normalization import Standardize


class RandomProjectionCodebook(Codebook):
    """Frozen random projection of inputs `[N, D]` and frozen unit vectors (BEST-RQ, arXiv 2202.01855).

    Only `out_proj` is learned. The quantizer cannot collapse, and gives targets for masked prediction.
    Raises ValueError for sizes out of range.
    """

    straight_through_cascade = False
    tabular = True
    pool_frames = 4096

    projection: Tensor
    vectors: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int = 1024,
        codebook_dim: int = 16,
        estimator: Estimator = straight_through,
    ):
        super().__init__()
        if codebook_size < 2 or codebook_dim < 1:
            values = f"{codebook_size} and {codebook_dim}"
            raise ValueError(f"codebook_size must be at least 2 and codebook_dim at least 1, got {values}")
        self.codebook_size = codebook_size
        self.estimator = estimator
        projection = nn.init.xavier_uniform_(torch.empty(codebook_dim, dim))
        self.register_buffer("projection", projection)
        self.register_buffer("vectors", functional.normalize(torch.randn(codebook_size, codebook_dim), dim=1))
        self.out_proj = nn.Linear(codebook_dim, dim)
        self.projected_vectors: CachedTable[Tensor] = CachedTable()
        self.standardize = Standardize(dim)
        self.register_buffer("initialised", torch.tensor(False))

    def initialise(self, pool: Tensor) -> None:
        """Fit the standardization to a pool `[N, D]`."""
        self.standardize.fit(pool)
        self.initialised.fill_(True)

    def project(self, inputs: Tensor) -> Tensor:
        """Unit vectors `[N, d]` of standardized inputs `[N, D]`."""
        return functional.normalize(self.standardize(inputs) @ self.projection.T, dim=1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[N]` of inputs `[N, D]`."""
        return best(self.project(inputs).detach(), self.vectors, self.vectors.new_zeros(self.codebook_size))

    def candidates(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Codes `[N, count]` with the largest cosines, and the squared errors of their vectors."""
        bias, count = self.vectors.new_zeros(self.codebook_size), min(count, self.codebook_size)
        codes, _ = best_few(self.project(inputs)[:, None], self.vectors, bias, count)
        return codes, (inputs[:, None] - self.lookup(codes)).square().sum(2)

    def table(self) -> Tensor:
        """All vectors `[K, D]`, projected back."""
        return self.projected_vectors(self.sources(), lambda: self.out_proj(self.vectors))

    def sources(self) -> list[Tensor]:
        """Tensors from which `table` is computed."""
        return [self.vectors, *self.out_proj.parameters()]

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`; no losses."""
        projected = self.project(inputs)
        codes = self.encode(inputs.detach())
        output = self.estimator(projected, self.vectors[codes])
        return look_up(output, codes, self), codes, {}
