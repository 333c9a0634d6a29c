"""Clips of recordings, cut and read for evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.audio.conversion import resampled_span
from codec.audio.reading import AudioError, read_info, read_segment
from codec.data.index import Excerpt, named
from codec.evaluation.systems import NeuralCodec
from codec.system import archive
from codec.system.files import printable

Recordings = Sequence[str | Excerpt]


def read_clip(path: str | Excerpt, sample_rate: int, channels: int, max_seconds: float) -> np.ndarray:
    """Read the first `max_seconds` of a file, or of a part of one, `[C, T]`."""
    info = read_info(path)
    span = path.span if isinstance(path, Excerpt) else (0, info.frames)
    first, end = resampled_span(span, info.sample_rate, sample_rate)
    length = min(end - first, round(max_seconds * sample_rate))
    return read_segment(path, first, length, sample_rate, channels)


def read_clips(system: NeuralCodec, files: Recordings, max_seconds: float) -> Iterator[Tensor]:
    """Yield clips `[1, C, T]` of the readable files at a codec's rate and channels, on its device."""
    for path in files:
        try:
            clip = read_clip(path, system.sample_rate, system.channels, max_seconds)
        except AudioError:
            continue  # its record has the error
        yield system.on_device(torch.from_numpy(clip)[None])


def shown(path: str | Excerpt, root: Path | None) -> str:
    """Name of a file in tables; that of a part ends with its frames, as `:8000-16000`."""
    name = printable(os.path.relpath(path, root) if root else path)
    return named(name, path.span) if isinstance(path, Excerpt) else name


def stamp(path: str | Excerpt) -> list[int]:
    """Size and modification time; a changed file of the same name is evaluated again."""
    try:
        status = archive.status(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
