"""Augmentation of training crops: speed, mixing, filters, loudness and gain.

Crops are float32 `[C, T]`. All random draws use the generator passed in; a disabled augmentation draws
nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Protocol

import numpy as np
from numpy.random import Generator

from codec.audio.reading import rms
from codec.config import ConfigError

FINEST_RATIO = 128  # largest denominator; soxr takes twice as long for ratios of large numbers
PADDING = 0.05  # seconds mirrored at each end before filtering: the filters ring for less
OCTAVES = 62.5 * 2.0 ** np.arange(9)  # Hz
STEEPNESS = 8  # order of the Butterworth response


def check_range(name: str, values: Sequence[float], unit: str, above: float = -np.inf) -> None:
    """ValueError unless `values` are [lowest, highest], finite and greater than `above`."""
    if not (len(values) == 2 and above < values[0] <= values[1] < np.inf):
        rule = "" if above == -np.inf else f", above {above:g}"
        raise ValueError(f"{name} must be [lowest, highest] {unit}{rule}, got {list(values)}")


def check_probability(probability: float) -> None:
    """ValueError unless it lies between 0 and 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")


def happens(probability: float, random: Generator) -> bool:
    """True with probability `probability`; no draw for 0."""
    return probability > 0 and random.random() < probability


def uniform(limits: Sequence[float], random: Generator) -> float:
    """Draw uniformly from (lowest, highest)."""
    lowest, highest = limits
    return random.uniform(lowest, highest)


def held(audio: np.ndarray) -> np.ndarray:
    """Scale a crop down to a peak of 1 if it is higher."""
    return audio / max(1.0, float(np.abs(audio).max()))


@dataclass(frozen=True)
class Mix:
    """Mixes a second crop `[C, T]` into the first `[C, T]`, as in EnCodec's training (arXiv 2210.13438).

    probability: probability of mixing.
    level_db: the second crop's RMS relative to the first's, drawn uniformly from (lowest, highest) dB.
    """

    probability: float = 0.0
    level_db: Sequence[float] = (-10.0, 0.0)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_range("level_db", self.level_db, "in dB")

    def apply(self, first: np.ndarray, second: np.ndarray, random: Generator) -> np.ndarray:
        """Sum `[C, T]` of both crops, scaled to within ±1."""
        level = 10 ** (uniform(self.level_db, random) / 20)
        return held(first + second * np.float32(level * rms(first) / max(rms(second), 1e-9)))


class Filter(Protocol):
    """Zero-phase linear filter."""

    def gains(self, frequencies: np.ndarray, random: Generator) -> np.ndarray | None:
        """Linear gain at each of the `frequencies` `[F]` in Hz; None for no filtering."""
        ...


@dataclass(frozen=True)
class Equalizer:
    """Random smooth frequency response, as of another microphone or room: gains `[F]` at frequencies `[F]`.

    Original to this project: octave bands with random gains.

    probability: probability of filtering.
    gain_db: each octave's gain is drawn uniformly from (lowest, highest) dB; between octaves it is linear in
        dB over log-frequency.
    """

    probability: float = 0.0
    gain_db: Sequence[float] = (-6.0, 6.0)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_range("gain_db", self.gain_db, "in dB")

    def gains(self, frequencies: np.ndarray, random: Generator) -> np.ndarray | None:
        """Gains, see `Filter`."""
        if not happens(self.probability, random):
            return None
        levels = [uniform(self.gain_db, random) for _ in OCTAVES]
        decibels = np.interp(np.log2(np.maximum(frequencies, 1.0)), np.log2(OCTAVES), levels)
        return np.exp(np.log(10) / 20 * decibels)


@dataclass(frozen=True)
class BandLimit:
    """Low-pass with a random cutoff, as of a telephone: gains `[F]` at frequencies `[F]`.

    Butterworth's response (Butterworth 1930) with zero phase; the random cutoff is original to this project.

    probability: probability of filtering.
    cutoff_hz: the frequency at −3 dB is drawn log-uniformly from (lowest, highest) Hz; the response is that
        of a Butterworth filter of order 8.
    """

    probability: float = 0.0
    cutoff_hz: Sequence[float] = (3000.0, 8000.0)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_range("cutoff_hz", self.cutoff_hz, "in Hz", above=0)

    def gains(self, frequencies: np.ndarray, random: Generator) -> np.ndarray | None:
        """Gains, see `Filter`."""
        if not happens(self.probability, random):
            return None
        lowest, highest = self.cutoff_hz
        cutoff = lowest * (highest / lowest) ** random.random()
        return (1 + (frequencies / cutoff) ** (2 * STEEPNESS)) ** -0.5


