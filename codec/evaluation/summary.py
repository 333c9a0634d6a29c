"""Summary of an evaluation: mean scores, three bitrates, codebook statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, get_type_hints

import torch
from torch import Tensor

from codec.config import fits
from codec.evaluation.cache import FileScores
from codec.evaluation.statistics import mean
from codec.evaluation.systems import System
from codec.metrics.base import Metric
from codec.metrics.registry import METRICS
from codec.metrics.signal import SCORES, codebook_statistics, count_codes

Means = dict[str, float | None]  # mean scores and bitrates in kbit/s at a point, and its num_quantizers


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of an evaluation, with the names and the order of `summary.json`.

    `frames` are None without codes; `codebook_*` are lists over stages; of `metrics` the versions are listed.
    Of the system's `Description` and the `CodingTime`, fields without a value are not in the file.
    """

    files: int
    seconds: float = 0.0
    frames: int | None = None
    codebook_sizes: list[int] = field(default_factory=list)
    codebook_usage: list[float] = field(default_factory=list)
    codebook_perplexity: list[float] = field(default_factory=list)
    codebook_entropy: list[float] = field(default_factory=list)
    rate_distortion: list[Means]
    empty_cells: int = 0
    frame_rate: float | None = None
    tokens_per_second: float | None = None
    parameters: dict[str, int] | None = None
    family: str | None = None
    baseline: str | None = None
    ffmpeg: str | None = None
    pycodec2: str | None = None
    metrics: dict[str, str] = field(default_factory=dict)
    lower_is_better: list[str] = field(default_factory=list)
    own_metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    encode_ms: float | None = None
    decode_ms: float | None = None
    timed_on: str | None = None

    @property
    def means(self) -> Means:
        """Mean scores and bitrates of the last point, which has all quantizers."""
        return self.rate_distortion[-1]

    def to_json(self) -> dict[str, Any]:
        """Entries of `summary.json`, which has the means of the last point at its top, too."""
        means = {name: value for name, value in self.means.items() if name != "num_quantizers"}
        entries = {name: value for name, value in vars(self).items() if value is not None or name == "frames"}
        return {"files": self.files, "seconds": self.seconds} | means | entries

    @classmethod
    def from_json(cls, entries: Mapping[str, Any], scores: Iterable[str]) -> Summary:
        """Read `summary.json`; ValueError if an entry or a score is missing, or of another type."""
        hints = get_type_hints(cls)
        names = hints.keys() & entries.keys()
        invalid = {"files", "rate_distortion", *scores} - entries.keys()
        invalid |= {name for name in names if not fits(entries[name], hints[name])}
        if invalid:
            raise ValueError(f"summary.json lacks {', '.join(sorted(invalid))}: evaluate the run again")
        return cls(**{name: entries[name] for name in names})


def summarize(system: System, records: Sequence[FileScores], metrics: Sequence[Metric]) -> Summary:
    """Mean scores at each point; nominal, entropy-coded and file bitrates; codebook statistics.

    The entropy-coded rate is the sum over stages of the entropy of the codes' frequencies in these files,
    the rate of an ideal coder with one fixed table per stage. It is underestimated from few frames. For a
    classical codec, nominal and entropy-coded rates are the payload's.
    """
    counts, sizes = count_all(system, records), system.codebook_sizes
    statistics = {name: values.tolist() for name, values in codebook_statistics(counts).items()}
    bits = [entropy * math.log2(size) for entropy, size in zip(statistics["entropy"], sizes, strict=True)]
    description, seconds = system.describe(), sum(record.seconds for record in records)
    points: list[Means] = []
    for rows in zip(*(record.points for record in records), strict=True):
        depth = rows[0].num_quantizers
        payload = rate_of([row.bits for row in rows], seconds)
        nominal = system.bitrate(depth)
        scores = {m.name: mean(row.scores.get(m.name) for row in rows) for m in (*SCORES, *metrics)}
        rates = {
            "kbit/s": nominal / 1000 if nominal is not None else payload,
            "kbit/s_entropy": sum(bits[:depth]) * (description.frame_rate or 0) / 1000 if depth else payload,
            "kbit/s_file": rate_of([row.file_bits for row in rows], seconds),
        }
        points.append({"num_quantizers": depth, **scores, **rates})
    usage, perplexity, entropy = ([round(v, 4) for v in values] for values in statistics.values())
    return Summary(
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
        **vars(description),
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


def domain_of(name: str) -> str:
    """Domain of a file: the first folder of its name, or `.` without a folder."""
    parts = PurePath(name).parts
    return parts[0] if len(parts) > 1 else "."
