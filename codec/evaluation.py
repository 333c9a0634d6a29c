"""Judge a codec on whole recordings: a table, and every pair to listen to and to look at."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
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
    """Code audio files, on the codec's device, and write wav pairs, pictures, `files.csv` and `summary.json`.

    Of a longer file the first `max_seconds` are used. Unreadable files are logged and left out. Returns the
    summary: means of the scores, bitrate in kbit/s, and codebook usage per stage.
    """
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    counts: list[Tensor] = []
    bar = tqdm(files, desc="evaluate", unit="file", dynamic_ncols=True)
    device = next(codec.parameters()).device
    for name, audio in read_clips(codec, bar, max_seconds):
        audio = audio.to(device)
        codes = codec.encode(audio)
        estimate = codec.decode(codes, audio.shape[-1]) if codes.shape[1] else codec(audio)[0]
        scores = {key: float(score(estimate, audio, codec.sample_rate)) for key, score in SCORES.items()}
        rows.append({"file": printable(name)} | scores)
        counted = count_codes(codes.cpu(), codec.quantizer.codebook_sizes) if codes.shape[1] else []
        counts = [a + b for a, b in zip(counts, counted, strict=True)] if counts else counted
        write_pair(
            output, len(rows), name, audio[0], estimate[0], codec.sample_rate, picture=len(rows) <= pictures
        )
    if not rows:
        raise ValueError(f"none of {len(files)} files could be evaluated")
    summary = summarise(codec, rows, counts)
    write_table(output / "files.csv", rows)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


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
    """Means over files, nominal rate, and what the codes carry."""
    statistics = codebook_statistics(counts) if counts else {}
    return {
        "files": len(rows),
        **{name: float(np.mean([row[name] for row in rows])) for name in SCORES},
        "kbit/s": codec.bitrate() / 1000 if counts else None,
        **{f"codebook_{name}": [round(v, 4) for v in values.tolist()] for name, values in statistics.items()},
    }


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one row a file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Print the scores and where the audio is."""
    rate = f" at {summary['kbit/s']:.2f} kbit/s" if summary["kbit/s"] else ""
    print(
        f"{summary['files']} files{rate}: SI-SDR {summary['si_sdr']:.2f} dB, mel distance "
        f"{summary['mel']:.3f}, STFT distance {summary['stft']:.3f}\n"
        f"listen and look: {output}/001-*; each file's scores: {output}/files.csv"
    )