@cache
def bins(length: int, sample_rate: int) -> np.ndarray:
    """Frequencies in Hz, float32 `[length / 2 + 1]`, of a transform of `length` samples."""
    return np.fft.rfftfreq(length, 1 / sample_rate).astype(np.float32)


def apply_filters(
    audio: np.ndarray, sample_rate: int, filters: Sequence[Filter], random: Generator
) -> np.ndarray:
    """Apply all filters to a crop `[C, T]` with one FFT and mirrored ends; the result is within ±1."""
    samples = audio.shape[1]
    padding = round(PADDING * sample_rate)
    length = -(-(samples + 2 * padding) // 512) * 512  # FFTs are fast for products of small primes
    frequencies = bins(length, sample_rate)
    gains = [gain for part in filters if (gain := part.gains(frequencies, random)) is not None]
    if not gains:
        return audio
    padded = np.pad(audio, ((0, 0), (padding, length - samples - padding)), mode="reflect")
    spectrum = np.fft.rfft(padded) * np.prod(gains, axis=0, dtype=np.float32)
    return held(np.fft.irfft(spectrum, length)[:, padding : padding + samples])


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a training crop `[C, T] -> [C, T]`; levels in dB relative to full scale.

    Speed perturbation is that of Ko et al. 2015, mixing and random gain are those of EnCodec's training
    (arXiv 2210.13438).

    silence_db: a crop with an RMS below this is drawn again, up to 8 times; None accepts all crops.
    speed: playback speed drawn uniformly from (slowest, fastest), changing pitch and tempo; 1.0 if the file
        is too short for a faster one.
    mix: mixing with a second crop.
    filters: filters by arbitrary names.
    loudness_db: RMS that each crop is scaled to.
    gain_db: gain after that, drawn uniformly from (lowest, highest) dB. A scaled crop stays within ±1.
    """

    silence_db: float | None = -60.0
    loudness_db: float | None = None
    gain_db: Sequence[float] | None = None
    speed: Sequence[float] | None = None
    mix: Mix = Mix()
    filters: Mapping[str, Filter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gain_db is not None:
            check_range("gain_db", self.gain_db, "in dB")
        if self.speed is not None:
            check_range("speed", self.speed, "as factors", above=0)

    def is_quiet(self, audio: np.ndarray) -> bool:
        """True if a crop's RMS is below `silence_db`."""
        return self.silence_db is not None and rms(audio) < 10 ** (self.silence_db / 20)

    def require_recording(self) -> None:
        """Raise ConfigError if crops may have another speed than their recording, or be mixed."""
        if self.speed is not None or self.mix.probability:
            raise ConfigError(
                "data.features: they are of recordings at their speed and alone: set data.augmentation.speed="
                "null and data.augmentation.mix.probability=0, or choose teacher=transformers"
            )

    def draw_speed(self, sample_rate: int, target_rate: int, random: Generator) -> Fraction | int:
        """Draw a speed for a file of `sample_rate` Hz, rounded to a ratio that is fast to resample."""
        if self.speed is None:
            return 1
        ratio = uniform(self.speed, random) * sample_rate / target_rate
        return Fraction(ratio).limit_denominator(FINEST_RATIO) * Fraction(target_rate, sample_rate)

    def apply(self, audio: np.ndarray, sample_rate: int, random: Generator) -> np.ndarray:
        """Filter and scale a crop `[C, T]`."""
        audio = apply_filters(audio, sample_rate, list(self.filters.values()), random)
        scale = 1.0
        if self.loudness_db is not None and not self.is_quiet(audio):
            scale = 10 ** (self.loudness_db / 20) / max(rms(audio), 1e-9)
        if self.gain_db is not None:
            scale *= 10 ** (uniform(self.gain_db, random) / 20)
        if scale == 1.0:
            return audio
        limit = 1 / max(float(np.abs(audio).max()), 1e-9)
        return audio * np.float32(min(scale, limit))
