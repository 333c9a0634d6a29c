"""Judge a codec on whole recordings: a table, and every pair to listen to and to look at."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from codec.audio import AudioError, printable, read_info, read_segment, resampled_length, write_wav
from codec.metrics import SCORES, codebook_statistics, count_codes
from codec.model import Codec
from codec.pictures import save_spectrogram_pair

log = logging.getLogger(__name__)


@torch.inference_mode()
def evaluate(
    codec: Codec, files: Sequence[str], output: Path, *, max_seconds: float = 20.0, pictures: int = 16
) -> dict[str, Any]:
    """Code audio files at several depths on the codec's device; write wavs, pictures, tables, `summary.json`.

    Of a longer file the first `max_seconds` are used. Unreadable files are logged and left out. `files.csv`
    has each file's scores with all stages, `depths.csv` those of every depth. Returns the summary.
    """
    output.mkdir(parents=True, exist_ok=True)
    device = next(codec.parameters()).device
    rows: list[dict[str, Any]] = []
    counts: list[Tensor] = []
    speed: dict[str, Any] = {}
    bar = tqdm(files, desc="evaluate", unit="file", dynamic_ncols=True)
    for number, (name, audio) in enumerate(read_clips(codec, bar, max_seconds), start=1):
        audio = audio.to(device)
        codes = codec.encode(audio)
        estimate = audio
        for depth in depths(codes.shape[1]):
            estimate = codec.decode(codes[:, :depth], audio.shape[-1]) if depth else codec(audio)[0]
            rows.append({"file": printable(name), "num_quantizers": depth, **score(codec, estimate, audio)})
        counted = count_codes(codes.cpu(), codec.quantizer.codebook_sizes) if codes.shape[1] else []
        counts = [a + b for a, b in zip(counts, counted, strict=True)] if counts else counted
        picture = number <= pictures
        write_pair(output, number, name, audio[0], estimate[0], codec.sample_rate, picture=picture)
        speed = speed or time_coding(codec, audio)
    if not rows:
        raise ValueError(f"none of {len(files)} files could be evaluated")
    summary = summarise(codec, rows, counts) | speed
    deepest = [row for row in rows if row["num_quantizers"] == rows[-1]["num_quantizers"]]
    write_table(output / "depths.csv", rows)
    write_table(
        output / "files.csv", [{k: v for k, v in row.items() if k != "num_quantizers"} for row in deepest]
    )
    write_whole(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def depths(num_quantizers: int, most: int = 8) -> list[int]:
    """At most `most` numbers of stages, evenly from 1 to all of them; [0] for a quantizer without codes."""
    number = min(num_quantizers, most)
    return [round(k) for k in np.linspace(1, num_quantizers, number)] if number > 1 else [num_quantizers]


def score(codec: Codec, estimate: Tensor, audio: Tensor) -> dict[str, float]:
    """Every metric of one reconstruction `[1, C, T]`."""
    return {name: float(metric(estimate, audio, codec.sample_rate)) for name, metric in SCORES.items()}


def time_coding(codec: Codec, audio: Tensor, seconds: float = 5.0, repeats: int = 3) -> dict[str, Any]:
    """Milliseconds that a second of audio takes to encode and to decode, on one thread; the fastest run."""
    audio = audio[..., : round(seconds * codec.sample_rate)]
    codes = codec.encode(audio)
    latents = codec.latents(audio)

    def fastest(work: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            work().cpu()  # a GPU is still at work when it has been told what to do
            times.append(time.perf_counter() - began)
        return round(1000 * min(times) * codec.sample_rate / audio.shape[-1], 3)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            "encode_ms": fastest(lambda: codec.encode(audio)),
            "decode_ms": fastest(
                lambda: codec.decode(codes) if codes.shape[1] else codec.autoencoder.decode(latents)
            ),
            "timed_on": f"1 of {os.cpu_count()} CPU threads, {platform.machine()}"
            if audio.device.type == "cpu"
            else torch.cuda.get_device_name(audio.device),
        }
    finally:
        torch.set_num_threads(threads)


def read_clips(codec: Codec, paths: Iterable[str], max_seconds: float) -> Iterator[tuple[str, Tensor]]:
    """Yield each readable file's path and audio `[1, C, T]` at the codec's rate."""
    for path in paths:
        try:
            info = read_info(path)
            length = resampled_length(info.frames, info.sample_rate, codec.sample_rate)
            length = min(length, round(max_seconds * codec.sample_rate))
            audio = read_segment(path, 0, length, codec.sample_rate, codec.audio_channels)
        except AudioError as error:
            log.warning("%s", error)
            continue
        yield path, torch.from_numpy(audio)[None]


def write_pair(
    output: Path, number: int, name: str, original: Tensor, estimate: Tensor, rate: int, picture: bool
) -> None:
    """Write original and reconstruction `[C, T]` side by side, and their spectrograms."""
    original, estimate = original.cpu(), estimate.cpu()
    stem = f"{number:03d}-{Path(printable(name)).stem[:60]}"
    write_wav(output / f"{stem}.original.wav", original.numpy(), rate)
    write_wav(output / f"{stem}.reconstruction.wav", estimate.clamp(-1, 1).numpy(), rate)
    if picture:
        save_spectrogram_pair(output / f"{stem}.png", original, estimate, rate, stem)


def summarise(codec: Codec, rows: list[dict[str, Any]], counts: list[Tensor]) -> dict[str, Any]:
    """Means over files at every depth, nominal and entropy-coded rates, what the codes carry, sizes.

    The entropy-coded rate is the sum over stages of the entropy of how often each code occurs in these
    files: what an ideal coder with one fixed table a stage needs. From few frames it is too low.
    """
    statistics = codebook_statistics(counts)
    sizes = codec.quantizer.codebook_sizes
    bits = [float(e) * math.log2(n) for e, n in zip(statistics["entropy"], sizes, strict=True)]
    points = [
        {
            "num_quantizers": depth,
            **{
                name: float(np.mean([r[name] for r in rows if r["num_quantizers"] == depth]))
                for name in SCORES
            },
            "kbit/s": codec.bitrate(depth) / 1000 if depth else None,
            "kbit/s_entropy": sum(bits[:depth]) * codec.frame_rate / 1000 if depth else None,
        }
        for depth in sorted({row["num_quantizers"] for row in rows})
    ]
    return {
        "files": len({row["file"] for row in rows}),
        **{name: value for name, value in points[-1].items() if name != "num_quantizers"},
        "frames": int(counts[0].sum()) if counts else None,
        "frame_rate": codec.frame_rate,
        "codebook_sizes": list(sizes),
        **{f"codebook_{name}": [round(v, 4) for v in values.tolist()] for name, values in statistics.items()},
        "rate_distortion": points,
        "parameters": count_parameters(codec),
    }


def count_parameters(codec: Codec) -> dict[str, int]:
    """Learned numbers of each part, codebooks that moving averages teach included."""
    parts = {**dict(codec.autoencoder.named_children()), "quantizer": codec.quantizer}
    return {
        name: sum(p.numel() for p in part.parameters())
        + sum(b.numel() for b in part.buffers() if b.is_floating_point() and b.ndim > 1)
        for name, part in parts.items()
    }


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one row a file and depth."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Print the scores and where the audio is."""
    files = f"{summary['files']} file{'s' * (summary['files'] != 1)}"
    rate = f" at {summary['kbit/s']:.2f} kbit/s" if summary["kbit/s"] else ""
    print(
        f"{files}{rate}: SI-SDR {summary['si_sdr']:.2f} dB, mel distance "
        f"{summary['mel']:.3f}, STFT distance {summary['stft']:.3f}\n"
        f"listen and look: {output}/001-*; each file's scores: {output}/files.csv"
    )
