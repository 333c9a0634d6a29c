"""Base class of codebooks of explicit vectors: nearest neighbors, usage, dead codes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from codec.codebooks.base import Codebook
from codec.codebooks.cache import CachedTable
from codec.codebooks.kmeans import kmeans
from codec.codebooks.nearest import best, best_few, half_norms, nearest, nearest_few, with_half_norms
from codec.layers.linear import linear


class VectorCodebook(Codebook):
    """Codebook for inputs `[N, D]`: the nearest of `codebook_size` vectors; subclasses learn the vectors.

    `usage` `[K]` is the moving average of each code's share of the frames, independent of the batch size. A
    code with a usage below `dead_threshold` times the mean is dead. `revive_from` is the source of its new
    vector: "frames" of the batch, or a noisy copy of the vector of an "overused" code. With `temperature`
    above 0, codes in training are drawn by softmax(-distance / temperature). Raises ValueError for options
    out of range.
    """

    tabular = learns = revives = True

    vectors: Tensor
    usage: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int = 1024,
        *,
        decay: float = 0.99,
        kmeans_iterations: int = 10,
        kmeans_frames: int = 16,
        dead_threshold: float = 0.1,
        revive_from: Literal["frames", "overused"] = "frames",
        temperature: float = 0.0,
    ):
        super().__init__()
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be 0 to 1 (1 never learns), got {decay}")
        if not 0 <= dead_threshold < 1:
            raise ValueError(f"dead_threshold must be at least 0 and below 1, got {dead_threshold}")
        if kmeans_iterations < 0 or kmeans_frames < 1 or not temperature >= 0:
            values = f"{kmeans_iterations}, {kmeans_frames} and {temperature}"
            raise ValueError(
                "kmeans_iterations and temperature must be at least 0 and kmeans_frames (per code) at "
                f"least 1, got {values}"
            )
        self.codebook_size = codebook_size
        self.decay = decay
        self.kmeans_iterations = kmeans_iterations
        self.pool_frames = kmeans_frames * codebook_size
        self.dead_threshold = dead_threshold
        self.revive_from = revive_from
        self.temperature = temperature
        self.searched: CachedTable[tuple[Tensor, Tensor]] = CachedTable()
        self.make_vectors(dim)
        self.register_buffer("usage", torch.zeros(codebook_size))
        self.register_buffer("initialised", torch.tensor(kmeans_iterations == 0))

    def make_vectors(self, dim: int) -> None:
        """Create `self.vectors` `[K, D]`, a buffer or a parameter."""
        raise NotImplementedError

    def table(self) -> Tensor:
        """All vectors `[K, D]`."""
        return self.vectors

    def sources(self) -> list[Tensor]:
        """Tensors from which `table` is computed."""
        return [self.vectors]

    def search_table(self) -> tuple[Tensor, Tensor]:
        """Vectors `[K, D]` and bias `[K]` for `search.best`."""
        with torch.no_grad():
            return self.searched(self.sources(), lambda: with_half_norms(self.table()))

    def encode(self, inputs: Tensor) -> Tensor:
        """Code `[N]` of the vector nearest to each of `[N, D]`."""
        return best(inputs, *self.search_table())

    def candidates(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Codes `[N, count]` of the nearest vectors, nearest first, and their squared errors."""
        return nearest_few(inputs, *self.search_table(), min(count, self.codebook_size))

    def continuations(self, inputs: Tensor, left: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Beam step: indices of paths and codes, `[N, count]` each, of the smallest errors, best first.

        `inputs` `[N, P, D]` are coded; `left` `[N, P]` is the squared residual of each of the P paths.
        """
        count = min(count, inputs.shape[1] * self.codebook_size)
        # |x - c|² + rest = left - 2 (x·c - |c|²/2): one search compares the codes of all paths.
        pairs, _ = best_few(inputs, *self.search_table(), count, -0.5 * left)
        return pairs // self.codebook_size, pairs % self.codebook_size

    def choose(self, inputs: Tensor, table: Tensor, generator: torch.Generator | None) -> Tensor:
        """Nearest codes `[N]`, or in training codes drawn at `temperature`."""
        if generator is None or not self.temperature:
            return nearest(inputs, table.detach())
        # Gumbel-max trick: the argmax of logits with Gumbel noise is a draw from their softmax.
        table = table.detach()
        logits = 2 / self.temperature * linear(inputs.detach(), table, half_norms(table))
        noise = torch.empty_like(logits).exponential_(generator=generator).log_()
        return (logits - noise).argmax(1)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, and losses, each `[N]` or a scalar; `used` `[N]` masks inputs."""
        table = self.table()
        codes = self.choose(inputs, table, generator)
        return functional.embedding(codes, table), codes, {}

    def initialise(self, pool: Tensor) -> None:
        """Set the vectors to the k-means centroids of a pool `[N, D]`."""
        self.vectors.copy_(kmeans(pool, self.codebook_size, self.kmeans_iterations))
        self.start_usage(pool)

    def start_usage(self, pool: Tensor) -> None:
        """Set the usage of each code to its share of a pool `[N, D]`."""
        counts = torch.bincount(self.encode(pool), minlength=self.codebook_size)
        self.usage.copy_(counts / counts.sum())
        self.initialised.fill_(True)

    def statistics(
        self, inputs: Tensor, codes: Tensor, so_far: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sums `[K + 1, D]` of each code's inputs and their counts `[K + 1]`, added to `so_far`.

        The last row is for masked inputs, those with code −1.
        """
        rows = self.codebook_size + 1
        sums, counts = so_far or (inputs.new_zeros(rows, inputs.shape[1]), inputs.new_zeros(rows))
        row = torch.where(codes >= 0, codes, self.codebook_size)
        return sums.index_add_(0, row, inputs), counts.index_add_(0, row, inputs.new_ones(len(row)))

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Learn from `statistics` summed over the processes; no-op unless all are finite."""
        sums, counts = sums[:-1], counts[:-1]
        self.learn(sums, counts, torch.isfinite(sums.sum()) & (counts.sum() > 0))

    def learn(self, sums: Tensor, counts: Tensor, known: Tensor) -> None:
        """Update the usage by statistics if `known`, a bool scalar on the device, which avoids a transfer."""
        usage = torch.lerp(counts / counts.sum().clamp(min=1), self.usage, self.decay)
        self.usage.copy_(torch.where(known, usage, self.usage))

    def dead(self) -> Tensor:
        """Mask `[K]` of dead codes."""
        return (self.usage < self.dead_threshold * self.usage.mean()) & (self.decay < 1)

    def replace(self, dead: Tensor, vectors: Tensor) -> None:
        """Give dead codes new vectors `[K, D]`, and the mean usage, so that they survive the next steps."""
        self.vectors.copy_(torch.where(dead[:, None], vectors, self.vectors))
        self.usage.copy_(torch.where(dead, self.usage.mean(), self.usage))

    def twins(self, seed: int) -> Tensor:
        """New vectors `[K, D]` for dead codes: noisy copies, the least used code of the most used one."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.vectors.shape, generator=generator).to(self.vectors, non_blocking=True)
        twins = torch.empty_like(self.vectors)
        order = self.usage.argsort(stable=True)
        twins[order] = self.vectors.detach()[order.flip(0)]
        return twins + 0.01 * self.vectors.std() * noise
