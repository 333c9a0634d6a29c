"""Codebooks of explicit vectors: learned by moving averages (SoundStream), by gradients, or on the sphere."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.layers.linear import linear
from codec.quantizers.derived import Derived
from codec.quantizers.kmeans import kmeans
from codec.quantizers.search import best, best_few, half_norms, nearest, nearest_few, with_half_norms


class Codebook(nn.Module):
    """Nearest of `codebook_size` vectors in Euclidean distance; subclasses learn the vectors.

    `usage` `[K]` is the moving average of each code's share of the frames, so that nothing depends on the
    batch size. A code is dead when its usage is below `dead_threshold` times the average code's;
    `revive_from` says what it becomes: one of the batch's frames, or the twin of an overused code.
    `temperature` above 0 draws training's codes by softmax(-distance / temperature) instead of the nearest.
    """

    # The gradient of the output is copied to the input past the whole residual cascade, once.
    straight_through_cascade = True

    vectors: Tensor
    usage: Tensor
    initialised: Tensor

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
            got = f"{kmeans_iterations}, {kmeans_frames} and {temperature}"
            raise ValueError(
                "kmeans_iterations and temperature must be at least 0 and kmeans_frames (per code) at "
                f"least 1, got {got}"
            )
        self.codebook_size = codebook_size
        self.decay = decay
        self.kmeans_iterations = kmeans_iterations
        self.kmeans_frames = kmeans_frames
        self.dead_threshold = dead_threshold
        self.revive_from = revive_from
        self.temperature = temperature
        self.searched: Derived[tuple[Tensor, Tensor]] = Derived()
        self.make_vectors(dim)
        self.register_buffer("usage", torch.zeros(codebook_size))
        self.register_buffer("initialised", torch.tensor(kmeans_iterations == 0))

    def make_vectors(self, dim: int) -> None:
        """Make `self.vectors` `[K, D]`, a buffer or a parameter."""
        raise NotImplementedError

    @property
    def pool_frames(self) -> int:
        """Latents that `initialise` wants."""
        return self.kmeans_frames * self.codebook_size

    def table(self) -> Tensor:
        """All vectors `[K, D]`."""
        return self.vectors

    def sources(self) -> list[Tensor]:
        """What `table` is computed from."""
        return [self.vectors]

    def search_table(self) -> tuple[Tensor, Tensor]:
        """Vectors `[K, D]` and bias `[K]` with which `search.best` finds the nearest."""
        with torch.no_grad():
            return self.searched(self.sources(), lambda: with_half_norms(self.table()))

    def encode(self, inputs: Tensor) -> Tensor:
        """Code `[N]` of the vector nearest to each of `[N, D]`."""
        return best(inputs, *self.search_table())

    def candidates(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Codes `[N, count]` of the nearest vectors, nearest first, and their squared errors."""
        return nearest_few(inputs, *self.search_table(), min(count, self.codebook_size))

    def continuations(self, inputs: Tensor, left: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Which of P paths and which code then, `[N, count]` each, leave least, least first.

        `inputs` `[N, P, D]` are coded; `left` `[N, P]` is what of a path there is to code, squared.
        """
        count = min(count, inputs.shape[1] * self.codebook_size)
        # |x - c|² + rest = left - 2 (x·c - |c|²/2): paths are compared with each other in one search.
        pairs, _ = best_few(inputs, *self.search_table(), count, -0.5 * left)
        return pairs // self.codebook_size, pairs % self.codebook_size

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        return functional.embedding(codes, self.table())

    def choose(self, inputs: Tensor, table: Tensor, generator: torch.Generator | None) -> Tensor:
        """The nearest code `[N]`, or in training one drawn at `temperature`."""
        if generator is None or not self.temperature:
            return nearest(inputs, table.detach())
        # Gumbel's trick: the largest of logits with such noise is a draw from their softmax.
        table = table.detach()
        logits = 2 / self.temperature * linear(inputs.detach(), table, half_norms(table))
        noise = torch.empty_like(logits).exponential_(generator=generator).log_()
        return (logits - noise).argmax(1)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, and losses per input `[N]` or of all; `used` `[N]` inputs count."""
        table = self.table()
        codes = self.choose(inputs, table, generator)
        return functional.embedding(codes, table), codes, {}

    def initialise(self, pool: Tensor) -> None:
        """Set the vectors to the k-means centroids of a pool `[N, D]`."""
        self.vectors.copy_(kmeans(pool, self.codebook_size, self.kmeans_iterations))
        self.start_usage(pool)

    def start_usage(self, pool: Tensor) -> None:
        """Take each code's share of a pool `[N, D]` as its usage so far."""
        counts = torch.bincount(self.encode(pool), minlength=self.codebook_size)
        self.usage.copy_(counts / counts.sum())
        self.initialised.fill_(True)

    def statistics(
        self, inputs: Tensor, codes: Tensor, so_far: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sums `[K + 1, D]` of each code's inputs and their numbers `[K + 1]`, added to those `so_far`.

        The last row takes the inputs that do not count, those with code −1.
        """
        rows = self.codebook_size + 1
        sums, counts = so_far or (inputs.new_zeros(rows, inputs.shape[1]), inputs.new_zeros(rows))
        row = torch.where(codes >= 0, codes, self.codebook_size)
        return sums.index_add_(0, row, inputs), counts.index_add_(0, row, inputs.new_ones(len(row)))

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Learn from `statistics` summed over the processes; no-op unless all is finite."""
        sums, counts = sums[:-1], counts[:-1]
        self.learn(sums, counts, torch.isfinite(sums.sum()) & (counts.sum() > 0))

    def learn(self, sums: Tensor, counts: Tensor, known: Tensor) -> None:
        """Move the usage by statistics, if they are `known`: a scalar that stays on its device."""
        usage = torch.lerp(counts / counts.sum().clamp(min=1), self.usage, self.decay)
        self.usage.copy_(torch.where(known, usage, self.usage))

    def dead(self) -> Tensor:
        """Which codes `[K]` have fallen out of use."""
        return (self.usage < self.dead_threshold * self.usage.mean()) & (self.decay < 1)

    def replace(self, dead: Tensor, vectors: Tensor) -> None:
        """Give dead codes new vectors `[K, D]` and the usage of an average code, so that they survive."""
        self.vectors.copy_(torch.where(dead[:, None], vectors, self.vectors))
        self.usage.copy_(torch.where(dead, self.usage.mean(), self.usage))

    def twins(self, seed: int) -> Tensor:
        """Vectors `[K, D]` for dead codes: the least used gets the most used one's with a little noise."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.vectors.shape, generator=generator).to(self.vectors)
        twins = torch.empty_like(self.vectors)
        order = self.usage.argsort(stable=True)
        twins[order] = self.vectors.detach()[order.flip(0)]
        return twins + 0.01 * self.vectors.std() * noise


class EMACodebook(Codebook):
    """Vectors follow the moving average of their inputs (VQ-VAE, arXiv 1711.00937, appendix A.1)."""

    def make_vectors(self, dim: int) -> None:
        """Random vectors of length 1 on average."""
        self.register_buffer("vectors", torch.randn(self.codebook_size, dim) / dim**0.5)

    def learn(self, sums: Tensor, counts: Tensor, known: Tensor) -> None:
        """Move vectors and usage by statistics, if they are `known`."""
        super().learn(sums, counts, known)
        # Online k-means, equal to the quotient of the two moving averages (sums over usage): it leaves a
        # code without inputs exactly where it is, however small its usage has become.
        usage = self.usage.clamp(min=torch.finfo(sums.dtype).tiny)
        weight = (1 - self.decay) / counts.sum().clamp(min=1) / usage
        weight = torch.where(known, weight, 0.0)
        self.vectors.mul_((1 - counts * weight)[:, None])
        self.vectors.addcmul_(torch.where(known, sums, 0.0), weight[:, None])


class CosineCodebook(EMACodebook):
    """Unit vectors, found by the largest cosine and moved as the mean direction of their inputs.

    The l2-normalised codes of ViT-VQGAN (arXiv 2110.04627, §3.2), learned by spherical k-means.
    """

    def table(self) -> Tensor:
        """All vectors `[K, D]`, of length 1."""
        return functional.normalize(self.vectors, dim=1)

    def choose(self, inputs: Tensor, table: Tensor, generator: torch.Generator | None) -> Tensor:
        """The code `[N]` of the largest cosine, or one drawn by the distance of the directions."""
        if generator is not None and self.temperature:
            inputs = functional.normalize(inputs, dim=1)
        return super().choose(inputs, table, generator)

    def initialise(self, pool: Tensor) -> None:
        """Set the vectors to the centroids of the pool's directions."""
        super().initialise(functional.normalize(pool, dim=1))

    def statistics(
        self, inputs: Tensor, codes: Tensor, so_far: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sums `[K + 1, D]` of the inputs' directions and their numbers `[K + 1]`."""
        return super().statistics(functional.normalize(inputs, dim=1), codes, so_far)


class GradientCodebook(Codebook):
    """Vectors are drawn to their inputs by the codebook loss (VQ-VAE, arXiv 1711.00937, eq. 3)."""

    def make_vectors(self, dim: int) -> None:
        """Random vectors of length 1 on average, to be trained."""
        self.vectors = nn.Parameter(torch.randn(self.codebook_size, dim) / dim**0.5)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]` and the squared codebook error per input `[N]`."""
        vectors, codes, _ = super().forward(inputs, used, generator)
        return vectors, codes, {"codebook": (vectors - inputs).square().mean(1)}


class SimVQCodebook(GradientCodebook):
    """Frozen random vectors under one learned linear map: all codes move together (SimVQ, arXiv 2411.02038).

    No code has to be revived: the map moves those that nobody uses, too.
    """

    def __init__(self, dim: int, codebook_size: int = 1024):
        super().__init__(dim, codebook_size, dead_threshold=0.0)
        self.kmeans_frames = 1

    def make_vectors(self, dim: int) -> None:
        """Frozen vectors, N(0, 1) per entry, and the map: a step of it moves long vectors far."""
        self.register_buffer("vectors", torch.randn(self.codebook_size, dim))
        self.map = nn.Linear(dim, dim, bias=False)

    def table(self) -> Tensor:
        """All vectors `[K, D]`, mapped."""
        return self.map(self.vectors)

    def sources(self) -> list[Tensor]:
        """Frozen vectors and the map."""
        return [self.vectors, self.map.weight]

    def initialise(self, pool: Tensor) -> None:
        """Start with the spread of the pool: a codebook of another scale would have one code for all."""
        scale = pool.std() / self.table().std()
        self.map.weight.mul_(scale)
        self.initialised.fill_(True)
