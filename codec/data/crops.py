"""Training crops, each a pure function of its number, and validation clips."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codec.audio.reading import AudioError, read_segment
from codec.data.augmentation import Augmentation, happens
from codec.data.degradation import Degraded, Degrader
from codec.data.index import DataError, IndexedFile
from codec.system.files import printable

log = logging.getLogger(__name__)

QUIET_DRAWS, FAILED_DRAWS = 8, 50  # most draws of a crop that are rejected as silent, or as unreadable
PAUSES = 1, 2, 4, 8, 15, 30  # seconds between attempts, for a network folder to return


class Batch(NamedTuple):
    """Input and target of the codec, float32 `[B, C, T]`, condition and number of each crop, int64 `[B]`.

    The condition is 1 where the target is clean although the input may be noisy, see `Degradation`.
    `features` `[B, D, F]` are those of `Features`, if the data have any.
    """

    audio: Tensor
    target: Tensor
    condition: Tensor
    numbers: Tensor
    features: Tensor | None = None

    @classmethod
    def of(cls, audio: Tensor, numbers: Tensor) -> Batch:
        """Batch whose target is its audio."""
        return cls(audio, audio, torch.zeros_like(numbers), numbers)


class Place(NamedTuple):
    """Source of a crop: a file, the first sample at the crops' rate, and the playback speed."""

    file: IndexedFile
    start: int
    speed: Fraction | int


class Drawn(NamedTuple):
    """A crop, its source, and the paths that were drawn for it, then for the crop mixed with it."""

    crop: Degraded
    place: Place
    paths: list[str]


class Features(Protocol):
    """Features of recordings in time, such as a teacher's, that are read with each crop."""

    def require(self, files: Sequence[IndexedFile]) -> None:
        """Raise ConfigError unless there are features of all files, which have absolute paths."""
        ...

    def read(self, path: str, start: int, length: int, sample_rate: int) -> np.ndarray:
        """Features, float32 `[D, F]`, of `length` samples of a file from `start`, at `sample_rate` Hz."""
        ...


