"""One evaluation in numbers: means of scores, three bitrates, what the codes carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec.evaluation.systems import System
from codec.metrics import codebook_statistics, count_codes

Record = dict[str, Any]


def summarise(system: System, records: Sequence[Record], metrics: Sequence[str]) -> dict[str, Any]:
    """Means over files at every depth; nominal, entropy-coded and file rates; usage of the codebooks.

    The entropy-coded rate is the sum over stages of the entropy of how often each code occurs in these
    files: what an ideal coder with one fixed table a stage needs. From few frames it is too low. What a
    classical codec spends is entropy-coded already: its payload is all three but the file's.
    """
    counts = count_all(system, records)
    statistics = codebook_statistics(counts)
    sizes = system.codebook_sizes
    bits = [float(e) * math.log2(n) for e, n in zip(statistics["entropy"], sizes, strict=True)]
    described = system.describe()
    points = []
    for place, depth in enumerate(point["num_quantizers"] for point in records[0]["points"]):
        rows = [record["points"][place] for record in records]
        spent, whole = (rate_of(records, place, key) for key in ("bits", "file_bits"))
        nominal = system.bitrate(depth)
        rates = {
            "kbit/s": nominal / 1000 if nominal is not None else spent,
            "kbit/s_entropy": sum(bits[:depth]) * described["frame_rate"] / 1000 if depth else spent,
            "kbit/s_file": whole,
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
        **described,
    }


def mean(rows: Sequence[Record], name: str) -> float | None:
    """Mean of the cells that are not empty."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else None


def rate_of(records: Sequence[Record], place: int, key: str) -> float | None:
    """kbit/s that all files together took at a point; None unless it is known of each."""
    spent = [record["points"][place][key] for record in records]
    if None in spent:
        return None
    return sum(spent) / sum(record["seconds"] for record in records) / 1000


def count_all(system: System, records: Sequence[Record]) -> list[Tensor]:
    """How often each code of each stage occurs in all records."""
    counts: list[Tensor] = []
    for record in records:
        if record["codes"]:
            found = count_codes(torch.tensor(record["codes"])[None], system.codebook_sizes)
            counts = [a + b for a, b in zip(counts, found, strict=True)] if counts else found
    return counts


def domain_of(name: str) -> str:
    """The first sub-folder of a file's name; files beside it are of no domain."""
    parts = PurePath(name).parts
    return parts[0] if len(parts) > 1 else "."
