"""Levels of recordings, and the limits beyond which they are not usable."""

from __future__ import annotations

import math
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


def loudness(audio: np.ndarray, sample_rate: int) -> float:
    """Loudness of `[C, T]` in LUFS (ITU-R BS.1770-4), all channels with weight 1; −inf below −70 LUFS."""
    spectrum = np.fft.rfft(audio, audio.shape[1] + sample_rate)  # a second of zeros for the filters' ends
    weighted = np.fft.irfft(spectrum * k_weighting(spectrum.shape[1], sample_rate))
    energy = np.concatenate([[0.0], np.square(weighted[:, : audio.shape[1]]).sum(0).cumsum()])
    size, hop = min(round(0.4 * sample_rate), audio.shape[1]), round(0.1 * sample_rate)
    power = (energy[size:] - energy[:-size])[::hop] / size
    power = power[power > 10 ** ((0.691 - 70) / 10)]
    if not len(power):
        return -math.inf
    return -0.691 + 10 * math.log10(power[power > power.mean() / 10].mean())


def k_weighting(bins: int, sample_rate: int) -> np.ndarray:
    """Frequency response `[bins]` of BS.1770's shelf and high-pass, from 0 to half the sample rate.

    The filters of 48 kHz, transformed to other rates by the frequency, gain and Q of their analog prototypes.
    """
    delay = np.exp(-1j * np.linspace(0, np.pi, bins))
    response = np.ones(bins, complex)
    shelf = 1681.974450955533, 0.7071752369554196, (1.584864701130855, 1.258720930232562, 1.0)
    high_pass = 38.13547087602444, 0.5003270373238773, None
    for frequency, q, gains in (shelf, high_pass):
        k = math.tan(math.pi * frequency / sample_rate)
        poles = np.array([1 - k / q + k * k, 2 * (k * k - 1), 1 + k / q + k * k])
        high, band, low = gains or (poles[2], 0.0, 0.0)  # the standard's high-pass has the zeros 1, −2, 1
        top, middle, bottom = high, band * k / q, low * k * k
        zeros = np.array([top - middle + bottom, 2 * (bottom - top), top + middle + bottom])
        response *= np.polyval(zeros, delay) / np.polyval(poles, delay)
    return response
