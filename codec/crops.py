"""Pieces of audio files: training crops, each a pure function of its number, and validation clips."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codec.audio import AudioError, read_segment, resampled_length, rms
from codec.files import printable
from codec.inventory import DataError, IndexedFile

log = logging.getLogger(__name__)

QUIET_DRAWS, FAILED_DRAWS = 8, 50  # draws for one crop that may be rejected: as silence, on broken files


class Batch(NamedTuple):
    """`audio` float32 `[B, C, T]` and the number of each crop, int64 `[B]`."""

    audio: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training crop; levels in dB relative to full scale.

    silence_db: a crop with an RMS below this is drawn again, up to 8 times; None takes all.
    loudness_db: scale each crop to this RMS.
    gain_db: then a gain drawn uniformly from (lowest, highest) dB. A scaled crop is held within ±1.
    """

    silence_db: float | None = -60.0
    loudness_db: float | None = None
    gain_db: Sequence[float] | None = None

    def __post_init__(self) -> None:
        gain = self.gain_db
        if gain is not None and not (len(gain) == 2 and gain[0] <= gain[1]):
            raise ValueError(f"gain_db must be [lowest, highest] in dB, got {list(gain)}")

    def is_quiet(self, audio: np.ndarray) -> bool:
        """Whether a crop is below `silence_db`."""
        return self.silence_db is not None and rms(audio) < 10 ** (self.silence_db / 20)

    def apply(self, audio: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The crop `[C, T]` at its new level."""
        scale = 1.0
        if self.loudness_db is not None and not self.is_quiet(audio):
            scale = 10 ** (self.loudness_db / 20) / max(rms(audio), 1e-9)
        if self.gain_db is not None:
            lowest, highest = self.gain_db
            scale *= 10 ** (random.uniform(lowest, highest) / 20)
        limit = 1 / max(float(np.abs(audio).max()), 1e-9)
        return audio if scale == 1.0 else audio * np.float32(min(scale, limit))


class Crops(Dataset[Batch]):
    """Random crops of audio files: crop number n is a pure function of the seed, n and the files.

    folders: lists of files with absolute paths. Files are drawn by duration (within a folder, and among
        folders by `weights` when given), starts uniformly.
    shape: length of a crop in samples, sample rate in Hz, channels.
    Silence is drawn again; so is a file that turned out broken, which is logged once.
    """

    def __init__(
        self,
        folders: Sequence[Sequence[IndexedFile]],
        shape: tuple[int, int, int],
        seed: int = 0,
        weights: Sequence[float] | None = None,
        augmentation: Augmentation = Augmentation(),
    ) -> None:
        self.files = list(itertools.chain(*folders))
        seconds = [np.array([file.seconds for file in folder]) for folder in folders]
        if weights is not None:
            seconds = [weight * part / part.sum() for weight, part in zip(weights, seconds, strict=True)]
        self.cumulative = np.cumsum(np.concatenate(seconds))
        self.shape, self.seed, self.augmentation = shape, seed, augmentation
        self.reported: set[str] = set()

    def crop(self, number: int) -> np.ndarray:
        """Crop `number`, float32 `[C, T]`. `DataError` when 50 draws for it met broken files."""
        return self._draw(number)[0]

    def source(self, number: int) -> list[str]:
        """Paths that were tried for crop `number`; the last one is the crop's."""
        return self._draw(number)[1]

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """A whole batch at once: one copy of each crop, and one transfer from a worker."""
        audio = np.stack([self.crop(number) for number in numbers])
        return Batch(torch.from_numpy(audio), torch.tensor(numbers, dtype=torch.int64))

    def _draw(self, number: int) -> tuple[np.ndarray, list[str]]:
        random = np.random.default_rng((self.seed, int(number)))
        tried, failed = list[str](), 0
        while failed < FAILED_DRAWS:
            file, start = self._choose(random)
            tried.append(file.path)
            try:
                audio = read_segment(file.path, start, *self.shape, expected=file.info)
            except AudioError as error:
                failed += 1
                if file.path not in self.reported:
                    self.reported.add(file.path)
                    log.warning("a crop is drawn from another file instead: %s", error)
                continue
            if len(tried) - failed > QUIET_DRAWS or not self.augmentation.is_quiet(audio):
                return self.augmentation.apply(audio, random), tried
        names = ", ".join(printable(path) for path in sorted(set(tried))[:5])
        raise DataError(
            f"crop {number}: {FAILED_DRAWS} draws met files that are not readable any more: {names}"
        )

    def _choose(self, random: np.random.Generator) -> tuple[IndexedFile, int]:
        position = random.random() * self.cumulative[-1]
        chosen = int(np.searchsorted(self.cumulative, position, side="right"))
        file = self.files[min(chosen, len(self.files) - 1)]
        length, sample_rate, _ = self.shape
        room = resampled_length(file.frames, file.sample_rate, sample_rate) - length
        return file, int(random.integers(0, room, endpoint=True))


def read_clips(files: Sequence[IndexedFile], shape: tuple[int, int, int], count: int) -> Tensor:
    """Up to `count` clips `[N, C, T]` of `shape` (samples, Hz, channels), evenly spread over the files.

    Shorter files are left out; when all are, clips are as long as the longest file.
    """
    length, sample_rate, channels = shape
    lengths = [resampled_length(file.frames, file.sample_rate, sample_rate) for file in files]
    length = min(length, max(lengths))
    fitting = [pair for pair in zip(files, lengths, strict=True) if pair[1] >= length]
    clips: dict[tuple[str, int], np.ndarray] = {}
    for number in range(count):
        position = (number + 0.5) * len(fitting) / count
        file, samples = fitting[int(position)]
        start = int(position % 1 * (samples - length))
        try:
            clips[file.path, start] = read_segment(file.path, start, length, sample_rate, channels)
        except AudioError as error:
            log.warning("validation clip left out: %s", error)
    if not clips:
        raise DataError("no validation clip could be read: see the warnings before this")
    return torch.from_numpy(np.stack(list(clips.values())))
