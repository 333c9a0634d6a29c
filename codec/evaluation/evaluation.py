"""Evaluation of a codec on recordings: tables of scores, and audio and spectrograms of every pair."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from codec.audio import AudioError, read_info, read_segment, resample, resampled_length, write_wav
from codec.evaluation.complexity import time_coding
from codec.evaluation.perceptual import MetricProcess, PerceptualMetric
from codec.evaluation.records import Records
from codec.evaluation.summary import summarise
from codec.evaluation.systems import OwnCodec, Point, System
from codec.files import mark_output, printable, write_whole
from codec.inventory import DataError
from codec.metrics import SCORES
from codec.model import Codec
from codec.pictures import save_spectrogram_pair

log = logging.getLogger(__name__)
drawing = threading.Lock()  # matplotlib is not thread-safe


@dataclass(frozen=True)
class Options:
    """Evaluation options: the first `max_seconds` of a file, compared at `sample_rate` in `channels`.

    File names are relative to `root`, whose sub-folders are domains. The number of `processes`, which compute
    the `metrics`, is the number of concurrent files. The first `pictures` files get spectrograms.
    """

    sample_rate: int
    channels: int
    root: Path | None = None
    max_seconds: float = 20.0
    pictures: int = 16
    metrics: Sequence[PerceptualMetric] = ()
    processes: Sequence[MetricProcess] = field(default_factory=lambda: (MetricProcess(),))


@torch.inference_mode()
def evaluate(
    codec: Codec,
    files: Sequence[str],
    output: Path,
    *,
    max_seconds: float = 20.0,
    pictures: int = 16,
    metrics: Sequence[PerceptualMetric] = (),
) -> dict[str, Any]:
    """Code files with several numbers of quantizers; write wavs, spectrograms, tables and `summary.json`.

    The first `max_seconds` of each file are used. Unreadable files are logged and skipped. `files.csv` has
    each file's scores with all quantizers, `depths.csv` those of each number. Returns the summary.
    """
    options = Options(codec.sample_rate, codec.audio_channels, None, max_seconds, pictures, metrics)
    try:
        return evaluate_system(OwnCodec(codec), files, output, options)
    finally:
        for process in options.processes:
            process.close()


@torch.inference_mode()
def evaluate_system(
    system: System, files: Sequence[str], output: Path, options: Options, *, resume: bool = False
) -> dict[str, Any]:
    """Evaluate any system on several threads; with `resume`, finished files are skipped.

    Reasons for failed files and metrics are written to `failures.csv`. DataError if no file could be
    evaluated, ConfigError if the folder holds another evaluation.
    """
    output.mkdir(parents=True, exist_ok=True)
    mark_output(output)
    settings = {
        "sample_rate": options.sample_rate,
        "channels": options.channels,
        "seconds": options.max_seconds,
    }
    records = Records(output / "records.jsonl", {**system.identity(), **settings}, resume)
    numbered = [(number, name, shown(name, options.root)) for number, name in enumerate(files, start=1)]
    todo = [entry for entry in numbered if not is_done(records.done.get(entry[2]), entry[1], options)]
    evaluate_files(system, todo, output, options, records)
    results = [records.done[name] for _, _, name in numbered if name in records.done]
    scored = [record for record in results if "error" not in record]
    if not scored:
        raise DataError(f"none of {len(files)} files could be evaluated")
    names = [*SCORES, *(metric.name for metric in options.metrics)]
    summary = summarise(system, scored, names)
    summary["metrics"] = {metric.name: metric.version for metric in options.metrics}
    summary["lower_is_better"] = [metric.name for metric in options.metrics if metric.lower]
    if isinstance(system, OwnCodec):
        summary |= time_coding(system.codec, first_clip(system, files, options.max_seconds))
    write_tables(output, results, names, summary)
    return summary


def evaluate_files(
    system: System, todo: Sequence[tuple[int, str, str]], output: Path, options: Options, records: Records
) -> None:
    """Evaluate numbered files on several threads, each with its own metric process."""
    processes: queue.SimpleQueue[MetricProcess] = queue.SimpleQueue()
    for process in options.processes:
        processes.put(process)
    workers = len(options.processes)
    threads = max(1, torch.get_num_threads() // workers)

    def work(entry: tuple[int, str, str]) -> None:
        process = processes.get()
        try:
            records.add(evaluate_file(system, entry, output, options, process))
        finally:
            processes.put(process)

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))
    bar = tqdm(
        total=len(todo), desc=f"evaluate {system.name}", unit="file", dynamic_ncols=True, disable=not todo
    )
    try:
        for _ in pool.map(work, todo) if workers > 1 else map(work, todo):
            bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


@torch.inference_mode()
def evaluate_file(
    system: System, entry: tuple[int, str, str], output: Path, options: Options, process: MetricProcess
) -> dict[str, Any]:
    """Record of one file: scores of each point, and codes; or its error."""
    number, path, name = entry
    record = {"file": name, "number": number, "stamp": stamp(path)}
    try:
        audio = torch.from_numpy(read_clip(path, options.sample_rate, options.channels, options.max_seconds))
        record |= {"seconds": audio.shape[-1] / options.sample_rate, "reasons": {}}
        record["metrics"] = {metric.name: metric.version for metric in options.metrics}
        codes, points = system.code(fitted(audio, options, system)[None])
        record["points"], estimate = [], audio
        for point in points:
            estimate = returned(point.estimate[0].cpu().float(), options, system, audio.shape[-1])
            record["points"].append(score(point, estimate, audio, options, process, record["reasons"]))
        record["codes"] = codes[0].tolist() if codes is not None else []
        picture = number <= options.pictures
        write_pair(output, number, path, audio, estimate, options.sample_rate, picture=picture)
    except (ValueError, RuntimeError) as error:  # fails this file only
        if not isinstance(error, AudioError):
            log.warning("%s, %s: %s", system.name, name, error)
        else:
            log.warning("%s", error)
        return {**record, "error": str(error)}
    return record


def score(
    point: Point, estimate: Tensor, audio: Tensor, options: Options, process: MetricProcess, reasons: dict
) -> dict[str, Any]:
    """Score one reconstruction `[C, T]` with every metric; a failed one is None, its reason in `reasons`."""
    row: dict[str, Any] = {
        "num_quantizers": point.num_quantizers,
        "bits": point.bits,
        "file_bits": point.file_bits,
    }
    for name, metric in SCORES.items():
        value = float(metric(estimate[None], audio[None], options.sample_rate))
        row[name] = value if np.isfinite(value) else None
        if row[name] is None:
            reasons[f"{name} {point.num_quantizers}"] = f"the score is {value}"
    for metric in options.metrics:
        row[metric.name], reason = process.score(metric, estimate.numpy(), audio.numpy(), options.sample_rate)
        if reason:
            reasons[f"{metric.name} {point.num_quantizers}"] = reason
    return row


def fitted(audio: Tensor, options: Options, system: System) -> Tensor:
    """Convert audio `[C, T]` to the sample rate and channels of a system."""
    if options.sample_rate != system.sample_rate:
        audio = torch.from_numpy(resample(audio.numpy(), options.sample_rate, system.sample_rate))
    if options.channels != system.channels:
        audio = audio.mean(0, keepdim=True).expand(system.channels, -1)
    return audio.contiguous()


def returned(estimate: Tensor, options: Options, system: System, length: int) -> Tensor:
    """Convert a system's output `[C, T]` back to the options' rate and channels, padded to `length`."""
    if options.channels != system.channels:
        estimate = estimate.mean(0, keepdim=True).expand(options.channels, -1)
    if options.sample_rate != system.sample_rate:
        estimate = torch.from_numpy(resample(estimate.numpy(), system.sample_rate, options.sample_rate))
    return torch.nn.functional.pad(estimate, (0, length - estimate.shape[-1])).contiguous()


def read_clip(path: str, sample_rate: int, channels: int, max_seconds: float) -> np.ndarray:
    """Read the first `max_seconds` of a file, `[C, T]`."""
    info = read_info(path)
    length = resampled_length(info.frames, info.sample_rate, sample_rate)
    return read_segment(path, 0, min(length, round(max_seconds * sample_rate)), sample_rate, channels)


def first_clip(system: OwnCodec, files: Sequence[str], max_seconds: float) -> Tensor:
    """Clip `[1, C, T]` of the first readable file, on the codec's device."""
    device = next(system.codec.parameters()).device
    clips = read_clips(system, files, max_seconds)
    return next(clips).to(device)


