"""Features of recordings, written by `codec-features`: read with training crops, as a teacher's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from torch import Tensor

from codec.config import ConfigError
from codec.data.index import DataError, IndexedFile
from codec.losses.base import Forward
from codec.system.archive import sha256
from codec.system.files import printable
from codec.tokens.dataset import TokenDataset
from codec.tokens.plan import portable

COMPARED = 16  # recordings of which all bytes are compared before training


class Entry(NamedTuple):
    """Number of a recording in a dataset, and the frames of its file in it: from 0 to infinity for all."""

    number: int
    first: int = 0
    end: float = math.inf


class Features:
    """Dataset of features `[D, F]` of recordings or parts of them, or of a codec's continuous latents.

    As the teacher of a distillation (SpeechTokenizer, arXiv 2308.16692) it returns the features
    `[B, D, F]` of a `Forward`, which were read with the crops. ConfigError without a dataset, or for one of
    codes.
    """

    def __init__(self, path: str):
        try:
            self.dataset = TokenDataset(path)
        except (FileNotFoundError, DataError) as error:
            raise ConfigError(f"{error} (codec-features writes a dataset of features)") from error
        if self.dataset.codebook_sizes:
            raise ConfigError(f"{path} is a dataset of codes; features are written by codec-features")
        self.path, self.dim, self.frame_rate = path, self.dataset.rows, self.dataset.frame_rate
        self.entries: dict[str, list[Entry]] = {}  # by path
        for number in range(len(self.dataset)):
            name, path = (self.dataset.index.text(column, number) for column in ("id", "path"))
            file, _, frames = name.rpartition(":")
            is_part = path == f"{file}%3A{frames}"
            entry = Entry(number, *map(int, frames.split("-"))) if is_part else Entry(number)
            self.entries.setdefault(file if is_part else path, []).append(entry)

    def __call__(self, outputs: Forward) -> Tensor:
        """Features of the crops."""
        if outputs.features is None:
            raise ConfigError("the data have no features: set data.features, as teacher=features does")
        return outputs.features

    def require(self, files: Sequence[IndexedFile]) -> None:
        """Raise ConfigError unless each file has features that were computed from the same recording.

        Lengths and rates of all are compared, and checksums of some.
        """
        entries = [self.find(file.path, *file.range, file.sample_rate) for file in files]
        missing = [file.name for file, entry in zip(files, entries, strict=True) if entry is None]
        if missing:
            raise ConfigError(
                f"{self.path} lacks the features of {len(missing)} of {len(files)} recordings, as "
                f"{printable(missing[0])}: run codec-features on all of data.root"
            )
        pairs = [(file, entry) for file, entry in zip(files, entries, strict=True) if entry is not None]
        different = [file for file, entry in pairs if not self.has_header(entry, file)]
        some = [pairs[place] for place in range(0, len(pairs), -(-len(pairs) // COMPARED))]
        different += [file for file, entry in some if not self.is_of(entry.number, file.path)]
        if different:
            raise ConfigError(
                f"{self.path} was computed from other recordings: {printable(different[0].path)} differs; "
                "run codec-features again, into a new folder"
            )

    def find(self, path: str, first: int, end: int, sample_rate: int) -> Entry | None:
        """Entry with the samples `first` to `end` of a file at `sample_rate` Hz; None without one.

        The file is the one with the longest end of the path.
        """
        parts = path.replace(os.sep, "/").split("/")
        names: Iterator[str] = (portable("/".join(parts[place:])) for place in range(len(parts)))
        for entry in next((self.entries[name] for name in names if name in self.entries), []):
            rate = self.value("sample_rate", entry.number)
            if entry.first * sample_rate <= first * rate and end * rate <= entry.end * sample_rate:
                return entry
        return None

    def value(self, column: str, number: int) -> int:
        """Number in a column of the index."""
        return int(self.dataset.index.numbers[column][number])

    def has_header(self, entry: Entry, file: IndexedFile) -> bool:
        """True if a file has the rate, the channels and, as a whole, the length of an entry's."""
        names = ("n_samples", "sample_rate", "channels")
        length, *kind = (self.value(name, entry.number) for name in names)
        return kind == [*file.info[1:]] and (entry.end < math.inf or length == file.frames)

    def is_of(self, number: int, path: str) -> bool:
        """True if a file has the checksum of recording `number`."""
        try:
            return sha256(path) == self.dataset.index.text("sha256", number)
        except OSError:
            return True  # reading crops handles files that vanish

    def read(self, path: str, start: int, length: int, sample_rate: int) -> np.ndarray:
        """Features, float32 `[D, F]`, of `length` samples of a file from `start`, at `sample_rate` Hz.

        They are on the crop's time base: interpolated where its start is between two frames.
        """
        entry = self.find(path, start, start + length, sample_rate)
        assert entry is not None, path
        number = entry.number
        rate, hop = self.dataset.format.sample_rate, self.dataset.format.hop_length * sample_rate
        last = int(self.dataset.index.n_frames[number])
        offset = start - Fraction(entry.first * sample_rate, self.value("sample_rate", number))
        first, remainder = divmod(offset * rate, hop)
        count = -(-length * rate // hop)
        first = min(first, last - 1)
        frames = self.dataset.codes(number, first, min(first + count + 1, last)).numpy()
        frames = np.pad(frames, ((0, 0), (0, count + 1 - frames.shape[1])), mode="edge")
        share = np.float32(float(remainder / hop))
        return (1 - share) * frames[:, :-1] + share * frames[:, 1:]
