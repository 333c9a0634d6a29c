"""A codebook learned by moving averages: VQ-VAE (arXiv 1711.00937, appendix A.1) as SoundStream uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def nearest(points: Tensor, vectors: Tensor) -> Tensor:
    """Index `[N]` of the vector `[K, D]` nearest to each point `[N, D]`; the lower index wins a tie."""
    # argmin |x - c|² = argmax x·c - |c|²/2: the term |x|² is the same for all vectors.
    return torch.addmm(-0.5 * vectors.square().sum(1), points, vectors.T).argmax(1)


def nearest_of_many(points: Tensor, vectors: Tensor) -> Tensor:
    """`nearest` of a pool too large for all its scores `[N, K]` at once."""
    portion = max(1, 2**26 // len(vectors))
    return torch.cat([nearest(part, vectors) for part in points.split(portion)])


class EMACodebook(nn.Module):
    """Nearest of `codebook_size` vectors in Euclidean distance; vectors follow their inputs' average.

    Buffers: `vectors` `[K, D]` and `usage` `[K]`, the moving average of each code's share of the frames, so
    that nothing depends on the batch size. A code is dead when its usage is below `dead_threshold` times
    the average code's.
    """

    # The gradient of the output is copied to the input past the whole residual cascade, once.
    straight_through = True

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
        dead_threshold: float = 0.1,
    ):
        super().__init__()
        if codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        if not 0 <= dead_threshold < 1:
            raise ValueError(f"dead_threshold must be at least 0 and below 1, got {dead_threshold}")
        self.codebook_size = codebook_size
        self.decay = decay
        self.kmeans_iterations = kmeans_iterations
        self.dead_threshold = dead_threshold
        self.register_buffer("vectors", torch.randn(codebook_size, dim) / dim**0.5)
        self.register_buffer("usage", torch.zeros(codebook_size))
        self.register_buffer("initialised", torch.tensor(False))

    def encode(self, inputs: Tensor) -> Tensor:
        """Code `[N]` of the vector nearest to each of `[N, D]`."""
        return nearest(inputs, self.vectors)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        return functional.embedding(codes, self.vectors)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]` and the squared commitment error per input `[N]`."""
        codes = self.encode(inputs.detach())
        vectors = self.lookup(codes)
        return vectors, codes, {"commitment": (inputs - vectors).square().mean(1)}

    def initialise(self, pool: Tensor) -> None:
        """Set the vectors to the k-means centroids of a pool `[N, D]`."""
        self.vectors.copy_(kmeans(pool, self.codebook_size, self.kmeans_iterations))
        counts = torch.bincount(nearest_of_many(pool, self.vectors), minlength=self.codebook_size)
        self.usage.copy_(counts / counts.sum())
        self.initialised.fill_(True)

    def statistics(self, inputs: Tensor, codes: Tensor) -> Tensor:
        """Per code the sum of its inputs and their number, `[K, D + 1]`; codes of −1 do not count."""
        counted = (codes >= 0).to(inputs.dtype)
        rows = torch.cat([inputs * counted[:, None], counted[:, None]], dim=1)
        total = inputs.new_zeros(self.codebook_size, rows.shape[1])
        return total.index_add_(0, codes.clamp(min=0), rows)

    def update(self, statistics: Tensor) -> None:
        """Move vectors and usage by `statistics` summed over the processes; no-op unless all is finite."""
        sums, counts = statistics[:, :-1], statistics[:, -1]
        total = counts.sum()
        valid = torch.isfinite(statistics).all() & (total > 0)
        shares = counts / total.clamp(min=1)
        usage = self.decay * self.usage + (1 - self.decay) * shares
        # Online k-means, equal to the quotient of the two moving averages (sums over usage): it leaves a
        # code without inputs exactly where it is, however small its usage has become.
        pull = (sums / total.clamp(min=1) - shares[:, None] * self.vectors) * (1 - self.decay)
        vectors = self.vectors + pull / usage.clamp(min=torch.finfo(usage.dtype).tiny)[:, None]
        self.usage.copy_(torch.where(valid, usage, self.usage))
        self.vectors.copy_(torch.where(valid, vectors, self.vectors))

    def dead(self) -> Tensor:
        """Which codes `[K]` have fallen out of use."""
        return self.usage < self.dead_threshold * self.usage.mean()

    def replace(self, dead: Tensor, vectors: Tensor) -> None:
        """Give dead codes new vectors `[K, D]` and the usage of an average code, so that they survive."""
        self.vectors.copy_(torch.where(dead[:, None], vectors, self.vectors))
        self.usage.copy_(torch.where(dead, self.usage.mean(), self.usage))


def kmeans(points: Tensor, clusters: int, iterations: int) -> Tensor:
    """Centroids `[clusters, D]` of points `[N, D]` by Lloyd's algorithm; an empty cluster takes a new point.

    Deterministic for given points. With fewer points than clusters, points repeat with a little noise.
    """
    generator = torch.Generator().manual_seed(clusters)
    order = torch.randperm(len(points), generator=generator).repeat(-(-clusters // len(points)))
    centroids = points[order[:clusters].to(points.device)]
    if len(points) < clusters:
        noise = torch.randn(centroids.shape, generator=generator).to(points)
        centroids = centroids + 1e-3 * points.std() * noise
    for _ in range(iterations):
        codes = nearest_of_many(points, centroids)
        counts = points.new_zeros(clusters).index_add_(0, codes, points.new_ones(len(points)))
        sums = torch.zeros_like(centroids).index_add_(0, codes, points)
        fresh = points[torch.randint(len(points), (clusters,), generator=generator).to(points.device)]
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], fresh)
    return centroids