def read_clips(system: System, files: Sequence[str], max_seconds: float) -> Iterator[Tensor]:
    """Yield clips `[1, C, T]` of the readable files at a system's rate and channels."""
    for path in files:
        try:
            yield torch.from_numpy(read_clip(path, system.sample_rate, system.channels, max_seconds))[None]
        except AudioError:
            continue  # its record has the error


def shown(path: str, root: Path | None) -> str:
    """Name of a file in tables."""
    return printable(os.path.relpath(path, root) if root else path)


def stamp(path: str) -> list[int]:
    """Size and modification time; a changed file of the same name is evaluated again."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def is_done(record: dict[str, Any] | None, path: str, options: Options) -> bool:
    """Return True for a record without error, of the unchanged file, with all metrics in these versions."""
    if record is None or "error" in record or record["stamp"] != stamp(path):
        return False
    return all(record["metrics"].get(metric.name) == metric.version for metric in options.metrics)


def write_pair(
    output: Path, number: int, name: str, original: Tensor, estimate: Tensor, rate: int, picture: bool
) -> None:
    """Write original and reconstruction `[C, T]`, and their spectrograms if `picture`."""
    stem = stem_of(number, name)
    write_wav(output / f"{stem}.original.wav", original.numpy(), rate)
    write_wav(output / f"{stem}.reconstruction.wav", estimate.clamp(-1, 1).numpy(), rate)
    if picture:
        with drawing:
            save_spectrogram_pair(output / f"{stem}.png", original, estimate, rate, stem)


def stem_of(number: int, name: str) -> str:
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
    """Scores as one line, for a terminal."""
    files = f"{summary['files']} file{'s' * (summary['files'] != 1)}"
    rate = f" at {summary['kbit/s']:.2f} kbit/s" if summary["kbit/s"] else ""
    scores = {
        "SI-SDR": ("si_sdr", ".2f", " dB"),
        "mel distance": ("mel", ".3f", ""),
        "STFT distance": ("stft", ".3f", ""),
    }
    parts = [
        f"{title} {summary[key]:{digits}}{unit}"
        for title, (key, digits, unit) in scores.items()
        if summary[key] is not None
    ]
    return f"{files}{rate}: {', '.join(parts)}"