class Crops(Dataset[Batch]):
    """Random crops of audio files: crop n is a pure function of the seed, n and the files.

    folders: lists of files with absolute paths. Folders are drawn by `weights` or duration, files within a
        folder by duration and their own weights, starts uniformly.
    shape: length of a crop in samples, sample rate in Hz, channels.
    features: those of each crop's recording, for crops that are not mixed and have its speed.
    Silent crops and unreadable files are drawn again; an unreadable file is logged once. If no file can be
        read, as in a disconnected network folder, drawing is retried for a minute.
    """

    def __init__(
        self,
        folders: Sequence[Sequence[IndexedFile]],
        shape: tuple[int, int, int],
        seed: int = 0,
        weights: Sequence[float] | None = None,
        augmentation: Augmentation = Augmentation(),
        degrader: Degrader | None = None,
        features: Features | None = None,
    ) -> None:
        self.files = list(itertools.chain(*folders))
        seconds = [np.array([file.seconds * file.weight for file in folder]) for folder in folders]
        if weights is not None:
            seconds = [weight * part / part.sum() for weight, part in zip(weights, seconds, strict=True)]
        self.cumulative = np.cumsum(np.concatenate(seconds))
        self.shape, self.seed, self.augmentation, self.degrader = shape, seed, augmentation, degrader
        self.features = features
        if features is not None:
            augmentation.require_recording()
            features.require(self.files)
        self.reported: set[str] = set()

    def crop(self, number: int) -> np.ndarray:
        """Input of crop `number`, float32 `[C, T]`; `DataError` after 50 draws of unreadable files."""
        return self._draw(number).crop.audio

    def source(self, number: int) -> list[str]:
        """Paths drawn for crop `number`, then for the crop mixed with it; the last path of each is used."""
        return self._draw(number).paths

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Load a batch: one copy of each crop, and one transfer from a worker."""
        drawn = [self._draw(number) for number in numbers]
        audio, numbered = torch.from_numpy(np.stack([one.crop.audio for one in drawn])), torch.tensor(numbers)
        batch = Batch.of(audio, numbered)
        if self.degrader is not None:
            target = torch.from_numpy(np.stack([one.crop.target for one in drawn]))
            batch = batch._replace(target=target, condition=torch.tensor([one.crop.clean for one in drawn]))
        if self.features is not None:
            read, shape = self.features.read, self.shape[:2]
            features = [read(place.file.path, place.start, *shape) for _, place, _ in drawn]
            batch = batch._replace(features=torch.from_numpy(np.stack(features)))
        return batch

    def _draw(self, number: int) -> Drawn:
        for pause in PAUSES:
            try:
                return self._try(number)
            except DataError as error:
                log.warning("%s; trying again in %d s", error, pause)
                time.sleep(pause)
        return self._try(number)

    def _try(self, number: int) -> Drawn:
        random = np.random.default_rng((self.seed, int(number)))
        audio, place, tried = self._read(number, random)
        if happens(self.augmentation.mix.probability, random):
            second, _, others = self._read(number, random)
            if not self.augmentation.is_quiet(second):
                audio = self.augmentation.mix.apply(audio, second, random)
            tried += others
        audio = self.augmentation.apply(audio, self.shape[1], random)
        if self.degrader is None:
            return Drawn(Degraded(audio, audio, 0), place, tried)
        try:
            return Drawn(self.degrader.apply(audio, random), place, tried)
        except AudioError as error:
            raise DataError(f"crop {number}: noise or room not readable any more: {error}") from error

    def _read(self, number: int, random: np.random.Generator) -> tuple[np.ndarray, Place, list[str]]:
        tried, failed = list[str](), list[AudioError]()
        while len(failed) < FAILED_DRAWS:
            place = self._choose(random)
            file = place.file
            tried.append(file.path)
            try:
                audio = read_segment(
                    file.path, place.start, *self.shape, expected=file.info, speed=place.speed
                )
            except AudioError as error:
                failed.append(error)
                continue
            if len(tried) - len(failed) > QUIET_DRAWS or not self.augmentation.is_quiet(audio):
                self._report(failed)
                return audio, place, tried
        names = ", ".join(printable(path) for path in sorted(set(tried))[:5])
        raise DataError(
            f"crop {number}: {FAILED_DRAWS} draws met files that are not readable any more: {names} (last: "
            f"{failed[-1].reason})"
        )

    def _report(self, errors: Sequence[AudioError]) -> None:
        for error in errors:
            if str(error.path) not in self.reported:
                self.reported.add(str(error.path))
                log.warning("a crop is drawn from another file instead: %s", error)

    def _choose(self, random: np.random.Generator) -> Place:
        position = random.random() * self.cumulative[-1]
        chosen = int(np.searchsorted(self.cumulative, position, side="right"))
        file = self.files[min(chosen, len(self.files) - 1)]
        length, sample_rate, _ = self.shape
        speed = self.augmentation.draw_speed(file.sample_rate, sample_rate, random)
        first, end = file.range_at(sample_rate, speed)
        if end - first < length:
            speed, (first, end) = 1, file.range_at(sample_rate)
        return Place(file, first + int(random.integers(0, end - first - length, endpoint=True)), speed)


def read_clips(files: Sequence[IndexedFile], shape: tuple[int, int, int], count: int) -> Tensor:
    """Up to `count` clips `[N, C, T]` of `shape` (samples, Hz, channels), evenly spread over the files.

    Shorter files are skipped; if all files are shorter, clips are as long as the longest file.
    """
    length, sample_rate, channels = shape
    spans = [file.range_at(sample_rate) for file in files]
    length = min(length, max(end - first for first, end in spans))
    fitting = [(file, *span) for file, span in zip(files, spans, strict=True) if span[1] - span[0] >= length]
    clips: dict[tuple[str, int], np.ndarray] = {}
    for number in range(count):
        position = (number + 0.5) * len(fitting) / count
        file, first, end = fitting[int(position)]
        start = first + int(position % 1 * (end - first - length))
        try:
            clips[file.path, start] = read_segment(file.path, start, length, sample_rate, channels)
        except AudioError as error:
            log.warning("validation clip left out: %s", error)
    if not clips:
        raise DataError("no validation clip could be read: see the warnings before this")
    return torch.from_numpy(np.stack(list(clips.values())))
