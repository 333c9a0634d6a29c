"""Reads audio in worker processes and encodes it in batches; long files are streamed, bad ones reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codec.audio.levels import SILENT_PEAK, check_peak
from codec.audio.reading import AudioError, read_blocks, read_info
from codec.config import ConfigError
from codec.data.index import IndexedFile
from codec.model.codec import Codec
from codec.model.inference import encode_batch, encode_long
from codec.system.archive import sha256
from codec.tokens.arrow import pyarrow
from codec.tokens.files import LAYOUTS, TokenFormat, Utterance, checksum
from codec.tokens.formats import DTYPES, LatentFormat
from codec.tokens.plan import Plan
from codec.tokens.shards import Outcome


@dataclass(frozen=True)
class Settings:
    """Options of encoding a corpus; `workers` never changes tokens.

    `batch_seconds` and `compile` change them by rounding only.
    """

    layout: str = "arrow"
    num_quantizers: int | None = None
    beam: int = 1
    batch_seconds: float = 30.0
    shard_hours: float = 1.0
    workers: int = 2
    downmix: str = "mid"
    dtype: str | None = None  # of continuous latents
    compile: bool = False
    layer: int | str | None = None  # of the speech model whose features are written

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ConfigError(f"--format must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.dtype not in (None, *DTYPES):
            raise ConfigError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not (self.batch_seconds > 0 and self.shard_hours > 0 and self.beam >= 1 and self.workers >= 0):
            raise ConfigError(
                "--batch-seconds, --shard-hours and --beam must be above 0, --workers 0 or more"
            )

    def about(self) -> dict[str, Any]:
        """Entries of `tokens.json` on which the tokens depend."""
        options = {"beam": self.beam, "precision": "float32"}
        options |= {"batch_seconds": self.batch_seconds, "shard_hours": self.shard_hours}
        options |= {} if self.layer is None else {"layer": self.layer}
        return options if self.downmix == "mid" else options | {"downmix": self.downmix}  # as older datasets


class Loaded(NamedTuple):
    """Result of reading a source: its number, checksum, and its audio or problem.

    A file longer than a batch has neither: it is read while it is encoded.
    """

    number: int
    sha256: str = ""
    audio: Tensor | None = None
    problem: str | None = None


def check_mixed(peak: float, path: str, file: IndexedFile, channels: int) -> None:
    """AudioError for a recording that is silent after mixing, or not scaled to ±1."""
    if peak < SILENT_PEAK and file.channels > channels:
        for block in read_blocks(path, span=file.span):
            if np.abs(block).max(initial=0) >= SILENT_PEAK:
                raise AudioError(
                    path,
                    f"silent when its {file.channels} channels are mixed to {channels}: they cancel "
                    "(antiphase); another --downmix takes one of them",
                )
    check_peak(peak, path)


class SourceBatches(Dataset[list[Loaded]]):
    """Dataset of batches of sources; an item is the list of a batch's loaded sources."""

    def __init__(self, plan: Plan, groups: Sequence[tuple[int, ...]], codec: Codec, settings: Settings):
        self.plan, self.groups, self.most_seconds = plan, groups, settings.batch_seconds
        self.mix = codec.sample_rate, codec.audio_channels, settings.downmix

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, n: int) -> list[Loaded]:
        return [self.load(number) for number in self.groups[n]]

    def load(self, number: int) -> Loaded:
        """Read one source; errors are returned as its problem."""
        source = self.plan.sources[number]
        if source.problem is not None:
            return Loaded(number, problem=source.problem)
        path = os.path.join(self.plan.root, source.file.path)
        try:
            if read_info(path) != source.file.info:
                raise AudioError(path, "changed since the folder was scanned")
            digest = sha256(path)
            if source.seconds > self.most_seconds:
                return Loaded(number, digest)
            blocks = read_blocks(path, *self.mix, span=source.file.span)
            audio = np.concatenate(list(blocks), axis=1)
            check_mixed(float(np.abs(audio).max()), path, source.file, self.mix[1])
        except AudioError as error:
            return Loaded(number, problem=error.reason)
        except OSError as error:
            return Loaded(number, problem=error.strerror or str(error))
        return Loaded(number, digest, torch.from_numpy(audio))


