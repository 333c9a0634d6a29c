"""Token datasets: a corpus as codes, for training language models, and its decoding to audio."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codec.config import ConfigError
from codec.tokens import arrow as token_arrow
from codec.tokens.files import (
    META_FILE,
    TokenError,
    Utterance,
    checksum,
    inside,
    mirrored,
    read_npy,
    shard_file,
)
from codec.tokens.formats import read_format
from codec.tokens.index import read_index

if TYPE_CHECKING:
    from codec.model.codec import Codec


class TokenDataset(Dataset[Tensor]):
    """Token dataset of `codec-encode`: item i is the codes of utterance i, int64 `[K, F]`, or their `view`.

    Of a codec with a continuous bottleneck it holds latents, float32 `[D, F]`, wherever codes are named; mean
    and deviation of their dimensions are `description["statistics"]`.
    Files are mapped, not loaded; each worker maps them again. The first access to an utterance, or to a
    window of it, reads all of it and compares its CRC-32. `num_quantizers` selects the first codebooks.
    FileNotFoundError without a dataset; TokenError for damaged files, here or on access.
    """

    def __init__(
        self,
        path: str | Path,
        num_quantizers: int | None = None,
        view: Callable[[Tensor], Tensor] | None = None,
    ):
        self.path, self.view = Path(path), view
        self.format, self.description = read_format(self.path)
        stored = self.format.num_quantizers
        if num_quantizers is not None and not stored:
            raise ConfigError(f"num_quantizers: {self.path} holds continuous latents, which have no stages")
        if num_quantizers is not None and not 1 <= num_quantizers <= stored:
            raise ConfigError(
                f"num_quantizers must be 1 to {stored}, as {self.path} has, got {num_quantizers}"
            )
        self.num_quantizers = num_quantizers or stored
        self.rows = num_quantizers or self.format.rows
        self.open()

    def open(self) -> None:
        """Map the index; shards are mapped on access."""
        self.index = read_index(self.path, self.format)
        self.verified = np.zeros(len(self.index), bool)
        self.trusted: tuple[Any, int] | None = None  # codec already compared, and its tensors' versions
        # Each mapping uses a file descriptor, of which a process has a few hundred.
        self.shard = lru_cache(maxsize=64)(lambda n: token_arrow.map_shard(self.path / shard_file(n)))

    def __getstate__(self) -> dict[str, Any]:
        opened = ("index", "verified", "shard", "trusted")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.open()

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Size of each codebook."""
        return self.format.codebook_sizes[: self.num_quantizers]

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.format.frame_rate

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Tensor:
        codes = self.codes(range(len(self))[i])
        return self.view(codes) if self.view else codes

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def find(self, name: str) -> int:
        """Number of the utterance with this id or path; KeyError if there is none."""
        return self.index.by_name[name]

    def utterance(self, i: int) -> Utterance:
        """Index row of utterance `i`."""
        return self.index.row(i)

    def length(self, i: int, sample_rate: int | None = None) -> int:
        """Length of utterance `i` in samples at the codec's rate, or at `sample_rate` of another decoder."""
        numbers, rate = self.index.numbers, self.format.sample_rate
        samples = self.format.length(int(numbers["n_samples"][i]), int(numbers["sample_rate"][i]))
        return samples * (sample_rate or rate) // rate

    def codes(self, i: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Codes `[K, stop - start]` of frames `start` to `stop` of utterance `i`.

        After the first access only these frames are read. ValueError for frames outside the utterance,
        TokenError for codes that differ from their CRC-32.
        """
        stop = self.check_frames(i, start, stop)
        if not self.verified[i]:
            self.verify(i)
        codes = self.stored(i)[: self.rows, start:stop]
        self.check_codes(i, codes)  # a mapped file may have changed
        return torch.from_numpy(codes.astype(self.format.loaded))

    def check_frames(self, i: int, start: int, stop: int | None) -> int:
        """`stop`, by default the number of frames; ValueError for frames outside the utterance."""
        frames = int(self.index.n_frames[i])
        stop = frames if stop is None else stop
        if not 0 <= start < stop <= frames:
            raise ValueError(f"utterance {i} has frames 0 to {frames}, got {start} to {stop}")
        return stop

    def check_codes(self, i: int, codes: np.ndarray) -> None:
        """Raise TokenError for stored codes `[k, F]` that exceed their codebooks, or latents not finite."""
        if fault := self.format.fault(codes):
            raise TokenError(f"{self.path}: damaged: {self.index.text('id', i)}: {fault}")

    def seconds(self, i: int, begin: float, end: float) -> Tensor:
        """Codes `[K, F]` of the frames of utterance `i` that overlap `begin` to `end` seconds.

        ValueError if `begin` is beyond the end of the utterance.
        """
        if not 0 <= begin < end:
            raise ValueError(f"seconds must be 0 <= begin < end, got {begin} to {end}")
        rate, frames = self.frame_rate, int(self.index.n_frames[i])
        # The tolerance corrects the rounding of times that are a whole number of frames in decimals.
        start = math.floor(begin * rate + 1e-6)
        return self.codes(i, start, min(frames, max(start + 1, math.ceil(end * rate - 1e-6))))

    def stored(self, i: int) -> np.ndarray:
        """Stored codes `[K, F]` of all codebooks, not checked."""
        frames = int(self.index.n_frames[i])
        if self.format.layout == "npy":
            name = mirrored(inside(self.index.text("path", i)), ".npy")
            return read_npy(self.path / name, self.format, frames)
        shard, offset = (int(self.index.numbers[name][i]) for name in ("shard", "offset"))
        try:
            return token_arrow.codes_in_shard(self.shard(shard), self.format, offset, frames)
        except TokenError as error:
            raise TokenError(f"{self.path / shard_file(shard)}: {error}") from error

    def verify(self, i: int) -> None:
        """Raise TokenError unless the codes of utterance `i` match their CRC-32."""
        codes = self.stored(i)
        if checksum(codes) != int(self.index.numbers["crc32"][i]):
            raise TokenError(f"{self.path}: damaged: {self.index.text('id', i)} differs from its CRC-32")
        self.check_codes(i, codes)
        self.verified[i] = True

    def windows(self, length: int, step: int | None = None) -> TokenWindows:
        """Windows of `length` frames, every `step` (default: `length`) frames of each utterance."""
        return TokenWindows(self, length, step)

    def require_codec(self, codec: Codec, hint: str = "any_codec=True decodes them") -> None:
        """Raise ConfigError, ending in the hint, unless the tokens are of this codec.

        TokenError if `tokens.json` has this codec's id but contradicts it.
        """
        changes = sum(tensor._version for tensor in codec.state_dict().values())
        if self.trusted and self.trusted[0]() is codec and self.trusted[1] == changes:
            return
        if self.format.codec_id not in (codec.codec_id(), codec.autoencoder.codes_of):
            raise ConfigError(
                f"{self.path} is of another codec ({self.format.codec_id[:12]}…, this is "
                f"{codec.codec_id()[:12]}…): its tokens mean nothing to this one; {hint}"
            )
        self.format.require_true_of(codec, self.path / META_FILE)
        self.trusted = weakref.ref(codec), changes

    def decode(
        self, codec: Codec, i: int, start: int = 0, stop: int | None = None, any_codec: bool = False
    ) -> Tensor:
        """Audio `[C, T]` of frames `start` to `stop` of utterance `i`, as if all of it was decoded and cut.

        ConfigError if the tokens are of another codec, unless `any_codec`.
        """
        if not any_codec:
            self.require_codec(codec)
        return torch.cat(list(self.audio(codec, i, start, stop)), dim=1)

    def audio(self, codec: Codec, i: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Audio of `decode` as blocks of a few seconds; the codec is not compared."""
        from codec.model.inference import decode_part

        frames, hop = int(self.index.n_frames[i]), codec.hop_length
        stop = self.check_frames(i, start, stop)
        remaining = min(stop * hop, self.length(i, codec.sample_rate)) - start * hop
        for block in decode_part(codec, lambda a, b: self.codes(i, a, b), frames, start, stop):
            yield block[:, :remaining].cpu()
            remaining = max(0, remaining - block.shape[1])


class TokenWindows(Dataset[Tensor]):
    """Fixed-length windows `[K, length]` of a `TokenDataset`, or their view.

    Each window is within one utterance; shorter utterances and remainders are in no window.
    """

    def __init__(self, dataset: TokenDataset, length: int, step: int | None = None):
        step = length if step is None else step
        if length < 1 or step < 1:
            raise ValueError(f"windows need a length and a step of at least 1 frame, got {length}, {step}")
        self.dataset, self.length, self.step = dataset, length, step
        counts = np.maximum(0, (dataset.index.n_frames - length) // step + 1)
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, n: int) -> tuple[int, int]:
        """Utterance and first frame of window `n`."""
        n = range(len(self))[n]
        i = int(np.searchsorted(self.ends, n, side="right"))
        return i, (n - (int(self.ends[i - 1]) if i else 0)) * self.step

    def __getitem__(self, n: int) -> Tensor:
        i, start = self.place(n)
        codes = self.dataset.codes(i, start, start + self.length)
        return self.dataset.view(codes) if self.dataset.view else codes
