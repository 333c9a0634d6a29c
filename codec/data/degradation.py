"""Recorded noise and rooms added to training crops, for noise robustness and joint denoising."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from codec.audio.reading import AudioError, read_segment, rms
from codec.data.augmentation import check_probability, check_range, happens, held, uniform
from codec.data.index import IndexedFile
from codec.system.sources import Roots

LONGEST_ROOM = 2.0  # seconds of an impulse response that are used, from its direct sound on
LONGEST_FILE = 30.0  # seconds of a file in which the direct sound is looked for
QUIETEST_ROOM = 1e-4  # amplitude of the direct sound, linear; lower ones are no responses
DRAWS = 20  # of files that are not readable


@dataclass(frozen=True)
class Noise:
    """Adds a recording of noise to a crop, `[C, T]` to `[C, T]`, as in SoundStream (arXiv 2107.03312).

    root: folder or folders of noise, searched with all sub-folders; None for no noise.
    probability: share of the crops with noise.
    snr_db: RMS of the crop over that of the noise, drawn uniformly from (lowest, highest) dB.
    """

    root: Roots | None = None
    probability: float = 0.8
    snr_db: Sequence[float] = (0.0, 20.0)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_range("snr_db", self.snr_db, "in dB")


@dataclass(frozen=True)
class Rooms:
    """Convolves a crop, `[C, T]` to `[C, T]`, with a room impulse response, aligned to its direct sound.

    Common augmentation of speech, Ko et al. 2017.

    root: folder or folders of impulse responses; None for no rooms.
    probability: share of the crops with a room.
    """

    root: Roots | None = None
    probability: float = 0.3

    def __post_init__(self) -> None:
        check_probability(self.probability)


@dataclass(frozen=True)
class Degradation:
    """Noise and rooms for crops `[C, T]`, and the share of targets `[C, T]` that are clean.

    clean_target: share of the crops that the codec shall clean; the others shall be reproduced as they are.
        1 trains a codec that always cleans, 0 one that is robust to noise, a share between them one with a
        condition (`conditioning=clean`), see SoundStream (2107.03312), section III-F.
    """

    noise: Noise = Noise()
    rooms: Rooms = Rooms()
    clean_target: float = 0.0

    def __post_init__(self) -> None:
        check_probability(self.clean_target)
        if self.clean_target and not self.is_active:
            raise ValueError("clean_target needs noise or rooms: set noise.root or rooms.root to a folder")

    @property
    def is_active(self) -> bool:
        """True if there is a folder of noise or rooms."""
        return self.noise.root is not None or self.rooms.root is not None


class Degraded(NamedTuple):
    """Input and target of the codec `[C, T]`; `clean` is 1 if the target is without noise and room."""

    audio: np.ndarray
    target: np.ndarray
    clean: int


class Degrader:
    """Degrades crops with the recordings of a `Degradation`.

    noises, rooms: files with absolute paths; noise is drawn by duration, rooms uniformly.
    shape: length of a crop in samples, sample rate in Hz, channels.
    """

    def __init__(
        self,
        options: Degradation,
        noises: Sequence[IndexedFile],
        rooms: Sequence[IndexedFile],
        shape: tuple[int, int, int],
    ):
        self.options, self.shape = options, shape
        self.noises, self.rooms = (
            [file for file in files if file.samples_at(shape[1])] for files in (noises, rooms)
        )
        self.cumulative = np.cumsum([file.seconds for file in self.noises])

    def apply(self, crop: np.ndarray, random: Generator) -> Degraded:
        """Degrade a clean crop `[C, T]`; input and target are scaled alike, to within ±1."""
        noise, rooms = self.options.noise, self.options.rooms
        audio = crop
        if self.rooms and happens(rooms.probability, random):
            audio = reverberate(audio, self.draw_room(random))
        if self.noises and happens(noise.probability, random):
            added = self.draw_noise(random)
            gain = rms(audio) / max(rms(added), 1e-9) * 10 ** (-uniform(noise.snr_db, random) / 20)
            audio = audio + np.float32(gain) * added
        clean = happens(self.options.clean_target, random)
        pair = held(np.stack([audio, crop if clean else audio]))
        return Degraded(pair[0], pair[1], int(clean))

    def draw_noise(self, random: Generator) -> np.ndarray:
        """Random crop of the noise, float32 `[C, T]`; shorter recordings are repeated."""

        def read() -> np.ndarray:
            position = random.random() * self.cumulative[-1]
            chosen = int(np.searchsorted(self.cumulative, position, side="right"))
            file = self.noises[min(chosen, len(self.noises) - 1)]
            length, sample_rate, channels = self.shape
            first, end = file.range_at(sample_rate)
            size = min(length, end - first)
            start = first + int(random.integers(0, end - first - size, endpoint=True))
            part = read_segment(file.path, start, size, sample_rate, channels, expected=file.info)
            return np.tile(part, -(-length // size))[:, :length]

        return first_readable(read)

    def draw_room(self, random: Generator) -> np.ndarray:
        """Random impulse response, float32 `[T]`, from its direct sound on, which has an amplitude of 1.

        It is the first channel: the mean of channels of opposite phase is silent.
        """

        def read() -> np.ndarray:
            file = self.rooms[int(random.integers(len(self.rooms)))]
            sample_rate = self.shape[1]
            first, end = file.range_at(sample_rate)
            size = min(end - first, round(LONGEST_FILE * sample_rate))
            response = read_segment(file.path, first, size, sample_rate, file.channels, expected=file.info)[0]
            direct = int(np.abs(response).argmax())
            if abs(response[direct]) < QUIETEST_ROOM:
                raise AudioError(file.path, "no impulse response: its first channel is silent")
            return response[direct : direct + round(LONGEST_ROOM * sample_rate)] / response[direct]

        return first_readable(read)


def first_readable(read: Callable[[], np.ndarray]) -> np.ndarray:
    """First result of several draws, without those of files that are not readable any more.

    AudioError of the last one if all fail.
    """
    for _ in range(DRAWS - 1):
        with suppress(AudioError):
            return read()
    return read()


def reverberate(audio: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve a crop `[C, T]` with an impulse response `[R]`; the length is unchanged."""
    samples = audio.shape[1]
    length = -(-(samples + len(response)) // 512) * 512
    spectrum = np.fft.rfft(audio, length) * np.fft.rfft(response, length)
    return np.fft.irfft(spectrum, length)[:, :samples].astype(np.float32)
