"""Judge a codec on whole recordings: a table, and every pair to listen to and to look at."""

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
drawing = threading.Lock()  # matplotlib draws one picture at a time


@dataclass(frozen=True)
class Options:
    """What is measured: of each file the first `max_seconds`, compared at `sample_rate` in `channels`.

    Files are named relative to `root`, its sub-folders are domains. As many files are evaluated at a time as
    there are `processes`, which compute the `metrics`. The first `pictures` files get spectrograms.
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
    """Code audio files at several depths on the codec's device; write wavs, pictures, tables, `summary.json`.

    Of a longer file the first `max_seconds` are used. Unreadable files are logged and left out. `files.csv`
    has each file's scores with all stages, `depths.csv` those of every depth. Returns the summary.
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
    """`evaluate` for anything that codes audio, by several threads; with `resume` only what is not done yet.

    A file or metric that fails leaves its reason in `failures.csv`. DataError when none could be evaluated,
    ConfigError when the folder holds the results of something else.
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
    found = [records.done[name] for _, _, name in numbered if name in records.done]
    whole = [record for record in found if "error" not in record]
    if not whole:
        raise DataError(f"none of {len(files)} files could be evaluated")
    names = [*SCORES, *(metric.name for metric in options.metrics)]
    summary = summarise(system, whole, names)
    summary["metrics"] = {metric.name: metric.version for metric in options.metrics}
    summary["lower_is_better"] = [metric.name for metric in options.metrics if metric.lower]
    if isinstance(system, OwnCodec):
        summary |= time_coding(system.codec, first_clip(system, files, options.max_seconds))
    write_tables(output, found, names, summary)
    return summary


def evaluate_files(
    system: System, todo: Sequence[tuple[int, str, str]], output: Path, options: Options, records: Records
) -> None:
    """Evaluate numbered files on several threads, each with a process for the metrics of others."""
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
    """The record of one file: scores of each point, codes; or the error that it ended with."""
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
    except (ValueError, RuntimeError) as error:  # of this file alone: the others go on
        if not isinstance(error, AudioError):
            log.warning("%s, %s: %s", system.name, name, error)
        else:
            log.warning("%s", error)
        return {**record, "error": str(error)}
    return record


def score(
    point: Point, estimate: Tensor, audio: Tensor, options: Options, process: MetricProcess, reasons: dict
) -> dict[str, Any]:
    """Every metric of one reconstruction `[C, T]`; None, and its reason, where a metric failed."""
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
    """Audio `[C, T]` at the rate and with the channels that a system codes."""
    if options.sample_rate != system.sample_rate:
        audio = torch.from_numpy(resample(audio.numpy(), options.sample_rate, system.sample_rate))
    if options.channels != system.channels:
        audio = audio.mean(0, keepdim=True).expand(system.channels, -1)
    return audio.contiguous()


def returned(estimate: Tensor, options: Options, system: System, length: int) -> Tensor:
    """What a system made of it, back at the options' rate and channels, `length` samples."""
    if options.channels != system.channels:
        estimate = estimate.mean(0, keepdim=True).expand(options.channels, -1)
    if options.sample_rate != system.sample_rate:
        estimate = torch.from_numpy(resample(estimate.numpy(), system.sample_rate, options.sample_rate))
    return torch.nn.functional.pad(estimate, (0, length - estimate.shape[-1])).contiguous()


def read_clip(path: str, sample_rate: int, channels: int, max_seconds: float) -> np.ndarray:
    """The beginning of a file, `[C, T]`."""
    info = read_info(path)
    length = resampled_length(info.frames, info.sample_rate, sample_rate)
    return read_segment(path, 0, min(length, round(max_seconds * sample_rate)), sample_rate, channels)


def first_clip(system: OwnCodec, files: Sequence[str], max_seconds: float) -> Tensor:
    """The first readable file `[1, C, T]`, where the codec is."""
    device = next(system.codec.parameters()).device
    clips = read_clips(system, files, max_seconds)
    return next(clips).to(device)


def read_clips(system: System, files: Sequence[str], max_seconds: float) -> Iterator[Tensor]:
    """Readable files `[1, C, T]` as a system takes them."""
    for path in files:
        try:
            yield torch.from_numpy(read_clip(path, system.sample_rate, system.channels, max_seconds))[None]
        except AudioError:
            continue  # its record says so


def shown(path: str, root: Path | None) -> str:
    """How a file is named in tables."""
    return printable(os.path.relpath(path, root) if root else path)


def stamp(path: str) -> list[int]:
    """Size and time of the last change: another file of the same name is evaluated again."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def is_done(record: dict[str, Any] | None, path: str, options: Options) -> bool:
    """Whether a record has everything that is asked for; a file that failed is tried again."""
    if record is None or "error" in record or record["stamp"] != stamp(path):
        return False
    return all(record["metrics"].get(metric.name) == metric.version for metric in options.metrics)


def write_pair(
    output: Path, number: int, name: str, original: Tensor, estimate: Tensor, rate: int, picture: bool
) -> None:
    """Write original and reconstruction `[C, T]` side by side, and their spectrograms."""
    stem = stem_of(number, name)
    write_wav(output / f"{stem}.original.wav", original.numpy(), rate)
    write_wav(output / f"{stem}.reconstruction.wav", estimate.clamp(-1, 1).numpy(), rate)
    if picture:
        with drawing:
            save_spectrogram_pair(output / f"{stem}.png", original, estimate, rate, stem)


def stem_of(number: int, name: str) -> str:
    """How the wavs of a file begin."""
    return f"{number:03d}-{Path(printable(name)).stem[:60]}"


def write_tables(
    output: Path, records: Sequence[dict[str, Any]], names: Sequence[str], summary: dict[str, Any]
) -> None:
    """Write `files.csv`, `depths.csv`, `failures.csv` if there are any, and `summary.json`."""
    whole = [record for record in records if "error" not in record]
    rows = [{"file": record["file"], **point} for record in whole for point in record["points"]]
    deepest = [{"file": record["file"], **record["points"][-1]} for record in whole]
    write_table(output / "depths.csv", rows, ["file", "num_quantizers", *names])
    write_table(output / "files.csv", deepest, ["file", *names])
    failures = [{"file": r["file"], "metric": "", "reason": r["error"]} for r in records if "error" in r]
    for record in whole:
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
    """Write rows as csv, whole or not at all; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Print the scores and where the audio is."""
    print(f"{scores_line(summary)}\nlisten and look: {output}/001-*; each file's scores: {output}/files.csv")


def scores_line(summary: dict[str, Any]) -> str:
    """Our scores, for a terminal."""
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
