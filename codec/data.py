"""Folders of audio as endless, exactly repeatable training batches; the validation clips beside them."""

import atexit
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from codec import distributed
from codec.audio import AudioError, printable, read_segment, resampled_length
from codec.index import DataError, Index, IndexedFile, has_audio, scan, split

log = logging.getLogger(__name__)

QUIET_DRAWS = 8  # draws that may be rejected as silence, for one crop
FAILED_DRAWS = 50  # draws that may fail on broken files, for one crop


class Batch(NamedTuple):
    """`audio` float32 `[B, C, T]` and the number of each crop, int64 `[B]`."""

    audio: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training crop; levels in dB relative to full scale.

    silence_db: a crop with an RMS below this is drawn again, up to 8 times; None takes all.
    loudness_db: scale each crop to this RMS.
    gain_db: then change its level by a gain drawn uniformly from (lowest, highest) dB.
    A scaled crop is held within ±1.
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
        if scale == 1.0:
            return audio
        return audio * np.float32(min(scale, 1 / max(float(np.abs(audio).max()), 1e-9)))


@dataclass(frozen=True)
class Validation:
    """The held-out part: the share of files, and the clips of it that are scored during training.

    `clips` of `seconds` (None: twice the training crop, at least one second) are spread evenly over the
    held-out files that are long enough; if none is, clips are as long as the longest of them.
    """

    fraction: float = 0.05
    clips: int = 16
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {self.fraction}")
        if self.clips < 1:
            raise ValueError(f"clips must be at least 1, got {self.clips}")
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")


class Crops(Dataset[Batch]):
    """Random crops of audio files: crop number n is a pure function of the seed, n and the files.

    Files are drawn by duration (within each index, and among indexes by `weights` when given), starts
    uniformly. Silence is drawn again; so is a file that turned out broken, which is logged once.
    """

    def __init__(
        self,
        indexes: Sequence[Index],
        length: int,
        sample_rate: int,
        channels: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.files = [(index.root, file) for index in indexes for file in index.usable]
        seconds = [np.array([file.seconds for file in index.usable]) for index in indexes]
        if weights is not None:
            seconds = [weight * part / part.sum() for weight, part in zip(weights, seconds, strict=True)]
        self.cumulative = np.cumsum(np.concatenate(seconds))
        self.length, self.sample_rate, self.channels = length, sample_rate, channels
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self.reported: set[str] = set()

    def crop(self, number: int) -> np.ndarray:
        """Crop `number`: float32 `[C, T]`. `DataError` when 50 draws in a row meet broken files."""
        return self._draw(number)[0]

    def source(self, number: int) -> list[str]:
        """Paths that were tried for crop `number`; the last one is the crop's."""
        return self._draw(number)[1]

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """A whole batch at once, so that no example is copied into place by a collate function."""
        audio = np.empty((len(numbers), self.channels, self.length), np.float32)
        for row, number in zip(audio, numbers, strict=True):
            row[:] = self.crop(number)
        return Batch(torch.from_numpy(audio), torch.tensor(numbers, dtype=torch.int64))

    def _draw(self, number: int) -> tuple[np.ndarray, list[str]]:
        random = np.random.default_rng((self.seed, int(number)))
        tried: list[str] = []
        failed = 0
        while failed < FAILED_DRAWS:
            path, file, start = self._choose(random)
            tried.append(path)
            try:
                audio = read_segment(
                    path, start, self.length, self.sample_rate, self.channels, expected=file.info
                )
            except AudioError as error:
                self._report(error)
                failed += 1
                continue
            if len(tried) - failed > QUIET_DRAWS or not self.augmentation.is_quiet(audio):
                return self.augmentation.apply(audio, random), tried
        names = ", ".join(printable(path) for path in sorted(set(tried))[:5])
        raise DataError(
            f"{FAILED_DRAWS} draws for crop {number} met files that cannot be read any more: {names}"
        )

    def _choose(self, random: np.random.Generator) -> tuple[str, IndexedFile, int]:
        position = random.random() * self.cumulative[-1]
        chosen = min(int(np.searchsorted(self.cumulative, position, side="right")), len(self.files) - 1)
        root, file = self.files[chosen]
        room = resampled_length(file.frames, file.sample_rate, self.sample_rate) - self.length
        return os.path.join(root, file.path), file, int(random.integers(0, room, endpoint=True))

    def _report(self, error: AudioError) -> None:
        path = os.fspath(error.path)
        if path not in self.reported:
            self.reported.add(path)
            log.warning("a crop is drawn from another file instead: %s", error)


class CropBatches(Sampler[list[int]]):
    """Endless crop numbers, batch after batch, from where training stands.

    The joint batch of all processes is cut into equal contiguous parts, so that they see together what
    a single process would see. `seen` is asked anew by every iterator: batches that a loader had
    prefetched and dropped come again.
    """

    def __init__(self, batch_size: int, seen: Callable[[], int], rank: int = 0, world_size: int = 1) -> None:
        if batch_size % world_size:
            raise ValueError(
                f"batch_size={batch_size} is the joint batch of all processes: {world_size} of them "
                f"cannot share it equally; take a multiple of {world_size}"
            )
        self.batch_size, self.seen = batch_size, seen
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.world_size
        start = self.seen() + self.rank * share
        while True:
            yield list(range(start, start + share))
            start += self.batch_size


class ClipBatches:
    """Validation batches from clips `[C, T]` that are held in memory: nothing to read, nothing to fail."""

    def __init__(self, clips: Sequence[np.ndarray], numbers: Sequence[int], batch_size: int) -> None:
        self.clips = clips
        self.portions = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]

    def __len__(self) -> int:
        return len(self.portions)

    def __iter__(self) -> Iterator[Batch]:
        for numbers in self.portions:
            audio = np.stack([self.clips[number] for number in numbers])
            yield Batch(torch.from_numpy(audio), torch.tensor(numbers))


