"""Exhaustive nearest-neighbor search in a codebook, the hot loop of vector quantization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codec.layers.linear import linear

# Scores in memory: tiles of some megabytes stay in the cache, and 2^18 codes need no more than 2^10.
TILE = 2**21


def half_norms(vectors: Tensor) -> Tensor:
    """Bias `-|c|²/2` `[K]` of vectors `[K, D]`: with it inner products have the order of distances."""
    return -0.5 * vectors.square().sum(1)


def with_half_norms(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors `[K, D]` and their `half_norms`, the arguments of `best` for a nearest-neighbor search."""
    return vectors, half_norms(vectors)


def nearest(points: Tensor, vectors: Tensor) -> Tensor:
    """Index `[N]` of the vector `[K, D]` nearest to each point `[N, D]`; the lower index wins a tie."""
    # argmin |x - c|² = argmax x·c - |c|²/2, because the term |x|² is the same for all vectors.
    return best(points, vectors, half_norms(vectors))


def nearest_few(points: Tensor, vectors: Tensor, bias: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices `[N, count]` of the vectors nearest to each point `[N, D]`, nearest first, and |x - c|²."""
    indices, values = best_few(points[:, None], vectors, bias, count)
    return indices, points.square().sum(1, keepdim=True) - 2 * values


def best(points: Tensor, vectors: Tensor, bias: Tensor) -> Tensor:
    """Index `[N]` of the largest `x·c + bias` for points `[N, D]` and vectors `[K, D]`, in float32."""
    points, vectors, bias = points.detach(), vectors.detach(), bias.detach()
    if torch.compiler.is_compiling():
        return torch.addmm(bias, points, vectors.T).argmax(1)
    tiles = evenly(points, max(1, TILE // len(vectors)))
    indices = [first_maximum(linear(tile, vectors, bias)) for tile in tiles]
    return indices[0] if len(indices) == 1 else torch.cat(indices)


def best_few(
    points: Tensor, vectors: Tensor, bias: Tensor, count: int, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Largest `x·c + bias + offset` over P points per row `[N, P, D]` and K vectors, largest first.

    Returns indices `[N, count]` of the P * K pairs, point by point, and values; `offsets` are `[N, P]`.
    """
    points, vectors, bias = points.detach(), vectors.detach(), bias.detach()
    offsets = points.new_zeros(points.shape[:2]) if offsets is None else offsets
    tile_rows = max(1, TILE // (points.shape[1] * len(vectors)))
    results = [
        largest(linear(tile.flatten(0, 1), vectors, bias).view(*tile.shape[:2], -1), count, offset)
        for tile, offset in zip(evenly(points, tile_rows), evenly(offsets, tile_rows), strict=True)
    ]
    return torch.cat([indices for indices, _ in results]), torch.cat([values for _, values in results])


def evenly(rows: Tensor, most: int) -> Sequence[Tensor]:
    """Split rows `[N, ...]` into the smallest number of nearly equal pieces of at most `most` rows."""
    return rows.split(-(-len(rows) // -(-len(rows) // most)))


def blocks_of(scores: Tensor) -> int:
    """Number of blocks for a two-level search for maxima, up to three times faster on a CPU; 1 for none."""
    count = 16 if scores.shape[1] >= 512 else 8  # narrower blocks than 32 are slow
    return count if scores.device.type == "cpu" and scores.shape[1] in range(256, 2**62, count) else 1


def first_maximum(scores: Tensor) -> Tensor:
    """Compute `scores.argmax(1)` of `[N, K]`."""
    if (blocks := blocks_of(scores)) == 1:
        return scores.argmax(1)
    rows, width = len(scores), scores.shape[1] // blocks
    block = scores.view(rows, blocks, width).amax(2).argmax(1)
    inside = scores.view(rows * blocks, width).index_select(0, torch.arange(0, rows * blocks, blocks) + block)
    return block * width + inside.argmax(1)


def largest(scores: Tensor, count: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and values `[N, count]` of the largest of `scores + offsets`, in order; changes `scores`.

    `scores` are `[N, P, K]`, `offsets` `[N, P]`; an index counts through P * K.
    """
    number = blocks_of(scores[0])
    if number == 1 or count > 8:  # sorting is faster from here on
        values, indices = scores.add_(offsets[:, :, None]).flatten(1).topk(count, dim=1)
        return indices, values
    rows, width, number = len(scores), scores.shape[2] // number, scores.shape[1] * number
    blocks = scores.view(rows * number, width)
    offsets = offsets.repeat_interleave(number // scores.shape[1], 1)
    maxima = scores.view(rows, number, width).amax(2) + offsets
    indices, values = [], []
    # A maximum is read from the maxima of blocks; each round changes one block, not all P * K scores.
    for _ in range(count):
        value, block = maxima.max(1, keepdim=True)
        row = torch.arange(0, rows * number, number) + block[:, 0]
        inside = blocks.index_select(0, row)
        position = inside.argmax(1, keepdim=True)
        indices.append(block * width + position)
        values.append(value)
        # Without the maximum, its block is represented by the next largest score.
        blocks.index_copy_(0, row, inside.scatter_(1, position, -torch.inf))
        maxima.scatter_(1, block, inside.amax(1, keepdim=True) + offsets.gather(1, block))
    return torch.cat(indices, 1), torch.cat(values, 1)
