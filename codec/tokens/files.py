"""Token files on disk: format, index and `.npy` files, all validated when they are read."""

from __future__ import annotations

import hashlib
import io
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from codec.data.index import DataError

if TYPE_CHECKING:
    from codec.model.codec import Codec

VERSION = 1
META_FILE, MANIFEST_FILE, INDEX_FILE, SHARDS = "tokens.json", "manifest.jsonl", "index.arrow", "shards"
LAYOUTS = ("arrow", "npy")
MOST_QUANTIZERS, MOST_CODES = 1024, 2**32
LONGEST_NAME = 255  # bytes, on Linux's and Apple's file systems
MOST_FOLDERS = 255  # above a file; Python creates folders by recursion


class TokenError(DataError):
    """Unusable token file: damaged, foreign, or of a later version."""


@dataclass(frozen=True)
class TokenFormat:
    """Format of all utterances of a dataset: the part of `tokens.json` that readers need."""

    kind: ClassVar = "codec-tokens"  # `format` in `tokens.json`
    column: ClassVar = "codes"  # of Arrow shards
    loaded: ClassVar[type] = np.int64  # type of tensors
    identity: ClassVar = ("layout", "codec_id", "codebook_sizes")  # entries that identify the codes

    layout: str
    codec_id: str
    sample_rate: int
    hop_length: int
    audio_channels: int
    codebook_sizes: tuple[int, ...]
    items: int = 0
    index_crc32: int = 0

    def __post_init__(self) -> None:
        integers = (self.sample_rate, self.hop_length, self.audio_channels)
        wrong = {
            "layout": self.layout not in LAYOUTS,
            "codec_id": not isinstance(self.codec_id, str),
            **self.wrong_content(),
            "sample_rate, hop_length, audio_channels": not all(
                type(value) is int and 1 <= value <= MOST_CODES for value in integers
            ),
            "items, index_crc32": not all(
                type(value) is int and 0 <= value < 2**63 for value in (self.items, self.index_crc32)
            ),
        }
        if any(wrong.values()):
            raise TokenError(f"not possible: {', '.join(name for name, bad in wrong.items() if bad)}")

    def wrong_content(self) -> dict[str, bool]:
        """Flags of impossible values that describe the codes, by name."""
        possible = all(type(size) is int and 1 <= size <= MOST_CODES for size in self.codebook_sizes)
        return {"codebook_sizes": not (possible and 1 <= len(self.codebook_sizes) <= MOST_QUANTIZERS)}

    @property
    def num_quantizers(self) -> int:
        """Number of codes per frame."""
        return len(self.codebook_sizes)

    @property
    def rows(self) -> int:
        """Number of stored values per frame."""
        return self.num_quantizers

    @property
    def dtype(self) -> np.dtype:
        """Smallest unsigned integer type for all codes, little-endian."""
        return code_dtype(self.codebook_sizes)

    def describe(self) -> dict[str, Any]:
        """Content of `tokens.json` that follows from the format."""
        divisor = math.gcd(self.sample_rate, self.hop_length)
        frame_rate = [self.sample_rate // divisor, self.hop_length // divisor]
        return {
            "format": self.kind,
            "version": VERSION,
            **asdict(self),
            "codebook_sizes": list(self.codebook_sizes),
            "num_quantizers": self.num_quantizers,
            "frame_rate": frame_rate,
            "dtype": self.dtype.name,
            "order": "[num_quantizers, n_frames], row-major, little-endian",
        }

    def fault(self, coded: np.ndarray) -> str:
        """Fault of stored codes `[k, F]` in words; empty without one."""
        wrong = (coded.max(axis=1) >= self.codebook_sizes[: len(coded)]).any()
        return "codes exceed the codebooks" if wrong else ""

    def of_codec(self, codec: Codec) -> dict[str, Any]:
        """Values of a codec that describe its codes, by attribute of this format."""
        return {"codebook_sizes": tuple(codec.quantizer.codebook_sizes[: self.num_quantizers])}

    def frames(self, n_samples: int, sample_rate: int) -> int:
        """Number of frames of a recording of `n_samples` at `sample_rate`."""
        return -(-self.length(n_samples, sample_rate) // self.hop_length)

    def require_true_of(self, codec: Codec, path: Path) -> None:
        """Raise TokenError with the attributes that differ from the codec's; `path` is this format's file.

        A codec of the same codes as the one of the tokens has the same frame rate, and maybe another sample
        rate.
        """
        names = ["sample_rate", "hop_length", "audio_channels"]
        if self.codec_id == codec.autoencoder.codes_of:
            names[:2] = ["frame_rate"]
        expected = {name: getattr(codec, name) for name in names} | self.of_codec(codec)
        wrong = [
            f"{name} {getattr(self, name)}, the codec has {value}"
            for name, value in expected.items()
            if getattr(self, name) != value
        ]
        if wrong:
            raise TokenError(f"{path}: damaged: it contradicts its codec: {'; '.join(wrong)}")

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.sample_rate / self.hop_length

    def length(self, n_samples: int, sample_rate: int) -> int:
        """Length in samples at the codec's rate of a recording of `n_samples` at `sample_rate`."""
        return n_samples * self.sample_rate // sample_rate


@dataclass(frozen=True)
class Utterance:
    """Row of an index: a recording's header, and the location and checksum of its codes.

    `path` is relative, with `/`. `offset` counts bytes from the beginning of Arrow shard `shard`.
    """

    id: str
    path: str
    channels: int
    sample_rate: int
    n_samples: int
    n_frames: int
    sha256: str
    crc32: int
    shard: int = 0
    offset: int = 0


def code_dtype(codebook_sizes: Sequence[int]) -> np.dtype:
    """Smallest of uint8, uint16, uint32 for codes below these sizes."""
    largest = max(codebook_sizes) - 1
    return np.dtype("<u1" if largest < 2**8 else "<u2" if largest < 2**16 else "<u4")


def checksum(codes: np.ndarray) -> int:
    """CRC-32 of codes in their stored type."""
    return zlib.crc32(np.ascontiguousarray(codes).data)


def shard_file(number: int) -> str:
    """Path of Arrow shard `number` relative to the dataset."""
    return f"{SHARDS}/{number:05d}.arrow"


def mirrored(path: str, suffix: str) -> str:
    """Append a suffix to `path`; a name too long for file systems is shortened and gets a hash."""
    folder, slash, name = path.rpartition("/")
    encoded = os.fsencode(name)
    if len(encoded) + len(suffix) > LONGEST_NAME:
        digest = hashlib.sha256(encoded).hexdigest()[:16]
        name = f"{encoded[: LONGEST_NAME - 24 - len(suffix)].decode('utf-8', 'ignore')}-{digest}"
    return folder + slash + name + suffix


def inside(path: str) -> str:
    """Return `path`; TokenError unless it is relative and stays below its folder."""
    parts = PurePosixPath(path).parts
    absolute = path.startswith("/") or path[1:2] == ":"
    odd = ".." in parts or "\\" in path or "\0" in path
    if not parts or absolute or odd or len(parts) > MOST_FOLDERS:
        raise TokenError(f"the path {path[:200]!r} is not a plain relative one")
    return path


def flush_folder(folder: Path) -> None:
    """Flush a folder, so that a rename survives a power failure; POSIX only."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_npy(path: Path, token_format: TokenFormat, n_frames: int) -> np.ndarray:
    """Map the codes, or latents, `[R, F]` of a `.npy` file; TokenError if it contradicts the manifest.

    Type and shape are given, so the header is compared instead of parsed.
    """
    shape = (token_format.rows, n_frames)
    expected = io.BytesIO()
    description = {"descr": token_format.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(expected, description)
    header = expected.getvalue()
    try:
        content = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise TokenError(f"{path}: missing or damaged: {error}") from error
    size = len(header) + math.prod(shape) * token_format.dtype.itemsize
    if len(content) != size or content[: len(header)].tobytes() != header:
        raise TokenError(f"{path}: not {token_format.dtype.name} {list(shape)} as its manifest says")
    return content[len(header) :].view(token_format.dtype).reshape(shape)
