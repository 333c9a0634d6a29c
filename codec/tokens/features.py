"""Features of recordings, written by `codec-features`: read with training crops, as a teacher's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from codec.config import ConfigError
from codec.data.index import DataError, IndexedFile
from codec.losses.base import Forward
from codec.system.archive import open_bytes
from codec.system.files import printable
from codec.tokens.dataset import TokenDataset
from codec.tokens.plan import portable

COMPARED = 16  # recordings of which all bytes are compared before training


class Features:
    """Dataset of features `[D, F]` of whole recordings, or of a codec's continuous latents.

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

    def __call__(self, outputs: Forward) -> Tensor:
        """Features of the crops."""
        if outputs.features is None:
            raise ConfigError("the data have no features: set data.features, as teacher=features does")
        return outputs.features

    def require(self, files: Sequence[IndexedFile]) -> None:
        """Raise ConfigError unless each file has features that were computed from the same recording.

        Lengths and rates of all are compared, and checksums of some.
        """
        numbers = [self.find(file.path) for file in files]
        missing = [file.path for file, number in zip(files, numbers, strict=True) if number is None]
        if missing:
            raise ConfigError(
                f"{self.path} lacks the features of {len(missing)} of {len(files)} recordings, as "
                f"{printable(missing[0])}: run codec-features on all of data.root"
            )
        pairs = [(file, number) for file, number in zip(files, numbers, strict=True) if number is not None]
        different = [file for file, number in pairs if self.header(number) != file.info]
        some = [pairs[place] for place in range(0, len(pairs), -(-len(pairs) // COMPARED))]
        different += [file for file, number in some if not self.is_of(number, file.path)]
        if different:
            raise ConfigError(
                f"{self.path} was computed from other recordings: {printable(different[0].path)} differs; "
                "run codec-features again, into a new folder"
            )

    def find(self, path: str) -> int | None:
        """Number of a recording, by the longest end of its path in the dataset; None without one."""
        parts = path.replace(os.sep, "/").split("/")
        names: Iterator[str] = (portable("/".join(parts[first:])) for first in range(len(parts)))
        numbers = self.dataset.index.by_name
        return next((numbers[name] for name in names if name in numbers), None)

    def header(self, number: int) -> tuple[int, ...]:
        """Length in frames, rate in Hz and channels of a recording."""
        names = ("n_samples", "sample_rate", "channels")
        return tuple(int(self.dataset.index.numbers[name][number]) for name in names)

    def is_of(self, number: int, path: str) -> bool:
        """True if a file has the checksum of recording `number`."""
        try:
            with open_bytes(path) as file:
                checksum = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
        except OSError:
            return True  # reading crops handles files that vanish
        return checksum == self.dataset.index.text("sha256", number)

    def read(self, path: str, start: int, length: int, sample_rate: int) -> np.ndarray:
        """Features, float32 `[D, F]`, of `length` samples of a file from `start`, at `sample_rate` Hz.

        They are on the crop's time base: interpolated where its start is between two frames.
        """
        number = self.find(path)
        assert number is not None, path
        rate, hop = self.dataset.format.sample_rate, self.dataset.format.hop_length * sample_rate
        last = int(self.dataset.index.n_frames[number])
        first, remainder = divmod(start * rate, hop)
        count = -(-length * rate // hop)
        first = min(first, last - 1)
        frames = self.dataset.codes(number, first, min(first + count + 1, last)).numpy()
        frames = np.pad(frames, ((0, 0), (0, count + 1 - frames.shape[1])), mode="edge")
        share = np.float32(remainder / hop)
        return (1 - share) * frames[:, :-1] + share * frames[:, 1:]
