"""Scores of `learning_curve.py`: one set of recordings, coded at several rates and judged by all metrics."""

from __future__ import annotations

import io
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from codec.audio.reading import read_info
from codec.bitstream.compress import make_header
from codec.bitstream.entropy_model import EntropyTables
from codec.bitstream.fit import fit_tables
from codec.bitstream.writer import BitstreamWriter
from codec.commands.fit_entropy import examples
from codec.evaluation import systems
from codec.evaluation.classical import Baseline
from codec.evaluation.evaluate import Options, score
from codec.evaluation.reading import read_clip
from codec.metrics.base import Metric
from codec.metrics.process import MetricProcess
from codec.metrics.signal import MEL, SI_SDR
from codec.model.codec import Codec

UNQUANTIZED = "none"  # in place of a number of stages
MAX_SECONDS = 20.0  # of a file
OWN_SCORES = (SI_SDR.name, MEL.name)


class Reconstruction(NamedTuple):
    """Audio `[1, C, T]` that was coded, its rate's name, and bits by kind."""

    rate: str
    estimate: Tensor
    bits: Mapping[str, int | None]


Coder = Callable[[Tensor], Iterable[Reconstruction]]  # of audio [1, C, T]
Row = dict[str, str]


class Listener:
    """Recordings at one rate in Hz, and the metrics of their reconstructions."""

    def __init__(
        self,
        files: Sequence[str],
        sample_rate: int,
        channels: int,
        metrics: Sequence[Metric],
        workers: int = 1,
    ):
        processes = [MetricProcess() for _ in range(workers)]
        self.files, self.missing = files, 0
        self.options = Options(sample_rate, channels, metrics=metrics, processes=processes)
        self.names = [*OWN_SCORES, *(metric.name for metric in metrics)]
        lengths = [info.frames / info.sample_rate for info in map(read_info, files)]
        self.seconds = sum(min(length, MAX_SECONDS) for length in lengths)
        self.idle: queue.SimpleQueue[MetricProcess] = queue.SimpleQueue()
        for process in processes:
            self.idle.put(process)

    def close(self) -> None:
        """End the metrics' processes."""
        for process in self.options.processes:
            process.close()

    def judge(self, code: Coder) -> dict[str, Row]:
        """Mean scores and kbit/s of all files by the rates' names; `missing` counts scores that failed."""
        with ThreadPoolExecutor(len(self.options.processes)) as pool:
            try:
                found = list(pool.map(lambda file: self.judge_file(file, code), self.files))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return {rate: self.row([scores[rate] for scores in found]) for rate in found[0]}

    @torch.inference_mode()
    def judge_file(self, file: str, code: Coder) -> dict[str, dict[str, float | None]]:
        """Scores and bits of one file by the rates' names."""
        options, process = self.options, self.idle.get()
        try:
            clip = read_clip(file, options.sample_rate, options.channels, MAX_SECONDS)
            audio, found = torch.from_numpy(clip)[None], {}
            for rate, estimate, bits in code(audio):
                point = systems.Reconstruction(0, estimate)
                scores = score(point, estimate[0].cpu().float(), audio[0], options, process, {}).scores
                found[rate] = {**{name: scores[name] for name in self.names}, **bits}
            return found
        finally:
            self.idle.put(process)

    def row(self, found: Sequence[Mapping[str, float | None]]) -> Row:
        """Cells of a table: of scores the mean of those that there are, of bits kbit/s."""
        cells = {"files": str(len(self.files)), "seconds": f"{self.seconds:.1f}"}
        for name in found[0]:
            values = [value for scores in found if (value := scores[name]) is not None]
            if name not in self.names:
                cells[f"{name}_kbps"] = f"{sum(values) / self.seconds / 1000:.4f}" if values else ""
                continue
            self.missing += len(found) - len(values)
            cells[name] = f"{fmean(values):.4f}" if values else ""
        return cells


def classical(baseline: Baseline) -> Coder:
    """Coder of a classical codec: bits of its packets, and of its file."""

    def code(audio: Tensor) -> Iterator[Reconstruction]:
        for point in baseline.code(audio)[1]:
            yield Reconstruction(
                baseline.name, point.estimate, {"payload": point.bits, "file": point.file_bits}
            )

    return code


def quantized(
    codec: Codec,
    depths: Sequence[int],
    tables: EntropyTables | None,
    unquantized: bool = False,
    beam: int = 1,
) -> Coder:
    """Coder of a codec at several numbers of stages: bits of the codes in `.codec` files, and of the files.

    `payload` are codes that are stored as they are, `fitted` those coded with the tables.
    """
    stored = {
        name: writer_of(codec, chosen)
        for name, chosen in (("payload", None), ("fitted", tables))
        if name == "payload" or chosen
    }

    def code(audio: Tensor) -> Iterator[Reconstruction]:
        length = audio.shape[-1]
        latents = codec.latents(audio.to(next(codec.parameters()).device))
        for depth in depths:
            kept, bits = codec.quantizer.encode(latents, depth, beam), {}
            for name, write in stored.items():
                bits[name], bits["file"] = write(kept, length)
            yield Reconstruction(str(depth), codec.decode(kept, length), bits)
        if unquantized:
            whole = codec.autoencoder.decode(latents)
            yield Reconstruction(UNQUANTIZED, whole[..., :length], {})

    return code


def writer_of(codec: Codec, tables: EntropyTables | None) -> Callable[[Tensor, int], tuple[int, int]]:
    """Function that counts the bits of codes `[1, k, F]`, and of the `.codec` file that holds them."""
    header = cache(lambda stages: make_header(codec, tables, stages, 10.0))

    def write(codes: Tensor, samples: int) -> tuple[int, int]:
        file = io.BytesIO()
        writer = BitstreamWriter(file, header(codes.shape[1]), tables)
        writer.write(codes[0].cpu().numpy())
        writer.finish(samples)
        return 8 * sum(writer.stage_bytes), 8 * file.tell()

    return write


def depths_at(codec: Codec, rates: Sequence[float]) -> list[int]:
    """Numbers of stages whose nominal rates are nearest to those in kbit/s; none of a codec without codes."""
    stages = range(1, codec.quantizer.num_quantizers + 1)
    if not stages:
        return []
    return sorted({min(stages, key=lambda k: abs(codec.bitrate(k) / 1000 - rate)) for rate in rates})


def fitted(codec: Codec, folder: Path, hours: float, stages: int) -> EntropyTables:
    """Entropy tables of the first stages, from recordings of a folder, of `hours` at most."""
    sizes, sequences = examples(codec, folder)
    codes = (sequence[:stages] for sequence in sequences)
    frames = max(1, round(hours * 3600 * codec.frame_rate))
    device = str(next(codec.parameters()).device)
    return fit_tables(codes, codec.codec_id(), sizes[:stages], frames, device).tables
