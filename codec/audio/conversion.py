"""Conversion of sample rates and channels, whole or block by block."""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
import soxr

from codec.audio.errors import AudioError

CONTEXT = 128


def resampled_length(frames: int, sample_rate: int, target_rate: int, speed: Fraction | int = 1) -> int:
    """Number of samples at `target_rate` Hz for `frames` samples at `sample_rate` Hz, rounded down.

    `speed` is a playback factor: at 2, half as many samples remain.
    """
    return frames * target_rate // (sample_rate * speed)


def resampled_span(
    span: tuple[int, int], sample_rate: int, target_rate: int, speed: Fraction | int = 1
) -> tuple[int, int]:
    """First sample and end at `target_rate` Hz of the frames `span` (first, end) at `sample_rate` Hz."""
    first, end = span
    return -(-first * target_rate // (sample_rate * speed)), resampled_length(
        end, sample_rate, target_rate, speed
    )


def convert_blocks(
    blocks: Iterable[np.ndarray],
    rate: int,
    path: str | os.PathLike[str],
    sample_rate: int | None = None,
    channels: int | None = None,
    downmix: str = "mid",
) -> Iterator[np.ndarray]:
    """Resample and mix blocks `[n, C]` at `rate` Hz as in `read_blocks`; errors name `path`."""
    mixed = (_mix(block, channels or block.shape[1], downmix) for block in blocks)
    if sample_rate not in (None, rate):
        mixed = _resample_blocks(mixed, rate, sample_rate)
    for block in mixed:
        yield _finite(np.ascontiguousarray(block.T), path)


def resample(audio: np.ndarray, sample_rate: int, target_rate: int) -> np.ndarray:
    """Resample `audio` `[C, T]` to `[C, resampled_length]`."""
    frames = resampled_length(audio.shape[1], sample_rate, target_rate)
    return soxr.resample(audio.T, sample_rate, target_rate, quality="HQ")[:frames].T


def _resample_blocks(blocks: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    stream, read, written = None, 0, 0
    for block in blocks:
        channels = block.shape[1]
        stream = stream or soxr.ResampleStream(rate, sample_rate, channels, dtype="float32", quality="HQ")
        ready = stream.resample_chunk(block).reshape(-1, channels)
        read, written = read + len(block), written + len(ready)
        yield ready
    if stream is not None:
        rest = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True).reshape(-1, channels)
        # soxr rounds the length up: samples beyond the end are not audio.
        yield rest[: max(0, resampled_length(read, rate, sample_rate) - written)]


def _mix(audio: np.ndarray, channels: int, downmix: str = "mid") -> np.ndarray:
    if audio.shape[1] == channels:
        return audio
    mono = audio.mean(axis=1, keepdims=True)
    if downmix != "mid" and audio.shape[1] > 1:
        mono = audio[:, :1] if downmix == "left" else audio[:, 1:2]
    return mono if channels == 1 else np.repeat(mono, channels, axis=1)


def _finite(audio: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    if not np.isfinite(audio).all():
        raise AudioError(path, "out of range: samples too large to mix and resample; scale them to ±1")
    return audio
