"""Bandwidths of EnCodec, which stand for numbers of codebooks."""

from __future__ import annotations

import math
from collections.abc import Sequence


def bandwidths(depths: Sequence[int], codebook_size: int, frame_rate: int) -> list[float]:
    """Bandwidths in kbit/s that select each of `depths` codebooks in `transformers`.

    `transformers` divides and rounds down, so that the exact bandwidth of n codebooks may give n - 1: the
    result is the next float that gives n. `frame_rate` is rounded up to whole Hz, as in `transformers`.
    """
    rates = []
    for depth in depths:
        bandwidth = depth * math.log2(codebook_size) * frame_rate / 1000
        while depth_of(bandwidth, codebook_size, frame_rate) < depth:
            bandwidth = math.nextafter(bandwidth, math.inf)
        rates.append(bandwidth)
    return rates


def depth_of(bandwidth: float, codebook_size: int, frame_rate: int) -> int:
    """Number of codebooks for a bandwidth in kbit/s: the smaller of the two formulas of `transformers`."""
    bits = math.log2(codebook_size)
    depth_of_release = int(1000 * bandwidth // (frame_rate * math.ceil(bits)))
    return min(depth_of_release, math.floor(bandwidth * 1000 / (bits * frame_rate)))
