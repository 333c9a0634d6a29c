"""Summary of an evaluation: mean scores, three bitrates, codebook statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from codec.evaluation.records import FileScores, Means, Summary
from codec.evaluation.statistics import mean
from codec.evaluation.systems import System
from codec.metrics.base import Metric
from codec.metrics.registry import METRICS
from codec.metrics.signal import SCORES, codebook_statistics, count_codes


def summarize(system: System, records: Sequence[FileScores], metrics: Sequence[Metric]) -> Summary:
    """Mean scores at each point; nominal, entropy-coded and file bitrates; codebook statistics.

    The entropy-coded rate is the sum over stages of the entropy of the codes' frequencies in these files,
    the rate of an ideal coder with one fixed table per stage. It is underestimated from few frames. For a
    classical codec, nominal and entropy-coded rates are the payload's.
    """
    counts, sizes = count_all(system, records), system.codebook_sizes
    statistics = {name: values.tolist() for name, values in codebook_statistics(counts).items()}
    bits = [entropy * math.log2(size) for entropy, size in zip(statistics["entropy"], sizes, strict=True)]
    summary, seconds = system.describe(), sum(record.seconds for record in records)
    points: list[Means] = []
    for rows in zip(*(record.points for record in records), strict=True):
        depth = rows[0].num_quantizers
        payload = rate_of([row.bits for row in rows], seconds)
        nominal = system.bitrate(depth)
        scores = {m.name: mean(row.scores.get(m.name) for row in rows) for m in (*SCORES, *metrics)}
        rates = {
            "kbit/s": nominal / 1000 if nominal is not None else payload,
            "kbit/s_entropy": sum(bits[:depth]) * (summary.frame_rate or 0) / 1000 if depth else payload,
            "kbit/s_file": rate_of([row.file_bits for row in rows], seconds),
        }
        points.append({"num_quantizers": depth, **scores, **rates})
    usage, perplexity, entropy = ([round(v, 4) for v in values] for values in statistics.values())
    return replace(
        summary,
        files=len(records),
        seconds=seconds,
        frames=int(counts[0].sum()) if counts else None,
        codebook_sizes=list(sizes),
        codebook_usage=usage,
        codebook_perplexity=perplexity,
        codebook_entropy=entropy,
        rate_distortion=points,
        empty_cells=sum(len(record.reasons) for record in records),
        metrics={metric.name: metric.version for metric in metrics},
        lower_is_better=[metric.name for metric in metrics if metric.lower],
        own_metrics={metric.name: metric.stated() for metric in metrics if metric.name not in METRICS},
    )


def rate_of(bits: Sequence[int | None], seconds: float) -> float | None:
    """Bitrate in kbit/s of all files together; None if the bits of a file are missing."""
    numbers = [number for number in bits if number is not None]
    return sum(numbers) / seconds / 1000 if len(numbers) == len(bits) else None


def count_all(system: System, records: Sequence[FileScores]) -> list[Tensor]:
    """Number of occurrences of each code of each stage in all records."""
    counts: list[Tensor] = []
    for record in records:
        if record.codes:
            new = count_codes(torch.tensor(record.codes)[None], system.codebook_sizes)
            counts = [a + b for a, b in zip(counts, new, strict=True)] if counts else new
    return counts