class Encoder:
    """Encodes loaded sources into index rows and codes."""

    def __init__(self, codec: Codec, settings: Settings, plan: Plan, token_format: TokenFormat):
        self.codec, self.plan, self.format = codec, plan, token_format
        self.mix = codec.sample_rate, codec.audio_channels, settings.downmix
        self.options: dict[str, Any] = {"num_quantizers": settings.num_quantizers, "beam": settings.beam}

    def encode(self, loaded: Sequence[Loaded], advance: Callable[[float], None]) -> dict[int, Outcome]:
        """Outcome of each source of a batch; `advance` is called with the seconds encoded."""
        outcomes: dict[int, Outcome] = {one.number: one.problem for one in loaded if one.problem is not None}
        ready = [(one, one.audio) for one in loaded if one.audio is not None]
        if ready:
            encoded = encode_batch(self.codec, [audio for _, audio in ready], **self.options)
            for (one, _), codes in zip(ready, encoded, strict=True):
                outcomes[one.number] = self.row(one, codes.numpy())
        advance(sum(self.plan.sources[number].seconds for number in outcomes))
        for one in loaded:
            if one.number not in outcomes:
                outcomes[one.number] = self.encode_blocks(one, advance)
        return outcomes

    def encode_blocks(self, one: Loaded, advance: Callable[[float], None]) -> Outcome:
        """Encode a long file block by block while it is read."""
        source = self.plan.sources[one.number]
        path, seconds_left = os.path.join(self.plan.root, source.file.path), source.seconds
        peak, parts = 0.0, []

        def blocks() -> Iterator[Tensor]:
            nonlocal peak
            for block in read_blocks(path, *self.mix, span=source.file.span):
                peak = max(peak, float(np.abs(block).max(initial=0)))
                yield torch.from_numpy(block)

        try:
            for part in encode_long(self.codec, blocks(), **self.options):
                parts.append(stored(part.numpy(), self.format))
                portion = min(seconds_left, part.shape[1] / self.codec.frame_rate)
                seconds_left -= portion
                advance(portion)
            check_mixed(peak, path, source.file, self.mix[1])
        except AudioError as error:
            return error.reason
        finally:
            advance(seconds_left)
        return self.row(one, np.concatenate(parts, axis=1))

    def row(self, one: Loaded, codes: np.ndarray) -> Outcome:
        """Index row of a source, and its codes or latents `[R, F]` in the stored type."""
        source = self.plan.sources[one.number]
        codes = np.ascontiguousarray(stored(codes, self.format))
        if fault := self.format.fault(codes):
            return f"{fault} in {self.format.dtype.name}"
        frames, rate = source.file.length, source.file.sample_rate
        expected = self.format.frames(frames, rate)
        if codes.shape != (self.format.rows, expected):
            raise AssertionError(f"{source.path}: {codes.shape} codes, expected {expected} frames")
        about = (source.file.channels, rate, frames, expected)
        return Utterance(source.id, source.path, *about, one.sha256, checksum(codes)), codes


def stored(coded: np.ndarray, token_format: TokenFormat) -> np.ndarray:
    """Codes or latents in their stored type; latents beyond the range of float16 become infinite."""
    with np.errstate(over="ignore"):
        return coded.astype(token_format.dtype)


def format_of(codec: Codec, settings: Settings) -> TokenFormat:
    """Format of a codec's codes or latents; ConfigError for options that it does not have."""
    if settings.layout == "arrow":
        pyarrow()  # fail early if pyarrow is missing
    shared: dict[str, Any] = {"layout": settings.layout, "codec_id": codec.codec_id()}
    shared |= {name: getattr(codec, name) for name in ("sample_rate", "hop_length", "audio_channels")}
    sizes = codec.quantizer.codebook_sizes
    if not sizes:
        if settings.num_quantizers is not None or settings.beam > 1:
            raise ConfigError("--num-quantizers and --beam are for codes: this codec has continuous latents")
        dtype = settings.dtype or "float32"
        dim = codec.quantizer.latent_dim
        return LatentFormat(**shared, codebook_sizes=(), latent_dim=dim, latent_dtype=dtype)
    if settings.dtype is not None:
        raise ConfigError("--dtype is for continuous latents: the type of codes follows from their codebooks")
    if settings.num_quantizers is not None and not 1 <= settings.num_quantizers <= len(sizes):
        raise ConfigError(f"--num-quantizers must be 1 to {len(sizes)}, got {settings.num_quantizers}")
    return TokenFormat(**shared, codebook_sizes=tuple(sizes[: settings.num_quantizers]))
