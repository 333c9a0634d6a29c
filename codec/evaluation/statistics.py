"""Confidence intervals and paired tests over files and seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

RESAMPLES = 4000

SIGNIFICANT = 0.05  # upper bound of p


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of 95 % of a mean over files (percentiles of resampled means)."""
    values = np.asarray(scores)
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def paired_p_value(one: Sequence[float], other: Sequence[float], seed: int = 0) -> float:
    """Two-sided sign-flip permutation test that the mean difference of paired scores is 0.

    The test is exact for few files, and uses `RESAMPLES` random flips for more.
    """
    differences = np.asarray(one) - np.asarray(other)
    files = len(differences)
    exact = 2**files <= RESAMPLES
    if exact:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=files)))
    else:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), (RESAMPLES, files))
    flipped = np.abs((signs * differences).mean(axis=1))
    as_large = int((flipped >= abs(differences.mean()) - 1e-12).sum())
    return as_large / len(signs) if exact else (1 + as_large) / (1 + len(signs))


def wilcoxon_p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (Wilcoxon 1945), exact, with mean ranks for ties.

    Pairs without a difference are left out.
    """
    differences = np.subtract(one, other)
    differences = differences[differences != 0]
    _, places, counts = np.unique(np.abs(differences), return_inverse=True, return_counts=True)
    doubled = (2 * counts.cumsum() - counts + 1)[places]  # twice the ranks, to be integers
    shares = np.ones(1)  # probability of each sum of the ranks of positive differences
    for rank in doubled:
        shares = (np.pad(shares, (0, rank)) + np.pad(shares, (rank, 0))) / 2
    total = doubled[differences > 0].sum()
    return min(1.0, 2 * float(min(shares[: total + 1].sum(), shares[total:].sum())))


def guessing_p_value(correct: int, answers: int) -> float:
    """One-sided binomial p: probability of at least `correct` of the answers by guessing one of two."""
    return sum(math.comb(answers, number) for number in range(correct, answers + 1)) / 2**answers


def least_p(files: int, comparisons: int) -> float:
    """Smallest possible p of the paired test over `files` files, Holm-corrected for the comparisons."""
    return min(1.0, comparisons * max(2.0 ** (1 - files), 1 / (1 + RESAMPLES)))


def smallest_p(files: int, comparisons: int) -> str:
    """Sentence on the smallest possible p, with advice if it is not significant."""
    bound = least_p(files, comparisons)
    plural = "" if comparisons == 1 else "s"
    sentence = f"With {files} files and {comparisons} comparison{plural}, no p can be below {bound:.2g}"
    if bound < SIGNIFICANT:
        return f"{sentence}."
    enough = next((n for n in range(files, 30) if least_p(n, comparisons) < SIGNIFICANT), None)
    advice = f"evaluate {enough} files or more" if enough else "compare fewer codecs or scores"
    return f"{sentence}, so no difference can be significant: {advice}."


def pooled_p_value(one: Sequence[float], other: Sequence[float], samples: Sequence[Sequence[float]]) -> float:
    """Two-sided p of the t-test that two means are equal, with the variance within all `samples` pooled.

    Pooling gives a better estimate of the variance over seeds than the two or three seeds of one variant. NaN
    if no sample has two values.
    """
    groups = [np.asarray(sample) for sample in samples if len(sample) > 1]
    freedom = sum(len(sample) - 1 for sample in groups)
    if not freedom:
        return math.nan
    variance = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in groups) / freedom
    difference = abs(float(np.mean(one) - np.mean(other)))
    if variance == 0:
        return 0.0 if difference else 1.0
    t = difference / math.sqrt(variance * (1 / len(one) + 1 / len(other)))
    # For t = sqrt(freedom) * tan(angle), Student's density is a power of the cosine.
    start = math.atan(t / math.sqrt(freedom))
    tail, half = (
        np.trapezoid(np.cos(angles := np.linspace(low, math.pi / 2, 20_001)) ** (freedom - 1), angles)
        for low in (start, 0.0)
    )
    return float(tail / half)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p values for multiple comparisons by Holm's method."""
    corrected, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = highest
    return corrected
