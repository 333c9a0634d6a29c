"""What happens to a training crop, so that few recordings go further: speed, a second voice, filters, levels.

Crops are float32 `[C, T]`. Everything is drawn from the generator that is passed in, and what is off draws
nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Protocol

import numpy as np
from numpy.random import Generator

from codec.audio import rms

FINEST_RATIO = 128  # largest denominator; soxr takes twice as long for ratios that are not of small numbers
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
    """True with the given probability; nothing is drawn for 0."""
    return probability > 0 and random.random() < probability


def uniform(limits: Sequence[float], random: Generator) -> float:
    """A value drawn uniformly from (lowest, highest)."""
    lowest, highest = limits
    return random.uniform(lowest, highest)


def held(audio: np.ndarray) -> np.ndarray:
    """The crop, scaled to a peak of 1 if it is higher."""
    return audio / max(1.0, float(np.abs(audio).max()))


@dataclass(frozen=True)
class Mix:
    """A second crop under the first.

    probability: of a crop to be mixed.
    level_db: the second crop's RMS relative to the first's, drawn uniformly from (lowest, highest) dB.
    """

    probability: float = 0.0
    level_db: Sequence[float] = (-10.0, 0.0)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_range("level_db", self.level_db, "in dB")

    def apply(self, first: np.ndarray, second: np.ndarray, random: Generator) -> np.ndarray:
        """The sum `[C, T]`, held within ±1."""
        level = 10 ** (uniform(self.level_db, random) / 20)
        return held(first + second * np.float32(level * rms(first) / max(rms(second), 1e-9)))


class Filter(Protocol):
    """A linear filter without delay."""

    def gains(self, frequencies: np.ndarray, random: Generator) -> np.ndarray | None:
        """Linear gain at each of the `frequencies` `[F]` in Hz; None leaves the crop as it is."""
        ...


@dataclass(frozen=True)
class Equalizer:
    """A random smooth frequency response, as of another microphone or room.

    probability: of a crop to be filtered.
    gain_db: each octave's gain is drawn uniformly from (lowest, highest) dB; between octaves it is linear in
        dB over log-frequency.
    """

    probability: float = 0.0
    gain_db: Sequence[float] = (-6.0, 6.0)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_range("gain_db", self.gain_db, "in dB")

    def gains(self, frequencies: np.ndarray, random: Generator) -> np.ndarray | None:
        """As in `Filter`."""
        if not happens(self.probability, random):
            return None
        levels = [uniform(self.gain_db, random) for _ in OCTAVES]
        decibels = np.interp(np.log2(np.maximum(frequencies, 1.0)), np.log2(OCTAVES), levels)
        return np.exp(np.log(10) / 20 * decibels)


@dataclass(frozen=True)
class BandLimit:
    """A low-pass at a random frequency, as of a telephone or an old recording.

    probability: of a crop to be filtered.
    cutoff_hz: the frequency at −3 dB is drawn log-uniformly from (lowest, highest) Hz; the response is that
        of a Butterworth filter of order 8.
    """

    probability: float = 0.0
    cutoff_hz: Sequence[float] = (3000.0, 8000.0)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_range("cutoff_hz", self.cutoff_hz, "in Hz", above=0)

    def gains(self, frequencies: np.ndarray, random: Generator) -> np.ndarray | None:
        """As in `Filter`."""
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
    """The crop `[C, T]` through all filters with one transform, held within ±1; mirrored at its ends."""
    samples = audio.shape[1]
    before = round(PADDING * sample_rate)
    length = -(-(samples + 2 * before) // 512) * 512  # the transform is fast for a product of small numbers
    frequencies = bins(length, sample_rate)
    gains = [found for part in filters if (found := part.gains(frequencies, random)) is not None]
    if not gains:
        return audio
    padded = np.pad(audio, ((0, 0), (before, length - samples - before)), mode="reflect")
    spectrum = np.fft.rfft(padded) * np.prod(gains, axis=0, dtype=np.float32)
    return held(np.fft.irfft(spectrum, length)[:, before : before + samples])


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training crop, in this order; levels in dB relative to full scale.

    silence_db: a crop with an RMS below this is drawn again, up to 8 times; None takes all.
    speed: play each crop at a speed drawn uniformly from (slowest, fastest), pitch and tempo together; 1.0
        where the file is too short for a faster one.
    mix: a second crop under the first.
    filters: by names of their own.
    loudness_db: scale each crop to this RMS.
    gain_db: then a gain drawn uniformly from (lowest, highest) dB. A changed crop is held within ±1.
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
        """Whether a crop is below `silence_db`."""
        return self.silence_db is not None and rms(audio) < 10 ** (self.silence_db / 20)

    def draw_speed(self, sample_rate: int, target_rate: int, random: Generator) -> Fraction | int:
        """The speed of a crop of a file of `sample_rate` Hz, rounded to one that is fast to resample."""
        if self.speed is None:
            return 1
        ratio = uniform(self.speed, random) * sample_rate / target_rate
        return Fraction(ratio).limit_denominator(FINEST_RATIO) * Fraction(target_rate, sample_rate)

    def apply(self, audio: np.ndarray, sample_rate: int, random: Generator) -> np.ndarray:
        """The crop `[C, T]`, filtered and at its new level."""
        audio = apply_filters(audio, sample_rate, list(self.filters.values()), random)
        scale = 1.0
        if self.loudness_db is not None and not self.is_quiet(audio):
            scale = 10 ** (self.loudness_db / 20) / max(rms(audio), 1e-9)
        if self.gain_db is not None:
            scale *= 10 ** (uniform(self.gain_db, random) / 20)
        limit = 1 / max(float(np.abs(audio).max()), 1e-9)
        return audio if scale == 1.0 else audio * np.float32(min(scale, limit))
