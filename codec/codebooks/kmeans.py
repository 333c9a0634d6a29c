"""Lloyd's algorithm for the initialization of codebooks."""

from __future__ import annotations

import torch
from torch import Tensor

from codec.codebooks.nearest import nearest


def kmeans(points: Tensor, clusters: int, iterations: int) -> Tensor:
    """Centroids `[clusters, D]` of points `[N, D]`; a random point replaces an empty cluster.

    Deterministic for given points. With fewer points than clusters, points repeat with a little noise.
    """
    generator = torch.Generator().manual_seed(clusters)
    order = torch.randperm(len(points), generator=generator).repeat(-(-clusters // len(points)))
    centroids = points[order[:clusters].to(points.device)]
    if len(points) < clusters:
        noise = torch.randn(centroids.shape, generator=generator).to(points)
        centroids = centroids + 1e-3 * points.std() * noise
    for _ in range(iterations):
        codes = nearest(points, centroids)
        counts = points.new_zeros(clusters).index_add_(0, codes, points.new_ones(len(points)))
        sums = torch.zeros_like(centroids).index_add_(0, codes, points)
        replacements = points[torch.randint(len(points), (clusters,), generator=generator).to(points.device)]
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], replacements)
    return centroids
