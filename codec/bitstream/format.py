"""Records of a `.codec` file: a header, chunks and an end record, each with its checksum.

All numbers are little-endian. The header: magic, version, codec id (32 bytes), tables id (16 bytes; zeros for
codes without entropy coding), sample rate, channels, hop length, frames per chunk, number of stages, their
codebook sizes, CRC. A chunk: marker, index, frames, number of bytes of each stage (the highest bit marks raw
codes), CRC; the stages' bytes, one stage after the other, CRC. The end: marker, number of chunks, frames and
samples, CRC of the chunks' last CRCs, CRC. Each CRC-32 is seeded with the header's, that of the stages with
their head's: no record is valid under another header. All chunks but the last are full.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

from codec.bitstream.range_coder import CorruptError
from codec.system.files import FileError

MAGIC, VERSION = b"\x89codec\r\n", 1
CHUNK, END = b"CHNK", b"END."
FIXED = struct.Struct("<8sH32s16sIHIIH")
CHUNK_START, END_START, CRC = struct.Struct("<4sII"), struct.Struct("<4sIQQI"), struct.Struct("<I")
END_BYTES = END_START.size + CRC.size
FRAMES_PER_BYTE = 64  # at most: bounds the frames that a small file can decode to
LIMITS = {"sample_rate": 2**20, "channels": 64, "hop_length": 2**20, "chunk_frames": 2**16}
MOST_STAGES, LARGEST_CODEBOOK = 64, 2**24
LARGEST_HEADER = FIXED.size + 4 * MOST_STAGES + CRC.size


class BitstreamError(FileError):
    """Unreadable `.codec` file."""


@dataclass(frozen=True)
class Header:
    """Header of a file; ids are hexadecimal, `tables_id` is empty without entropy coding."""

    codec_id: str
    tables_id: str
    sample_rate: int
    channels: int
    hop_length: int
    chunk_frames: int
    codebook_sizes: tuple[int, ...]

    def check(self) -> None:
        """Raise CorruptError if a number is out of range."""
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise CorruptError(f"{name} must be 1 to {limit}, got {getattr(self, name)}")
        if not re.fullmatch("[0-9a-f]{64}", self.codec_id) or not re.fullmatch(
            "([0-9a-f]{32})?", self.tables_id
        ):
            raise CorruptError(f"not ids of a codec and tables: {self.codec_id!r}, {self.tables_id!r}")
        if not 1 <= len(self.codebook_sizes) <= MOST_STAGES:
            raise CorruptError(f"num_quantizers must be 1 to {MOST_STAGES}, got {len(self.codebook_sizes)}")
        if not all(2 <= size <= LARGEST_CODEBOOK for size in self.codebook_sizes):
            raise CorruptError(f"codebook sizes must be 2 to {LARGEST_CODEBOOK}, got {self.codebook_sizes}")

    def pack(self) -> bytes:
        """Pack the header, with its CRC."""
        self.check()
        ids = bytes.fromhex(self.codec_id), bytes.fromhex(self.tables_id)
        numbers = self.sample_rate, self.channels, self.hop_length, self.chunk_frames
        fixed = FIXED.pack(MAGIC, VERSION, *ids, *numbers, len(self.codebook_sizes))
        return sealed(fixed + struct.pack(f"<{len(self.codebook_sizes)}I", *self.codebook_sizes))

    @property
    def crc(self) -> int:
        """CRC of the header, the seed of all other CRCs."""
        return CRC.unpack(self.pack()[-CRC.size :])[0]

    @property
    def depth(self) -> int:
        """Number of quantizers."""
        return len(self.codebook_sizes)

    @cached_property
    def head_bytes(self) -> int:
        """Size of a chunk's head in bytes."""
        return CHUNK_START.size + self.lengths.size + CRC.size

    @cached_property
    def lengths(self) -> struct.Struct:
        """Layout of the stages' lengths: two bytes each if all fit, otherwise four."""
        return struct.Struct(f"<{self.depth}{'I' if self.raw_flag >> 31 else 'H'}")

    @cached_property
    def raw_flag(self) -> int:
        """Highest bit of a stage's length: marks raw codes, used where they are shorter."""
        longest = max(self.raw_bytes(stage, self.chunk_frames) for stage in range(self.depth))
        return 1 << 15 if longest < 1 << 15 else 1 << 31

    @property
    def least_chunk_bytes(self) -> int:
        """Smallest size in bytes of a chunk that is not the last."""
        return self.head_bytes + CRC.size + len(self.codebook_sizes) * least_bytes(self.chunk_frames)

    def raw_bytes(self, stage: int, frames: int) -> int:
        """Size of a stage's raw codes in bytes, an upper bound for coded ones."""
        return -(-frames * (self.codebook_sizes[stage] - 1).bit_length() // 8)

    def prefix(self, num_quantizers: int) -> Header:
        """Header of the same file with only the first `num_quantizers` stages."""
        return replace(self, codebook_sizes=self.codebook_sizes[:num_quantizers])


def least_bytes(frames: int) -> int:
    """Smallest size of a stage in bytes."""
    return -(-frames // FRAMES_PER_BYTE)


def sealed(data: bytes, seed: int = 0) -> bytes:
    """Append the CRC of `data`."""
    return data + CRC.pack(crc32(data, seed))


def unsealed(data: bytes, seed: int = 0) -> bytes:
    """Remove and check the CRC; CorruptError if it does not match."""
    content = data[: -CRC.size]
    if len(data) < CRC.size or CRC.unpack(data[-CRC.size :])[0] != crc32(content, seed):
        raise CorruptError("its checksum does not match: damaged")
    return content


def unpack_header(data: bytes) -> Header:
    """Unpack the header at the start of `data`; CorruptError if it is missing, damaged or too new."""
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
        raise CorruptError("the header's checksum does not match: damaged") from None
    sizes = struct.unpack_from(f"<{count}I", content, FIXED.size)
    tables = tables_id.hex() if any(tables_id) else ""
    header = Header(codec_id.hex(), tables, *numbers, codebook_sizes=sizes)
    header.check()
    return header


class Head(NamedTuple):
    """Head of a chunk: its index, number of frames, and for each stage its size in bytes and if it is raw."""

    index: int
    frames: int
    sizes: tuple[int, ...]
    raw: tuple[bool, ...]

    def pack(self, header: Header, seed: int) -> bytes:
        """Pack the head, with its CRC."""
        lengths = [size | raw * header.raw_flag for size, raw in zip(self.sizes, self.raw, strict=True)]
        return sealed(CHUNK_START.pack(CHUNK, self.index, self.frames) + header.lengths.pack(*lengths), seed)


def unpack_head(data: bytes, header: Header, seed: int) -> Head:
    """Unpack the head of a chunk; CorruptError if it is damaged or has impossible numbers."""
    if data[: len(CHUNK)] != CHUNK:
        raise CorruptError("damaged: expected the marker of a chunk")
    content = unsealed(data, seed)
    _, index, frames = CHUNK_START.unpack_from(content)
    lengths, flag = header.lengths.unpack_from(content, CHUNK_START.size), header.raw_flag
    head = Head(index, frames, tuple(n & flag - 1 for n in lengths), tuple(n >= flag for n in lengths))
    if not 1 <= frames <= header.chunk_frames:
        raise CorruptError(f"a chunk of {frames} frames, the header allows 1 to {header.chunk_frames}")
    for stage, (size, raw) in enumerate(zip(head.sizes, head.raw, strict=True)):
        limit = header.raw_bytes(stage, frames)
        if not (limit if raw else least_bytes(frames)) <= size <= limit:
            raise CorruptError(f"{size} bytes for {frames} codes of stage {stage} are impossible")
    return head


class End(NamedTuple):
    """End record: numbers of chunks, frames and samples per channel, and the CRC of the chunks' CRCs."""

    chunks: int
    frames: int
    samples: int
    digest: int

    def pack(self, seed: int) -> bytes:
        """Pack the record, with its CRC."""
        return sealed(END_START.pack(END, *self), seed)


def unpack_end(data: bytes, header: Header, seed: int) -> End:
    """Unpack the end record; CorruptError if it is missing, damaged, or contradicts itself."""
    if data[: len(END)] != END:
        raise CorruptError("no end record: the file is truncated, or bytes were added")
    end = End(*END_START.unpack(unsealed(data, seed))[1:])
    expected = -(-end.samples // header.hop_length), -(-end.frames // header.chunk_frames)
    if end.samples < 1 or expected != (end.frames, end.chunks):
        raise CorruptError(f"{end.chunks} chunks, {end.frames} frames and {end.samples} samples do not agree")
    return end
