"""Wav pairs and tables of an evaluation."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from codec.audio.writing import write_wav
from codec.evaluation.pictures import save_spectrogram_pair
from codec.metrics.registry import described
from codec.metrics.signal import MEL, SI_SDR, STFT
from codec.system.files import printable, write_whole

drawing = threading.Lock()  # matplotlib is not thread-safe


def write_pair(
    output: Path,
    number: int,
    name: str | os.PathLike[str],
    original: Tensor,
    estimate: Tensor,
    rate: int,
    picture: bool,
) -> None:
    """Write original and reconstruction `[C, T]`, and their spectrograms if `picture`."""
    stem = stem_of(number, name)
    write_wav(output / f"{stem}.original.wav", original.numpy(), rate)
    write_wav(output / f"{stem}.reconstruction.wav", estimate.clamp(-1, 1).numpy(), rate)
    if picture:
        with drawing:
            save_spectrogram_pair(output / f"{stem}.png", original, estimate, rate, stem)


def stem_of(number: int, name: str | os.PathLike[str]) -> str:
    """Prefix of the names of a file's outputs."""
    return f"{number:03d}-{Path(printable(name)).stem[:60]}"


def write_tables(
    output: Path, records: Sequence[dict[str, Any]], names: Sequence[str], summary: dict[str, Any]
) -> None:
    """Write `files.csv`, `depths.csv`, `failures.csv` if there are any, and `summary.json`."""
    scored = [record for record in records if "error" not in record]
    rows = [{"file": record["file"], **point} for record in scored for point in record["points"]]
    deepest = [{"file": record["file"], **record["points"][-1]} for record in scored]
    write_table(output / "depths.csv", rows, ["file", "num_quantizers", *names])
    write_table(output / "files.csv", deepest, ["file", *names])
    failures = [{"file": r["file"], "metric": "", "reason": r["error"]} for r in records if "error" in r]
    for record in scored:
        failures += [
            {"file": record["file"], "metric": cell, "reason": reason}
            for cell, reason in record["reasons"].items()
        ]
    if failures:
        write_table(output / "failures.csv", failures, list(failures[0]))
    else:
        (output / "failures.csv").unlink(missing_ok=True)
    write_whole(output / "summary.json", json.dumps(summary, indent=2) + "\n")


def write_table(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as csv, atomically; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Print the scores and the paths of audio and tables."""
    print(f"{scores_line(summary)}\nlisten and look: {output}/001-*; each file's scores: {output}/files.csv")


def scores_line(summary: dict[str, Any]) -> str:
    """Scores as one line, for a terminal; those that were asked for come first."""
    files = f"{summary['files']} file{'s' * (summary['files'] != 1)}"
    rate = f" at {summary['kbit/s']:.2f} kbit/s" if summary["kbit/s"] else ""
    parts = [
        f"{metric.title} {summary[metric.name]:.2f} {metric.unit}".rstrip()
        for metric in (*described(summary.get("metrics", {}), [summary]), SI_SDR, MEL, STFT)
        if summary.get(metric.name) is not None
    ]
    return f"{files}{rate}: {', '.join(parts)}"
