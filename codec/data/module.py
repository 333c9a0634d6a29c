"""Data module: endless, exactly reproducible training batches and validation clips."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from codec.data.augmentation import Augmentation
from codec.data.crops import Batch, Crops, Features, read_clips
from codec.data.degradation import Degradation, Degrader
from codec.data.index import DataError, Index, IndexedFile, of_option
from codec.data.loader import WorkerLoader
from codec.data.partition import divide, separate
from codec.data.scan import has_audio, scan
from codec.system import distributed
from codec.system.files import printable
from codec.system.sources import Roots, paths_of

log = logging.getLogger(__name__)
FEW_HELD_OUT = 4  # files; with fewer, scores depend more on the recordings than on the codec


def check_above(limit: int, **options: float) -> None:
    """ValueError with the name of an option that is not above `limit`."""
    for name, value in options.items():
        if not limit < value < float("inf"):
            raise ValueError(f"{name} must be {'positive' if limit == 0 else '0 or more'}, got {value}")


@dataclass(frozen=True)
class Validation:
    """Validation set: the held-out share of files or duration, see `split`, and the clips taken from it.

    Original to this project.

    `clips` of `seconds` (None: twice the training crop, at least one second) are spread evenly over the
    files that are long enough; if all are shorter, clips are as long as the longest file.
    """

    fraction: float = 0.05
    clips: int = 16
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {self.fraction}")
        check_above(0, clips=self.clips, seconds=1.0 if self.seconds is None else self.seconds)


class CropBatches(Sampler[list[int]]):
    """Endless batches of crop numbers.

    Each process gets an equal contiguous part of a batch, so that batches are the same for any number of
    processes. Each iterator starts at `seen()`: crops that were prefetched but not trained on are produced
    again after a resume.
    """

    def __init__(self, batch_size: int, seen: Callable[[], int], rank: int, world_size: int) -> None:
        if batch_size % world_size:
            raise DataError(
                f"data.batch_size={batch_size}, for {world_size} processes: take a multiple of {world_size}"
            )
        self.batch_size, self.share = batch_size, batch_size // world_size
        self.seen, self.rank = seen, rank

    def __iter__(self) -> Iterator[list[int]]:
        for start in itertools.count(self.seen() + self.rank * self.share, self.batch_size):
            yield list(range(start, start + self.share))


class ClipBatches(list[Batch]):
    """Validation batches in memory; a subclass, because Lightning treats a plain list as several loaders."""


class AudioDataModule(LightningDataModule):
    """Training crops and validation clips `[B, C, T]`, with numbers `[B]`, from folders of audio.

    Weighted folders are the weighted data sets of EnCodec's training (arXiv 2210.13438).

    root: folders, searched recursively, or sources; `weights`: their relative probabilities (None: by
        duration).
    batch_size: crops of `segment_seconds` per step, over all processes.
    augmentation, degradation, validation: augmentation of the crops; noise and rooms added to them; size of
        the validation set, which stays clean.
    features: features of the recordings, read with each crop; None for none.
    index: function that returns the `Index` of a folder: `codec.data.scan.scan` or a partial of it.
    generate: function that writes audio into a root without any.

    Raises `ValueError` for an invalid option and, when the folders are read, `DataError` if one has no
    usable file. After `setup`, `indexes` lists the folders' contents and `valid_files` the held-out paths.
    """

    def __init__(
        self,
        root: Roots,
        sample_rate: int,
        channels: int = 1,
        segment_seconds: float = 1.0,
        batch_size: int = 16,
        weights: list[float] | None = None,
        seed: int = 0,
        num_workers: int = 2,
        augmentation: Augmentation = Augmentation(),
        degradation: Degradation = Degradation(),
        validation: Validation = Validation(),
        index: Callable[[str], Index] = scan,
        generate: Callable[[str], Any] | None = None,
        features: Features | None = None,
    ) -> None:
        super().__init__()
        self.roots = paths_of(root)
        positive = {"sample_rate": sample_rate, "channels": channels, "batch_size": batch_size}
        check_above(0, **positive, segment_seconds=segment_seconds)
        check_above(-1, seed=seed, num_workers=num_workers)
        if not self.roots:
            raise ValueError("root must name at least one folder")
        if weights is not None and (len(weights) != len(self.roots) or min(weights) <= 0):
            raise ValueError(f"weights must be one positive number a root ({len(self.roots)}), got {weights}")
        self.sample_rate = sample_rate
        self.segment_length = max(1, round(segment_seconds * sample_rate))
        self.shape = self.segment_length, sample_rate, channels
        self.batch_size, self.num_workers = batch_size, num_workers
        self.weights, self.seed = weights, seed
        self.augmentation, self.degradation, self.validation = augmentation, degradation, validation
        self.make_index, self.generate, self.features = index, generate, features
        self.seen = 0
        self.indexes: list[Index] = []
        self.known: dict[str, str] = {}  # in a resumed run: parts of its recordings by identity
        self.trained: list[list[IndexedFile]] = []  # by root
        self.valid: list[IndexedFile] = []
        self.valid_files: list[str] = []

    def prepare_data(self) -> None:
        """Generate audio for roots without any, if `generate` is given; index the folders and cache that."""
        for root in self.roots:
            if self.generate is not None and not has_audio(root):
                self.generate(root)
        self.indexes = self.indexes or [self.make_index(root) for root in self.roots]
        _ = self.degrader

    def setup(self, stage: str | None = None) -> None:
        """Split the files into training and validation; `DataError` if a folder has no usable file."""
        if self.valid:
            return
        # Processes that did not run `prepare_data` read the indexes from the cache.
        indexes = self.indexes or [self.make_index(root) for root in self.roots]
        self.indexes = [skip_short(index, *self.shape[:2]) for index in indexes]
        crop = self.segment_length / self.sample_rate
        roots = [divide(index, self.validation.fraction, crop, self.known) for index in self.indexes]
        trained, self.valid = separate(roots, self.known)
        self.trained = without_short(trained, *self.shape[:2])
        self.valid_files = [file.path for file in self.valid]
        options = self.weights, self.augmentation, self.degrader, self.features
        self.train_crops = Crops(self.trained, self.shape, self.seed, *options)
        if distributed.rank() == 0:
            log.info("%s", "\n".join(index.summary() for index in self.indexes))
            log.info("%s", describe_parts(itertools.chain(*self.trained), self.valid))
            if len(self.valid) < FEW_HELD_OUT:
                log.warning(
                    "held out for validation: %d file%s only, too few to tell models apart; raise "
                    "data.validation.fraction (%g), or add recordings",
                    len(self.valid), "s" * (len(self.valid) != 1), self.validation.fraction,
                )  # fmt: skip

    @cached_property
    def degrader(self) -> Degrader | None:
        """Noise and rooms of the option `degradation`, indexed at the first use; None without them."""
        options = self.degradation
        noises, rooms = (self.usable_files(name) for name in ("noise", "rooms"))
        return Degrader(options, noises, rooms, self.shape) if options.is_active else None

    def usable_files(self, name: str) -> list[IndexedFile]:
        """Usable files of the degradation `name`; `DataError` for a folder without any."""
        with of_option(f"data.degradation.{name}.root"):
            indexes = [self.make_index(root) for root in paths_of(getattr(self.degradation, name).root)]
        return [file.below(index.root) for index in indexes for file in index.usable]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Loader of this process's part of the endless training batches, from the first unused crop on."""
        process = distributed.rank(), distributed.world_size()
        return WorkerLoader(
            self.train_crops,
            batch_sampler=CropBatches(self.batch_size, lambda: self.seen, *process),
            num_workers=self.num_workers,
            collate_fn=Batch._make,  # items are whole batches
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # draws from the global one would make a resumed run differ
        )

    def val_dataloader(self) -> ClipBatches:
        """Batches of this process's part of the validation clips, the same in every validation."""
        seconds = self.validation.seconds or max(1.0, 2 * self.segment_length / self.sample_rate)
        shape = round(seconds * self.sample_rate), *self.shape[1:]
        clips = read_clips(self.valid, shape, self.validation.clips)
        world_size = distributed.world_size()
        # Each process needs the same number, or one would wait forever for the others' last batch.
        padded = -(-len(clips) // world_size) * world_size
        numbers = torch.arange(distributed.rank(), padded, world_size) % len(clips)
        portions = numbers.split(max(1, self.batch_size // world_size))
        return ClipBatches(Batch.of(clips[portion], portion) for portion in portions)

    def crops(self, start: int, count: int) -> Tensor:
        """Training crops `start` to `start + count`: `[count, C, T]`, not counted as used."""
        return self.train_crops.__getitems__(range(start, start + count)).audio

    def source(self, number: int) -> list[str]:
        """Paths drawn for crop `number`, see `Crops.source`."""
        return self.train_crops.source(number)

    def advance(self) -> None:
        """Count one batch of all processes as used; called by the training step."""
        self.seen += self.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Number of crops used in training."""
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the crops that training has used."""
        self.seen = int(state_dict["seen"])


def describe_parts(trained: Iterable[IndexedFile], held_out: Sequence[IndexedFile]) -> str:
    """Number of files and minutes for validation and for training, as text."""
    # A file of overlapping roots counts once; a short one that is alone in its folder is on both sides.
    used, validation = ({(file.path, file.span): file for file in files} for files in (trained, held_out))
    named = {"held out for validation": held_out, "trained on": used.values()}
    minutes = {name: sum(file.seconds for file in files) / 60 for name, files in named.items()}
    alone = sum(file.seconds for key, file in validation.items() if key not in used) / 60
    total = minutes["trained on"] + alone
    parts = [
        f"{name}: {len(files)} file{'s' * (len(files) != 1)}, {minutes[name]:.1f} minutes "
        f"({minutes[name] / total:.1%})"
        for name, files in named.items()
    ]
    both = {file.path for file in named["trained on"] if file.span}
    parts += [
        f"{printable(file.path)} is cut: its part from {file.range[0] / file.sample_rate:.1f} s is held out"
        for file in held_out
        if file.span and file.path in both
    ]
    return ", ".join(parts[:2]) + "".join(f"; {part}" for part in parts[2:])


def without_short(
    trained: Sequence[Sequence[IndexedFile]], length: int, sample_rate: int
) -> list[list[IndexedFile]]:
    """Training files of each root of at least `length` samples at `sample_rate` Hz.

    Parts that a run has cut for shorter crops may have less. `DataError` if none remains.
    """
    long = [[file for file in files if file.samples_at(sample_rate) >= length] for files in trained]
    num_files, num_long = (sum(map(len, roots)) for roots in (trained, long))
    needed = f"data.segment_seconds is {length / sample_rate:.3f} s"
    if not num_long:
        raise DataError(
            f"no part for training is as long as a crop: {needed}, and the resumed run has cut or held out "
            "the recordings; lower data.segment_seconds, add recordings, or start a new run"
        )
    if num_long < num_files:
        log.warning(
            "%d parts of files are not trained on: shorter than a crop, %s", num_files - num_long, needed
        )
    return long


def skip_short(index: Index, length: int, sample_rate: int) -> Index:
    """Index with files of less than `length` samples at `sample_rate` Hz marked as too short.

    `DataError` if no usable file remains.
    """
    needed = f"segment_seconds is {length / sample_rate:.3f} s"
    files = [
        replace(file, problem=f"shorter than a crop: {file.seconds:.3f} s, {needed}")
        if not file.problem and file.samples_at(sample_rate) < length
        else file
        for file in index.files
    ]
    marked = replace(index, files=tuple(files))
    try:
        return marked.require_usable()
    except DataError as error:
        if not index.usable:
            raise
        longest = max(file.seconds for file in index.usable)
        raise DataError(
            f"{error}; {needed}: lower data.segment_seconds, the longest file has {longest:.3f} s"
        ) from error
