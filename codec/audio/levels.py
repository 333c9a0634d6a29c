"""Levels of recordings, and the limits beyond which they are not usable."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from codec.audio.errors import AudioError

SILENT_PEAK = 1e-4  # a file below −80 dBFS is silent
LARGEST_PEAK = 10.0  # a float file beyond +20 dBFS was never scaled to ±1
CANCELLING = "channels cancel: their mean is silent (antiphase)"


class Levels(NamedTuple):
    """Peak and RMS (linear), share of samples at full scale in runs of three or more.

    `cancels` says that the channels' mean is silent, although they are not.
    """

    peak: float
    rms: float
    clipped: float
    cancels: bool


def measure(blocks: Iterable[np.ndarray], path: str | os.PathLike[str]) -> Levels:
    """Measure all blocks `[T, C]` of a file; `AudioError` when it is silent, or was never scaled to ±1."""
    peak, mid, energy, clipped, samples = 0.0, 0.0, 0.0, 0, 0
    for block in blocks:
        magnitude = np.abs(block)
        highest = float(magnitude.max())
        peak = max(peak, highest)
        mid = max(mid, float(np.abs(block.mean(axis=1)).max())) if block.shape[1] > 1 else peak
        energy += float(np.square(block, dtype=np.float64).sum())
        samples += block.size
        if highest >= 0.999:
            hot = np.pad(magnitude >= 0.999, ((2, 2), (0, 0)))
            run = hot[:-2] & hot[1:-1] & hot[2:]
            clipped += int((run[:-2] | run[1:-1] | run[2:]).sum())
    check_peak(peak, path)
    return Levels(peak, (energy / samples) ** 0.5, clipped / samples, mid < SILENT_PEAK)


def check_peak(peak: float, path: str | os.PathLike[str]) -> None:
    """Raise `AudioError` for a file that is silent, or was never scaled to ±1."""
    if peak < SILENT_PEAK:
        raise AudioError(path, f"silent: no sample above {20 * np.log10(SILENT_PEAK):.0f} dBFS")
    check_range(peak, path)


def check_range(peak: float, path: str | os.PathLike[str]) -> None:
    """Raise `AudioError` for a file that was never scaled to ±1."""
    if peak > LARGEST_PEAK:
        raise AudioError(path, f"out of range: samples reach {peak:.3g}; scale them to ±1")


def within_range(blocks: Iterable[np.ndarray], path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """The blocks of a file; `AudioError` at the first that was never scaled to ±1, as 16-bit integers."""
    for block in blocks:
        check_range(float(np.abs(block).max(initial=0)), path)
        yield block
