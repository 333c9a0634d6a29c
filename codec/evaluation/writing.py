"""Wav pairs and tables of an evaluation."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from codec.audio.writing import write_wav
from codec.evaluation.pictures import save_spectrogram_pair
from codec.evaluation.records import FileScores, Summary
from codec.evaluation.tables import write_table
from codec.metrics.registry import described
from codec.metrics.signal import MEL, SI_SDR, STFT
from codec.system.files import printable, write_whole

drawing = threading.Lock()  # matplotlib is not thread-safe


def write_pair(place: Path, original: Tensor, estimate: Tensor, rate: int, picture: bool) -> None:
    """Write original and reconstruction `[C, T]` beside `place`, and their spectrograms if `picture`."""
    write_wav(Path(f"{place}.original.wav"), original.numpy(), rate)
    write_wav(Path(f"{place}.reconstruction.wav"), estimate.clamp(-1, 1).numpy(), rate)
    if picture:
        with drawing:
            save_spectrogram_pair(f"{place}.png", original, estimate, rate, place.name)


def stem_of(number: int, name: str | os.PathLike[str]) -> str:
    """Prefix of the names of a file's outputs."""
    return f"{number:03d}-{Path(printable(name)).stem[:60]}"


def write_tables(output: Path, records: Sequence[FileScores], names: Sequence[str], summary: Summary) -> None:
    """Write `files.csv`, `depths.csv`, `failures.csv` if there are any, and `summary.json`."""
    scored = [record for record in records if record.error is None]
    rows = [
        [record.file, point.num_quantizers, *map(point.scores.get, names)]
        for record in scored
        for point in record.points
    ]
    deepest = [[record.file, *map(record.points[-1].scores.get, names)] for record in scored]
    write_table(output / "depths.csv", ["file", "num_quantizers", *names], rows)
    write_table(output / "files.csv", ["file", *names], deepest)
    failures = [[record.file, "", record.error] for record in records if record.error is not None]
    failures += [[record.file, *reason] for record in scored for reason in record.reasons.items()]
    if failures:
        write_table(output / "failures.csv", ["file", "metric", "reason"], failures)
    else:
        (output / "failures.csv").unlink(missing_ok=True)
    write_summary(output, summary)


def write_summary(output: Path, summary: Summary) -> None:
    """Write `summary.json`."""
    write_whole(output / "summary.json", json.dumps(summary.to_json(), indent=2) + "\n")


def print_summary(summary: Summary, output: Path) -> None:
    """Print the scores and the paths of audio and tables."""
    print(f"{scores_line(summary)}\nlisten and look: {output}/001-*; each file's scores: {output}/files.csv")


def scores_line(summary: Summary) -> str:
    """Scores as one line, for a terminal; those that were asked for come first."""
    files, means = f"{summary.files} file{'s' * (summary.files != 1)}", summary.means
    rate = f" at {means['kbit/s']:.2f} kbit/s" if means["kbit/s"] else ""
    parts = [
        f"{metric.title} {means[metric.name]:.2f} {metric.unit}".rstrip()
        for metric in (*described(summary.metrics, [vars(summary)]), SI_SDR, MEL, STFT)
        if means.get(metric.name) is not None
    ]
    return f"{files}{rate}: {', '.join(parts)}"