class AudioData(LightningDataModule):
    """Training batches and validation clips from one folder of audio or several.

    root: folder, or folders, searched with all their sub-folders; `weights` sets how often each is
        drawn (None: by duration).
    batch_size: crops of `segment_seconds` in a step, of all processes together.
    augmentation, validation: levels of the crops; the held-out part. None takes the defaults.
    index: makes the `Index` of a folder; `codec.index.scan`, or a partial of it.
    generate: called with a root that holds no audio, to write some.

    Raises `ValueError` for an impossible option and, once the folders are read, `DataError` when one
    has no usable file. `state_dict` is the count of crops that training has used.
    """

    def __init__(
        self,
        root: str | list[str],
        sample_rate: int,
        channels: int = 1,
        segment_seconds: float = 1.0,
        batch_size: int = 16,
        weights: list[float] | None = None,
        seed: int = 0,
        num_workers: int = 2,
        augmentation: Augmentation | None = None,
        validation: Validation | None = None,
        index: Callable[[str], Index] = scan,
        generate: Callable[[str], Any] | None = None,
    ) -> None:
        super().__init__()
        self.roots = [root] if isinstance(root, str | os.PathLike) else list(root)
        positive = {"sample_rate": sample_rate, "channels": channels, "batch_size": batch_size}
        check_above(0, **positive, segment_seconds=segment_seconds)
        check_above(-1, seed=seed, num_workers=num_workers)
        if not self.roots:
            raise ValueError("root must name at least one folder")
        if weights is not None and (len(weights) != len(self.roots) or min(weights) <= 0):
            raise ValueError(f"weights must be one positive number a root ({len(self.roots)}), got {weights}")
        self.sample_rate, self.channels = sample_rate, channels
        self.segment_length = max(1, round(segment_seconds * sample_rate))
        self.batch_size, self.num_workers = batch_size, num_workers
        self.weights, self.seed = weights, seed
        self.augmentation = augmentation or Augmentation()
        self.validation = validation or Validation()
        self.make_index, self.generate = index, generate
        self.seen = 0
        self.indexes: list[Index] = []
        self.train_crops: Crops | None = None
        self.valid_indexes: list[Index] = []

    def prepare_data(self) -> None:
        """Write audio where there is none and `generate` is given; read the folders, filling their caches."""
        for root in self.roots:
            if self.generate is not None and not has_audio(root):
                self.generate(root)
        self.indexes = [self.make_index(root) for root in self.roots]

    def setup(self, stage: str | None = None) -> None:
        """Split the files into training and validation; `DataError` when a folder has nothing usable."""
        if self.train_crops is not None:
            return
        # Other processes than the one that prepared find the folders' indexes in the cache.
        indexes = self.indexes or [self.make_index(root) for root in self.roots]
        self.indexes = [
            skip_short(index, self.segment_length, self.sample_rate).require_usable() for index in indexes
        ]
        parts = [split(index.usable, self.validation.fraction) for index in self.indexes]
        train = [replace(index, files=part[0]) for index, part in zip(self.indexes, parts, strict=True)]
        self.valid_indexes = [
            replace(index, files=part[1]) for index, part in zip(self.indexes, parts, strict=True)
        ]
        self.train_crops = Crops(
            train,
            self.segment_length,
            self.sample_rate,
            self.channels,
            self.seed,
            self.weights,
            self.augmentation,
        )
        if distributed.rank() == 0:
            log.info("%s", self.summary())

    @property
    def valid_files(self) -> list[str]:
        """Paths of the files that no training crop comes from."""
        return [os.path.join(index.root, file.path) for index in self.valid_indexes for file in index.files]

    def summary(self) -> str:
        """What the folders hold, a few lines each."""
        return "\n".join(index.summary() for index in self.indexes)

    def report(self) -> str:
        """What the folders hold and every file that is skipped, with its reason."""
        return "\n".join(index.report() for index in self.indexes)

    def train_dataloader(self) -> DataLoader[Batch]:
        """This process's part of the endless training batches, from the first crop not used yet."""
        sampler = CropBatches(
            self.batch_size, lambda: self.seen, distributed.rank(), distributed.world_size()
        )
        ending = multiprocessing.RawValue("b", 0)
        atexit.register(setattr, ending, "value", 1)
        return DataLoader(
            self._crops,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=keep,
            worker_init_fn=partial(prepare_worker, ending),
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Without its own generator the loader draws from the global one, and a resumed run differs.
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> "ClipBatches":
        """This process's part of the validation clips; the same ones every time."""
        seconds = self.validation.seconds or max(1.0, 2 * self.segment_length / self.sample_rate)
        files = [(index.root, file) for index in self.valid_indexes for file in index.files]
        clips = read_clips(
            place_clips(files, round(seconds * self.sample_rate), self.sample_rate, self.validation.clips),
            self.sample_rate,
            self.channels,
        )
        rank, world_size = distributed.rank(), distributed.world_size()
        # Every process gets equally many, or one would wait for ever for the others' last batch.
        padded = -(-len(clips) // world_size) * world_size
        numbers = [number % len(clips) for number in range(rank, padded, world_size)]
        return ClipBatches(clips, numbers, max(1, self.batch_size // world_size))

    def crops(self, start: int, count: int) -> Tensor:
        """Training crops number `start` and following: `[count, C, T]`. They do not count as used."""
        return self._crops.__getitems__(range(start, start + count)).audio

    def source(self, number: int) -> list[str]:
        """Paths that were tried for crop `number`; the last one is the crop's."""
        return self._crops.source(number)

    def advance(self) -> None:
        """Count one batch of all processes as used; the training step calls it."""
        self.seen += self.batch_size

    def state_dict(self) -> dict[str, Any]:
        """The number of crops that training has used."""
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the crops that training has used."""
        self.seen = int(state_dict["seen"])

    @property
    def _crops(self) -> Crops:
        if self.train_crops is None:
            raise RuntimeError("call prepare_data() and setup() first (a Trainer does)")
        return self.train_crops


def check_above(limit: int, **options: float) -> None:
    """ValueError that names the option which is not above `limit`."""
    for name, value in options.items():
        if not limit < value < float("inf"):
            raise ValueError(f"{name} must be {'positive' if limit == 0 else '0 or more'}, got {value}")


def rms(audio: np.ndarray) -> float:
    """Root mean square of all samples, linear."""
    return float(np.sqrt(np.vdot(audio, audio) / audio.size))


def skip_short(index: Index, length: int, sample_rate: int) -> Index:
    """The index with every file of less than `length` samples at `sample_rate` Hz marked as too short."""
    needed = length / sample_rate

    def judged(file: IndexedFile) -> IndexedFile:
        if file.problem or resampled_length(file.frames, file.sample_rate, sample_rate) >= length:
            return file
        problem = f"shorter than a crop: {file.seconds:.3f} s, segment_seconds is {needed:.3f} s"
        return replace(file, problem=problem)

    return replace(index, files=tuple(judged(file) for file in index.files))


def place_clips(
    files: Sequence[tuple[str, IndexedFile]], length: int, sample_rate: int, count: int
) -> list[tuple[str, int, int]]:
    """Path, start and length (samples) of up to `count` clips, evenly spread over (root, file) pairs.

    Files shorter than `length` are left out; when all are, clips have the length of the longest file.
    """
    lengths = np.array([resampled_length(file.frames, file.sample_rate, sample_rate) for _, file in files])
    length = min(length, int(lengths.max()))
    long_enough = np.flatnonzero(lengths >= length)
    ends = np.cumsum(lengths[long_enough])
    clips = []
    for middle in (np.arange(count) + 0.5) / count * ends[-1]:
        place = int(np.searchsorted(ends, middle, side="right"))
        chosen = long_enough[place]
        offset = int(middle - (ends[place] - lengths[chosen])) - length // 2
        root, file = files[chosen]
        clips.append(
            (os.path.join(root, file.path), min(max(0, offset), int(lengths[chosen]) - length), length)
        )
    return list(dict.fromkeys(clips))


def read_clips(clips: Sequence[tuple[str, int, int]], sample_rate: int, channels: int) -> list[np.ndarray]:
    """Read the placed clips, `[C, T]` each; broken ones are named in the log and left out."""
    read = []
    for path, start, length in clips:
        try:
            read.append(read_segment(path, start, length, sample_rate, channels))
        except AudioError as error:
            log.warning("validation clip left out: %s", error)
    if not read:
        raise DataError("no validation clip could be read: see the warnings before this")
    return read


def keep(batch: Any) -> Any:
    """The collate function of batches that come whole."""
    return batch


def prepare_worker(ending: Any, worker: int) -> None:
    """Set up a loading process: one thread; Ctrl-C and SIGTERM are left to the trainer.

    Only when the program is `ending` (a shared flag) SIGTERM counts: it is then Python's own, which
    waits for its processes and would wait for ever.
    """

    def leave(number: int, frame: Any) -> None:
        if ending.value:
            os._exit(0)

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
