"""Exhaustive search in a codebook: the one hot loop of vector quantization."""

from __future__ import annotations

import torch
from torch import Tensor

# Scores held at a time: tiles of some megabytes stay in the cache, and 2^18 codes need no more than 2^10.
TILE = 2**22
BLOCKS = 16
ONEDNN = "_linear_pointwise"


def half_norms(vectors: Tensor) -> Tensor:
    """`-|c|²/2` `[K]` of vectors `[K, D]`: the bias that turns inner products into Euclidean order."""
    return -0.5 * vectors.square().sum(1)


def nearest(points: Tensor, vectors: Tensor) -> Tensor:
    """Index `[N]` of the vector `[K, D]` nearest to each point `[N, D]`; the lower index wins a tie."""
    # argmin |x - c|² = argmax x·c - |c|²/2: the term |x|² is the same for all vectors.
    return best(points, vectors, half_norms(vectors))


def nearest_few(points: Tensor, vectors: Tensor, count: int) -> Tensor:
    """Indices `[N, count]` of the vectors nearest to each point `[N, D]`, nearest first."""
    return best_few(points, vectors, half_norms(vectors), count)


def best(points: Tensor, vectors: Tensor, bias: Tensor) -> Tensor:
    """Index `[N]` of the largest `x·c + bias` for points `[N, D]` and vectors `[K, D]`, in float32."""
    if torch.compiler.is_compiling():
        return torch.addmm(bias, points, vectors.T).argmax(1)
    tiles = points.split(max(1, TILE // len(vectors)))
    found = [first_maximum(scores(tile, vectors, bias)) for tile in tiles]
    return found[0] if len(found) == 1 else torch.cat(found)


def best_few(points: Tensor, vectors: Tensor, bias: Tensor, count: int) -> Tensor:
    """Indices `[N, count]` of the largest `x·c + bias`, largest first."""
    tiles = points.split(max(1, TILE // len(vectors)))
    return torch.cat([scores(tile, vectors, bias).topk(count, dim=1).indices for tile in tiles])


def scores(points: Tensor, vectors: Tensor, bias: Tensor) -> Tensor:
    """`x·c + bias` `[N, K]` without gradient."""
    points, vectors, bias = points.detach(), vectors.detach(), bias.detach()
    if points.device.type == "cpu" and points.dtype == torch.float32 and hasattr(torch.ops.mkldnn, ONEDNN):
        # oneDNN multiplies float32 up to twice as fast as the library behind torch.addmm, as precisely.
        return torch.ops.mkldnn._linear_pointwise(points, vectors, bias, "none", [], "")
    return torch.addmm(bias, points, vectors.T)


def first_maximum(scores: Tensor) -> Tensor:
    """`scores.argmax(1)` of `[N, K]`; on a CPU three times as fast, because only one block is searched."""
    rows, columns = scores.shape
    if scores.device.type != "cpu" or columns % BLOCKS or columns < 16 * BLOCKS:
        return scores.argmax(1)
    width = columns // BLOCKS
    block = scores.view(rows, BLOCKS, width).amax(2).argmax(1)
    inside = scores.view(rows * BLOCKS, width).index_select(0, torch.arange(rows) * BLOCKS + block)
    return block * width + inside.argmax(1)
