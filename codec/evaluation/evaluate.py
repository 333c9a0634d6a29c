"""Evaluation of a codec on recordings: tables of scores, and audio and spectrograms of every pair."""

from __future__ import annotations

import logging
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.audio.conversion import resample
from codec.audio.reading import AudioError
from codec.data.index import DataError, Excerpt
from codec.evaluation.complexity import time_coding
from codec.evaluation.reading import Recordings, read_clip, read_clips, shown, stamp
from codec.evaluation.records import FileScores, PointScores, Records, Summary
from codec.evaluation.summary import summarize
from codec.evaluation.systems import NeuralCodec, Reconstruction, System
from codec.evaluation.writing import stem_of, write_pair, write_tables
from codec.metrics.base import Metric
from codec.metrics.process import MetricProcess
from codec.metrics.signal import SCORES
from codec.model.codec import Codec
from codec.system.files import mark_output
from codec.system.progress import progress_bar

log = logging.getLogger(__name__)
Entry = tuple[int, str | Excerpt, str]  # number, path and name in tables


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
    metrics: Sequence[Metric] = ()
    processes: Sequence[MetricProcess] = field(default_factory=lambda: (MetricProcess(),))


@torch.inference_mode()
def evaluate(
    codec: Codec, files: Recordings, output: Path, *, pictures: int = 16, metrics: Sequence[Metric] = ()
) -> Summary:
    """Code files with several numbers of quantizers; write wavs, spectrograms, tables and `summary.json`.

    Unreadable files are logged and skipped. `files.csv` has each file's scores with all quantizers,
    `depths.csv` those of each number. Returns the summary.
    """
    options = Options(codec.sample_rate, codec.audio_channels, pictures=pictures, metrics=metrics)
    try:
        return evaluate_system(NeuralCodec(codec), files, output, options)
    finally:
        for process in options.processes:
            process.close()


@torch.inference_mode()
def evaluate_system(
    system: System, files: Recordings, output: Path, options: Options, *, resume: bool = False
) -> Summary:
    """Evaluate any system on several threads; with `resume`, finished files are skipped.

    Reasons for failed files and metrics are written to `failures.csv`. DataError if no file could be
    evaluated, ConfigError if the folder holds another evaluation.
    """
    output.mkdir(parents=True, exist_ok=True)
    mark_output(output)
    settings = {"sample_rate": options.sample_rate, "channels": options.channels}
    identity = {**system.identity(), **settings, "seconds": options.max_seconds}
    records = Records(output / "records.jsonl", identity, resume)
    numbered = [(number, name, shown(name, options.root)) for number, name in enumerate(files, start=1)]
    todo = [entry for entry in numbered if not is_done(records.done.get(entry[2]), entry[1], options)]
    evaluate_files(system, todo, output, options, records)
    results = [records.done[name] for _, _, name in numbered if name in records.done]
    scored = [record for record in results if record.error is None]
    if not scored:
        raise DataError(f"none of {len(files)} files could be evaluated")
    summary = summarize(system, scored, options.metrics)
    if isinstance(system, NeuralCodec):
        clip = next(read_clips(system, files, options.max_seconds))
        encode_ms, decode_ms, device = time_coding(system.codec, clip)
        summary = replace(summary, encode_ms=encode_ms, decode_ms=decode_ms, timed_on=device)
    write_tables(output, results, [metric.name for metric in (*SCORES, *options.metrics)], summary)
    return summary


def evaluate_files(
    system: System, todo: Sequence[Entry], output: Path, options: Options, records: Records
) -> None:
    """Evaluate numbered files on several threads, each with its own metric process."""
    processes: queue.SimpleQueue[MetricProcess] = queue.SimpleQueue()
    for process in options.processes:
        processes.put(process)
    workers = len(options.processes)
    threads = max(1, torch.get_num_threads() // workers)

    def work(entry: Entry) -> None:
        process = processes.get()
        try:
            records.add(evaluate_file(system, entry, output, options, process))
        finally:
            processes.put(process)

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))
    bar = progress_bar(None, f"evaluate {system.name}", total=len(todo), unit="file")
    try:
        for _ in pool.map(work, todo) if workers > 1 else map(work, todo):
            bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


@torch.inference_mode()
def evaluate_file(
    system: System, entry: Entry, output: Path, options: Options, process: MetricProcess
) -> FileScores:
    """Record of one file: scores of each point, and codes; or its error."""
    number, path, name = entry
    record = FileScores(name, number, stamp(path))
    try:
        audio = torch.from_numpy(read_clip(path, options.sample_rate, options.channels, options.max_seconds))
        versions = {metric.name: metric.version for metric in options.metrics}
        seconds = audio.shape[-1] / options.sample_rate
        record = replace(record, seconds=seconds, reasons={}, metrics=versions)
        codes, points = system.code(fitted(audio, options, system)[None])
        record, estimate = replace(record, points=[]), audio
        for point in points:
            estimate = returned(point.estimate[0].cpu().float(), options, system, audio.shape[-1])
            record.points.append(score(point, estimate, audio, options, process, record.reasons))
        record = replace(record, codes=codes[0].tolist() if codes is not None else [])
        place = output / stem_of(number, path)
        write_pair(place, audio, estimate, options.sample_rate, picture=number <= options.pictures)
    except (ValueError, RuntimeError) as error:  # fails this file only
        log.warning("%s%s", "" if isinstance(error, AudioError) else f"{system.name}, {name}: ", error)
        return replace(record, error=str(error))
    return record


def score(
    point: Reconstruction,
    estimate: Tensor,
    audio: Tensor,
    options: Options,
    process: MetricProcess,
    reasons: dict[str, str],
) -> PointScores:
    """Score one reconstruction `[C, T]` with every metric; a failed one is None, its reason in `reasons`."""
    scores, rate = {}, options.sample_rate
    for metric in (*SCORES, *options.metrics):
        if metric.tensors:
            value = float(metric.score(estimate[None], audio[None], rate))
            value, reason = (value, "") if np.isfinite(value) else (None, f"the score is {value}")
        else:
            value, reason = process.score(metric, estimate.numpy(), audio.numpy(), rate)
        scores[metric.name] = value
        if reason:
            reasons[f"{metric.name} {point.num_quantizers}"] = reason
    return PointScores(point.num_quantizers, point.bits, point.file_bits, scores)


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


def is_done(record: FileScores | None, path: str | Excerpt, options: Options) -> bool:
    """Return True for a record without error, of the unchanged file, with all metrics in these versions."""
    if record is None or record.error is not None or record.stamp != stamp(path):
        return False
    return all(record.metrics.get(metric.name) == metric.version for metric in options.metrics)
