"""Summary of an evaluation: mean scores, three bitrates, codebook statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec.evaluation.systems import System
from codec.metrics.signal import codebook_statistics, count_codes

Record = dict[str, Any]


def summarize(system: System, records: Sequence[Record], metrics: Sequence[str]) -> dict[str, Any]:
    """Mean scores at each point; nominal, entropy-coded and file bitrates; codebook statistics.

    The entropy-coded rate is the sum over stages of the entropy of the codes' frequencies in these files,
    the rate of an ideal coder with one fixed table per stage. It is underestimated from few frames. For a
    classical codec, nominal and entropy-coded rates are the payload's.
    """
    counts = count_all(system, records)
    statistics = codebook_statistics(counts)
    sizes = system.codebook_sizes
    bits = [float(e) * math.log2(n) for e, n in zip(statistics["entropy"], sizes, strict=True)]
    description = system.describe()
    points = []
    for place, depth in enumerate(point["num_quantizers"] for point in records[0]["points"]):
        rows = [record["points"][place] for record in records]
        payload, file_rate = (rate_of(records, place, key) for key in ("bits", "file_bits"))
        nominal = system.bitrate(depth)
        rates = {
            "kbit/s": nominal / 1000 if nominal is not None else payload,
            "kbit/s_entropy": sum(bits[:depth]) * description["frame_rate"] / 1000 if depth else payload,
            "kbit/s_file": file_rate,
        }
        points.append({"num_quantizers": depth, **{name: mean(rows, name) for name in metrics}, **rates})
    return {
        "files": len(records),
        "seconds": sum(record["seconds"] for record in records),
        **{name: value for name, value in points[-1].items() if name != "num_quantizers"},
        "frames": int(counts[0].sum()) if counts else None,
        "codebook_sizes": list(sizes),
        **{f"codebook_{name}": [round(v, 4) for v in values.tolist()] for name, values in statistics.items()},
        "rate_distortion": points,
        "empty_cells": sum(len(record["reasons"]) for record in records),
        **description,
    }


def mean(rows: Sequence[Record], name: str) -> float | None:
    """Mean of the values of a column that are not None; None without any."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else None


def rate_of(records: Sequence[Record], place: int, key: str) -> float | None:
    """Bitrate in kbit/s of all files together at a point; None if it is missing for a file."""
    bits = [record["points"][place][key] for record in records]
    if None in bits:
        return None
    return sum(bits) / sum(record["seconds"] for record in records) / 1000


def count_all(system: System, records: Sequence[Record]) -> list[Tensor]:
    """Number of occurrences of each code of each stage in all records."""
    counts: list[Tensor] = []
    for record in records:
        if record["codes"]:
            new = count_codes(torch.tensor(record["codes"])[None], system.codebook_sizes)
            counts = [a + b for a, b in zip(counts, new, strict=True)] if counts else new
    return counts


def domain_of(name: str) -> str:
    """Domain of a file: the first folder of its name, or `.` without a folder."""
    parts = PurePath(name).parts
    return parts[0] if len(parts) > 1 else "."
