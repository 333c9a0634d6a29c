"""What a `.codec` file is made of: a header, chunks and an end record, each with its checksum.

All numbers are little-endian. The header: magic, version, codec id (32 bytes), tables id (16 bytes; zeros for
codes that are stored as they are), sample rate, channels, hop length, frames per chunk, number of stages,
their codebook sizes, CRC. A chunk: marker, number, frames, the length of each stage's bytes (its highest bit
says that they are not coded), CRC; the stages' bytes, one stage after the other, CRC. The end: marker,
chunks, frames and samples, CRC of the chunks' last CRCs, CRC. Each CRC-32 begins with the header's,
that of the stages with their head's: nothing is read under another header. All chunks but the last are full.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

from codec.bitstream.coding import CorruptError
from codec.files import FileError

MAGIC, VERSION = b"\x89codec\r\n", 1
CHUNK, END = b"CHNK", b"END."
FIXED = struct.Struct("<8sH32s16sIHIIH")
CHUNK_START, END_START, CRC = struct.Struct("<4sII"), struct.Struct("<4sIQQI"), struct.Struct("<I")
END_BYTES = END_START.size + CRC.size
FRAMES_PER_BYTE = 64  # at most: what decodes to a million frames has to be of some size
LIMITS = {"sample_rate": 2**20, "channels": 64, "hop_length": 2**20, "chunk_frames": 2**16}
MOST_STAGES, LARGEST_CODEBOOK = 64, 2**24
LARGEST_HEADER = FIXED.size + 4 * MOST_STAGES + CRC.size


class BitstreamError(FileError):
    """A `.codec` file that cannot be read."""


@dataclass(frozen=True)
class Header:
    """What holds for all of a file; ids are hexadecimal, an empty `tables_id` for codes not coded."""

    codec_id: str
    tables_id: str
    sample_rate: int
    channels: int
    hop_length: int
    chunk_frames: int
    codebook_sizes: tuple[int, ...]

    def check(self) -> None:
        """CorruptError when a number is out of its range."""
        for name, most in LIMITS.items():
            if not 1 <= getattr(self, name) <= most:
                raise CorruptError(f"{name} must be 1 to {most}, got {getattr(self, name)}")
        if not re.fullmatch("[0-9a-f]{64}", self.codec_id) or not re.fullmatch(
            "([0-9a-f]{32})?", self.tables_id
        ):
            raise CorruptError(f"not ids of a codec and tables: {self.codec_id!r}, {self.tables_id!r}")
        if not 1 <= len(self.codebook_sizes) <= MOST_STAGES:
            raise CorruptError(f"num_quantizers must be 1 to {MOST_STAGES}, got {len(self.codebook_sizes)}")
        if not all(2 <= size <= LARGEST_CODEBOOK for size in self.codebook_sizes):
            raise CorruptError(f"codebook sizes must be 2 to {LARGEST_CODEBOOK}, got {self.codebook_sizes}")

    def pack(self) -> bytes:
        """The header's bytes, with the CRC."""
        self.check()
        ids = bytes.fromhex(self.codec_id), bytes.fromhex(self.tables_id)
        numbers = self.sample_rate, self.channels, self.hop_length, self.chunk_frames
        fixed = FIXED.pack(MAGIC, VERSION, *ids, *numbers, len(self.codebook_sizes))
        return sealed(fixed + struct.pack(f"<{len(self.codebook_sizes)}I", *self.codebook_sizes))

    @property
    def crc(self) -> int:
        """What every other CRC begins with."""
        return CRC.unpack(self.pack()[-CRC.size :])[0]

    @property
    def depth(self) -> int:
        """Number of quantizers."""
        return len(self.codebook_sizes)

    @cached_property
    def head_bytes(self) -> int:
        """Bytes of a chunk before those of its stages."""
        return CHUNK_START.size + self.lengths.size + CRC.size

    @cached_property
    def lengths(self) -> struct.Struct:
        """How the stages' lengths are stored: in two bytes where all fit, otherwise in four."""
        return struct.Struct(f"<{self.depth}{'I' if self.raw_flag >> 31 else 'H'}")

    @cached_property
    def raw_flag(self) -> int:
        """The highest bit of a stage's length: its codes are stored as they are, because that is shorter."""
        most = max(self.raw_bytes(stage, self.chunk_frames) for stage in range(self.depth))
        return 1 << 15 if most < 1 << 15 else 1 << 31

    @property
    def least_chunk_bytes(self) -> int:
        """Bytes of the smallest chunk that is not the last."""
        return self.head_bytes + CRC.size + len(self.codebook_sizes) * least_bytes(self.chunk_frames)

    def raw_bytes(self, stage: int, frames: int) -> int:
        """Bytes of a stage's codes stored as they are: the most that a stage takes."""
        return -(-frames * (self.codebook_sizes[stage] - 1).bit_length() // 8)

    def prefix(self, num_quantizers: int) -> Header:
        """The header of the same file with only its first stages."""
        return replace(self, codebook_sizes=self.codebook_sizes[:num_quantizers])


def least_bytes(frames: int) -> int:
    """Bytes that a stage takes at the least."""
    return -(-frames // FRAMES_PER_BYTE)


def sealed(data: bytes, seed: int = 0) -> bytes:
    """Data and its CRC."""
    return data + CRC.pack(crc32(data, seed))


def unsealed(data: bytes, seed: int = 0) -> bytes:
    """What `sealed` was given; CorruptError when the CRC does not fit."""
    content = data[: -CRC.size]
    if len(data) < CRC.size or CRC.unpack(data[-CRC.size :])[0] != crc32(content, seed):
        raise CorruptError("its checksum does not fit: damaged")
    return content


def unpack_header(data: bytes) -> Header:
    """The header at the start of `data`; CorruptError when there is none, or it is damaged or too new."""
    if not data.startswith(MAGIC):
        raise CorruptError(f"not a .codec file: begins with {data[: len(MAGIC)]!r}")
    if len(data) < FIXED.size:
        raise CorruptError("truncated in the header")
    _, version, codec_id, tables_id, *numbers, count = FIXED.unpack_from(data)
    if version != VERSION:
        raise CorruptError(f"format version {version}; this program reads version {VERSION}: update it")
    size = FIXED.size + 4 * count + CRC.size
    if len(data) < size:
        raise CorruptError("truncated or damaged in the header")
    try:
        content = unsealed(data[:size])
    except CorruptError:
        raise CorruptError("the header's checksum does not fit: damaged") from None
    sizes = struct.unpack_from(f"<{count}I", content, FIXED.size)
    tables = tables_id.hex() if any(tables_id) else ""
    header = Header(codec_id.hex(), tables, *numbers, codebook_sizes=sizes)
    header.check()
    return header


class Head(NamedTuple):
    """The start of a chunk: its number, its frames, and the bytes of each stage."""

    index: int
    frames: int
    sizes: tuple[int, ...]
    raw: tuple[bool, ...]

    def pack(self, header: Header, seed: int) -> bytes:
        """The head's bytes, with the CRC."""
        lengths = [size | raw * header.raw_flag for size, raw in zip(self.sizes, self.raw, strict=True)]
        return sealed(CHUNK_START.pack(CHUNK, self.index, self.frames) + header.lengths.pack(*lengths), seed)


def unpack_head(data: bytes, header: Header, seed: int) -> Head:
    """The head of a chunk; CorruptError when it is damaged, or says what no chunk can be."""
    if data[: len(CHUNK)] != CHUNK:
        raise CorruptError("damaged: a chunk should begin here")
    content = unsealed(data, seed)
    _, index, frames = CHUNK_START.unpack_from(content)
    lengths, flag = header.lengths.unpack_from(content, CHUNK_START.size), header.raw_flag
    head = Head(index, frames, tuple(n & flag - 1 for n in lengths), tuple(n >= flag for n in lengths))
    if not 1 <= frames <= header.chunk_frames:
        raise CorruptError(f"a chunk of {frames} frames, where {header.chunk_frames} are the most")
    for stage, (size, raw) in enumerate(zip(head.sizes, head.raw, strict=True)):
        most = header.raw_bytes(stage, frames)
        if not (most if raw else least_bytes(frames)) <= size <= most:
            raise CorruptError(f"{size} bytes for {frames} codes of stage {stage}")
    return head


class End(NamedTuple):
    """The last record: numbers of chunks, frames and samples per channel, and the CRC of the chunks' CRCs."""

    chunks: int
    frames: int
    samples: int
    digest: int

    def pack(self, seed: int) -> bytes:
        """The record's bytes, with the CRC."""
        return sealed(END_START.pack(END, *self), seed)


def unpack_end(data: bytes, header: Header, seed: int) -> End:
    """The end record; CorruptError when it is not there, damaged, or its numbers contradict each other."""
    if data[: len(END)] != END:
        raise CorruptError("no end record: the file is truncated, or bytes were added")
    end = End(*END_START.unpack(unsealed(data, seed))[1:])
    whole = -(-end.samples // header.hop_length), -(-end.frames // header.chunk_frames)
    if end.samples < 1 or whole != (end.frames, end.chunks):
        raise CorruptError(f"{end.chunks} chunks, {end.frames} frames and {end.samples} samples do not agree")
    return end
