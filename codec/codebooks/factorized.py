"""Codebooks behind learned projections: DAC's factorized codebook, and a Euclidean one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from codec.codebooks.beam import by_candidates
from codec.codebooks.cache import CachedTable
from codec.codebooks.estimators import straight_through
from codec.codebooks.kmeans import kmeans
from codec.codebooks.lookup import Estimator, look_up
from codec.codebooks.nearest import best, best_few, with_half_norms
from codec.codebooks.vectors import VectorCodebook


class FactorizedCodebook(VectorCodebook):
    """Projects inputs `[N, D]` to `codebook_dim`, takes the code with the largest cosine, projects back.

    DAC (arXiv 2306.06546, §3.2): few dimensions, learned by gradients. The losses compare the projections
    before normalization, as in DAC's release. Two differences from it: codes start as the k-means centroids
    of the projected directions and `out_proj` as the inverse of `in_proj`, so that no stage initially adds
    to the error (`kmeans_iterations=0`: random), and dead codes are revived (`dead_threshold=0`: never).
    ValueError for a `codebook_dim` below 1.
    """

    # Gradients pass through the projections, stage by stage.
    straight_through_cascade = False

    def __init__(
        self,
        dim: int,
        codebook_size: int = 1024,
        codebook_dim: int = 8,
        *,
        decay: float = 0.99,
        kmeans_iterations: int = 10,
        dead_threshold: float = 0.1,
        estimator: Estimator = straight_through,
    ):
        if codebook_dim < 1:
            raise ValueError(f"codebook_dim must be at least 1, got {codebook_dim}")
        super().__init__(
            codebook_dim,
            codebook_size,
            decay=decay,
            kmeans_iterations=kmeans_iterations,
            dead_threshold=dead_threshold,
        )
        self.estimator = estimator
        self.in_proj = weight_norm(nn.Linear(dim, codebook_dim))
        self.out_proj = weight_norm(nn.Linear(codebook_dim, dim))
        self.projected_vectors: CachedTable[Tensor] = CachedTable()

    def make_vectors(self, dim: int) -> None:
        """Trainable random vectors."""
        self.vectors = nn.Parameter(torch.randn(self.codebook_size, dim))

    def initialise(self, pool: Tensor) -> None:
        """Fit codes and the projection back to a pool `[N, D]`."""
        # Projections of length 1, so that steps of Adam are not small in comparison.
        length = self.in_proj(pool).norm(dim=1).median()
        self.in_proj.weight = cast(Tensor, self.in_proj.weight) / length
        cast(Tensor, self.in_proj.bias).div_(length)
        directions = functional.normalize(self.in_proj(pool), dim=1)
        self.vectors.copy_(
            functional.normalize(kmeans(directions, self.codebook_size, self.kmeans_iterations), dim=1)
        )
        inverse = torch.linalg.pinv(cast(Tensor, self.in_proj.weight))
        self.out_proj.weight = inverse  # weight norm splits it into magnitude and direction
        cast(Tensor, self.out_proj.bias).copy_(-inverse @ cast(Tensor, self.in_proj.bias))
        self.start_usage(pool)

    def statistics(
        self, inputs: Tensor, codes: Tensor, so_far: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Empty sums `[K + 1, 0]` and the count of each code `[K + 1]`."""
        return super().statistics(inputs[:, :0], codes, so_far)

    def replace(self, dead: Tensor, vectors: Tensor) -> None:
        """Replace dead codes by projections of `[K, D]`."""
        super().replace(dead, self.in_proj(vectors))

    def search_table(self) -> tuple[Tensor, Tensor]:
        """Unit vectors `[K, d]` and the bias 0, which gives the order of cosines for inputs of any length."""
        with torch.no_grad():
            return self.searched([self.vectors], self.directions)

    def directions(self) -> tuple[Tensor, Tensor]:
        """Compute the search table."""
        return functional.normalize(self.vectors, dim=1), self.vectors.new_zeros(self.codebook_size)

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[N]` of inputs `[N, D]`."""
        return best(self.in_proj(inputs), *self.search_table())

    def candidates(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Codes `[N, count]` with the largest cosines, and the squared errors of their vectors."""
        count = min(count, self.codebook_size)
        codes, _ = best_few(self.in_proj(inputs)[:, None], *self.search_table(), count)
        return codes, (inputs[:, None] - self.lookup(codes)).square().sum(2)

    def continuations(self, inputs: Tensor, left: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Best `candidates` of all paths by squared error, because cosines do not compare across paths."""
        return by_candidates(self, inputs, left, count)

    def table(self) -> Tensor:
        """All vectors `[K, D]`, projected back."""
        return self.projected_vectors(self.sources(), lambda: self.out_proj(self.vectors))

    def sources(self) -> list[Tensor]:
        """Tensors from which `table` is computed."""
        # Through the dictionaries: attribute access of modules costs more than a small lookup.
        projection = cast(nn.Module, self._modules["out_proj"])
        tensors = [self._parameters["vectors"], *projection._parameters.values()]
        if weighted := projection._modules.get("parametrizations"):
            weight = cast(nn.Module, weighted._modules["weight"])
            tensors += weight._parameters.values()
        return cast(list[Tensor], tensors)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, and commitment and codebook error per input `[N]`."""
        projected = self.in_proj(inputs)
        codes = best(projected.detach(), *self.search_table())
        vectors = functional.embedding(codes, self.vectors)
        errors = {
            "commitment": (projected - vectors.detach()).square().mean(1),
            "codebook": (vectors - projected.detach()).square().mean(1),
        }
        output = self.estimator(projected, vectors.detach())
        return look_up(output, codes, self), codes, errors


class ProjectedCodebook(FactorizedCodebook):
    """Projects inputs `[N, D]` to `codebook_dim`, takes the nearest code, projects back.

    A `FactorizedCodebook` with Euclidean distances, as in the tokenizer of Higgs Audio v2. The losses are the
    same.
    """

    def directions(self) -> tuple[Tensor, Tensor]:
        """Compute the search table, vectors `[K, d]` and half of their squared norms."""
        return with_half_norms(self.vectors)
