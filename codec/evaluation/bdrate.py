"""Bjøntegaard delta rate: relative difference in bitrate of two codecs at equal quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def bd_rate(
    curve: Sequence[tuple[float, float]], anchor: Sequence[tuple[float, float]], lower_is_better: bool = False
) -> float:
    """Mean difference of bitrate in % against the anchor, at equal quality; negative is better.

    Curves are `(kbit/s, quality)` points. Log rate is interpolated over quality by monotone piecewise cubics
    (Fritsch and Carlson 1980, harmonic slopes) and integrated over the common range of quality (VCEG-M33,
    with the interpolation of JCTVC-B055). ValueError if a curve has fewer than two points or does not rise
    with its rate, or if the curves have no quality in common.
    """
    tested, reference = (prepared(points, lower_is_better) for points in (curve, anchor))
    low, high = max(tested[0][0], reference[0][0]), min(tested[0][-1], reference[0][-1])
    if high <= low:
        raise ValueError(f"no quality in common: {span(curve)} and {span(anchor)}")
    difference = (integral(*tested, low, high) - integral(*reference, low, high)) / (high - low)
    return 100 * math.expm1(difference)


def span(points: Sequence[tuple[float, float]]) -> str:
    """Range of quality of a curve, as text."""
    scores = [score for _, score in points]
    return f"{min(scores):.3g} to {max(scores):.3g}"


def prepared(points: Sequence[tuple[float, float]], lower_is_better: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rising quality and log rate of a curve; ValueError unless both rise together."""
    ordered = sorted(points)
    if len(ordered) < 2:
        raise ValueError(f"a curve needs at least two bitrates, this one has {len(ordered)}")
    rates, scores = (np.asarray(column, dtype=float) for column in zip(*ordered, strict=True))
    quality = -scores if lower_is_better else scores
    if rates[0] <= 0 or (np.diff(rates) <= 0).any() or (np.diff(quality) <= 0).any():
        raise ValueError("quality does not rise with the bitrate at every point")
    return quality, np.log(rates)


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Derivatives at the points of a monotone cubic: weighted harmonic means, one-sided at the ends."""
    h = np.diff(x)
    secants = np.diff(y) / h
    if len(x) == 2:
        return np.full(2, secants[0])
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    inner = (w1 + w2) / (w1 / secants[:-1] + w2 / secants[1:])
    ends = []
    for h0, h1, d0, d1 in ((h[0], h[1], *secants[:2]), (h[-1], h[-2], secants[-1], secants[-2])):
        slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
        ends.append(min(max(slope, 0.0), 3 * d0))
    return np.array([ends[0], *inner, ends[1]])


def integral(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """Integral of the monotone cubic through `(x, y)` from `low` to `high`."""
    m, total = slopes(x, y), 0.0
    for left, right, y0, y1, m0, m1 in zip(x[:-1], x[1:], y[:-1], y[1:], m[:-1], m[1:], strict=True):
        begin, end = max(low, left), min(high, right)
        if end <= begin:
            continue
        h = right - left
        # Hermite's basis, integrated term by term.
        cubic = np.polynomial.Polynomial(
            [y0, h * m0, -3 * y0 + 3 * y1 - 2 * h * m0 - h * m1, 2 * y0 - 2 * y1 + h * m0 + h * m1]
        ).integ()
        total += h * float(cubic((end - left) / h) - cubic((begin - left) / h))
    return total
