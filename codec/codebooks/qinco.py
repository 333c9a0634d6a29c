"""Implicit neural codebook: vectors computed from a code and the sum of the earlier stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.codebooks.beam import by_candidates
from codec.codebooks.gradient import GradientCodebook
from codec.codebooks.nearest import TILE


class QINCoCodebook(GradientCodebook):
    """Codebook for inputs `[N, D]` of vectors that depend on the sum of the earlier stages.

    QINCo (arXiv 2401.14732, §3): a linear map of a code's vector and that sum, then `blocks` residual
    perceptrons of `hidden` units. A search computes all K vectors for each input. Differences from the paper:
    vectors start as k-means centroids that the networks leave as they are, each stage learns from its own
    error alone, and dead codes are revived. ValueError for sizes out of range.
    """

    tabular = False
    conditional = True

    def __init__(
        self,
        dim: int,
        codebook_size: int = 256,
        *,
        hidden: int = 128,
        blocks: int = 2,
        kmeans_frames: int = 16,
        dead_threshold: float = 0.1,
    ):
        if hidden < 1 or blocks < 0:
            raise ValueError(f"hidden must be at least 1 and blocks at least 0, got {hidden} and {blocks}")
        super().__init__(dim, codebook_size, kmeans_frames=kmeans_frames, dead_threshold=dead_threshold)
        self.mix = nn.Linear(2 * dim, dim)
        ends = [nn.Linear(hidden, dim) for _ in range(blocks)]
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), end) for end in ends)
        for layer in (self.mix, *ends):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def given(self, total: Tensor) -> Adapted:
        """Return the stage for inputs whose earlier stages sum to `total` `[..., D]`."""
        return Adapted(self, total)

    def adapted(self, vectors: Tensor, total: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes as the networks change them for sums `[..., D]`."""
        adapted = vectors + self.mix(torch.cat([vectors, total], -1))
        for block in self.blocks:
            adapted = adapted + block(adapted)
        return adapted

    def encode(self, inputs: Tensor) -> Tensor:
        """Code `[N]` of the vector nearest to each of `[N, D]`, as a first stage."""
        return self.given(torch.zeros_like(inputs)).encode(inputs)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`, as a first stage."""
        return self.given(self.vectors.new_zeros(*codes.shape, self.vectors.shape[1])).lookup(codes)

    def candidates(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Codes `[N, count]` of the nearest vectors, nearest first, and their squared errors."""
        return self.given(torch.zeros_like(inputs)).candidates(inputs, count)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]` and the squared codebook error per input `[N]`."""
        return self.given(torch.zeros_like(inputs))(inputs, used, generator)


class Adapted:
    """Stage of a `QINCoCodebook` for inputs whose earlier stages sum to `total` `[..., D]`."""

    def __init__(self, codebook: QINCoCodebook, total: Tensor):
        self.codebook, self.total = codebook, total

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        return self.codebook.adapted(functional.embedding(codes, self.codebook.vectors), self.total)

    def errors(self, inputs: Tensor) -> Tensor:
        """Squared errors `[N, K]` of all vectors for inputs `[N, D]`."""
        totals, most = self.total.flatten(0, -2), max(1, TILE // self.codebook.vectors.numel())
        if torch.compiler.is_compiling():
            return self.errors_of(inputs, totals)
        tiles = zip(inputs.split(most), totals.split(most), strict=True)
        return torch.cat([self.errors_of(*tile) for tile in tiles])

    def errors_of(self, inputs: Tensor, totals: Tensor) -> Tensor:
        """Squared errors `[N, K]` for a tile of inputs `[N, D]` and of sums `[N, D]`."""
        with torch.no_grad():
            pairs = torch.broadcast_tensors(self.codebook.vectors, totals[:, None])
            return (self.codebook.adapted(*pairs) - inputs[:, None]).square().sum(2)

    def encode(self, inputs: Tensor) -> Tensor:
        """Code `[N]` of the vector nearest to each of `[N, D]`."""
        return self.errors(inputs).argmin(1)

    def candidates(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Codes `[N, count]` of the nearest vectors, nearest first, and their squared errors."""
        count = min(count, self.codebook.codebook_size)
        errors, codes = self.errors(inputs).topk(count, dim=1, largest=False)
        return codes, errors

    def continuations(self, inputs: Tensor, left: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Beam step by the `candidates` of each path, because vectors differ between paths."""
        return by_candidates(self, inputs, left, count)

    def __call__(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]` and the squared codebook error per input `[N]`."""
        codes = self.encode(inputs)
        vectors = self.lookup(codes)
        return vectors, codes, {"codebook": (vectors - inputs).square().mean(1)}
