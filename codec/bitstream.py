"""Compressed codes in a `.codec` file: written chunk by chunk, read with every byte checked.

A chunk decodes alone. Its stages lie one after the other, and none leans on a later one: a file is cut to
fewer quantizers without the model (`truncate`). `codec.bitstream_records` has the bytes.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple
from zlib import crc32

import numpy as np

from codec.audio import printable
from codec.bitstream_records import (
    CHUNK,
    CRC,
    END_BYTES,
    LARGEST_HEADER,
    BitstreamError,
    End,
    Head,
    Header,
    least_bytes,
    unpack_end,
    unpack_head,
    unpack_header,
)
from codec.coding import CorruptError, pack_bits, unpack_bits
from codec.entropy import EntropyTables, TablesError

WINDOW = 2**16  # bytes searched at a time for the next whole chunk


class Chunk(NamedTuple):
    """Codes int64 `[K, frames]` from frame `start` on, or the `problem` that they were lost to."""

    start: int
    frames: int
    codes: np.ndarray | None
    problem: str = ""


class BitstreamWriter:
    """Writes codes that arrive in pieces into an open file; a file without `finish` is seen to be truncated."""

    def __init__(self, file: BinaryIO, header: Header, tables: EntropyTables | None = None):
        self.file, self.header, self.tables = file, header, tables
        self.seed, self.digest = header.crc, 0
        self.chunks = self.frames = 0
        self.stage_bytes = [0] * len(header.codebook_sizes)
        self.waiting = np.zeros((len(header.codebook_sizes), 0), np.int64)
        file.write(header.pack())

    def write(self, codes: np.ndarray) -> None:
        """Take codes `[K, F]`; ValueError for other shapes and for codes beyond their codebooks."""
        sizes = np.array(self.header.codebook_sizes)[:, None]
        if codes.ndim != 2 or len(codes) != len(sizes) or codes.dtype.kind not in "iu":
            raise ValueError(
                f"codes must be integers [{len(sizes)}, F], got {codes.dtype} {list(codes.shape)}"
            )
        if ((codes < 0) | (codes >= sizes)).any():
            raise ValueError(f"codes must be at least 0 and below the sizes {self.header.codebook_sizes}")
        self.waiting = np.concatenate([self.waiting, codes.astype(np.int64)], axis=1)
        while self.waiting.shape[1] >= self.header.chunk_frames:
            self.write_chunk(self.waiting[:, : self.header.chunk_frames])
            self.waiting = self.waiting[:, self.header.chunk_frames :]

    def write_chunk(self, codes: np.ndarray) -> None:
        """Code and write one chunk `[K, F]`."""
        require_tables(self.header, self.tables)
        parts = [self.encode(codes[: stage + 1]) for stage in range(len(codes))]
        self.copy_chunk([part for part, _ in parts], [raw for _, raw in parts], codes.shape[1])

    def copy_chunk(self, parts: list[bytes], raw: list[bool], frames: int) -> None:
        """Write one chunk of stages that are coded already."""
        head = Head(self.chunks, frames, tuple(map(len, parts)), tuple(raw)).pack(self.seed)
        crc = CRC.pack(crc32(b"".join(parts), CRC.unpack(head[-CRC.size :])[0]))
        self.file.write(b"".join([head, *parts, crc]))
        self.digest = crc32(crc, self.digest)
        self.chunks, self.frames = self.chunks + 1, self.frames + frames
        self.stage_bytes = [total + len(part) for total, part in zip(self.stage_bytes, parts, strict=True)]

    def encode(self, codes: np.ndarray) -> tuple[bytes, bool]:
        """Bytes of the last stage's codes in `[K, F]`, and whether they are stored as they are."""
        size, frames = self.header.codebook_sizes[len(codes) - 1], codes.shape[1]
        raw = pack_bits(codes[-1], (size - 1).bit_length())
        if self.tables is None:
            return raw, True
        coded = self.tables.encode(codes).ljust(least_bytes(frames), b"\0")
        return (coded, False) if len(coded) < len(raw) else (raw, True)

    def finish(self, samples: int) -> None:
        """Write what waits and the end record; ValueError unless the frames are those of so many samples."""
        frames = self.frames + self.waiting.shape[1]
        if samples < 1 or frames != -(-samples // self.header.hop_length):
            raise ValueError(f"{frames} frames of {self.header.hop_length} samples are not {samples} samples")
        if self.waiting.shape[1]:
            self.write_chunk(self.waiting)
        self.file.write(End(self.chunks, self.frames, samples, self.digest).pack(self.seed))


class BitstreamReader:
    """Reads a `.codec` file; BitstreamError for one that is not whole. Use: `with BitstreamReader(path) as reader`.

    With `salvage`, only the header has to be whole: `end` is None where the end record is lost, and damaged
    chunks are returned with the `problem` that they have.
    """

    def __init__(self, path: str | os.PathLike[str], salvage: bool = False):
        self.path, self.salvage = Path(path), salvage
        self.file = open_regular(self.path)
        try:
            self.length = os.fstat(self.file.fileno()).st_size
            self.header = unpack_header(self.read(0, LARGEST_HEADER))
            self.seed, self.begin = self.header.crc, len(self.header.pack())
            self.end = self.read_end()
            self.window = (0, b"")
        except CorruptError as error:
            self.file.close()
            raise BitstreamError(self.path, str(error)) from error
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> BitstreamReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position` on: never more than there are."""
        self.file.seek(position)
        return self.file.read(max(0, min(size, self.length - position)))

    def read_end(self) -> End | None:
        """The end record; CorruptError, or None to salvage, where it is lost or promises more than there is."""
        try:
            end = unpack_end(self.read(max(0, self.length - END_BYTES), END_BYTES), self.header, self.seed)
            if (end.chunks - 1) * self.header.least_chunk_bytes > self.length:
                raise CorruptError(f"{end.chunks} chunks are promised, in {self.length} bytes")
        except CorruptError:
            if self.salvage:
                return None
            raise
        return end

    def chunks(
        self, tables: EntropyTables | None = None, num_quantizers: int | None = None
    ) -> Iterator[Chunk]:
        """Chunk by chunk, the codes of the first stages; TablesError unless `tables` are the file's own."""
        require_tables(self.header, tables)
        count = len(self.header.codebook_sizes)
        if num_quantizers is not None and not 1 <= num_quantizers <= count:
            raise ValueError(f"num_quantizers must be 1 to {count} for {self.path}, got {num_quantizers}")
        if self.salvage:
            yield from self.salvaged(tables, num_quantizers or count)
            return
        for head, parts in self.stored():
            start = head.index * self.header.chunk_frames
            try:
                codes = self.decode(head, parts[:num_quantizers], tables)
            except CorruptError as error:
                raise self.damaged(head.index, error) from error
            yield Chunk(start, head.frames, codes)

    def stored(self) -> Iterator[tuple[Head, list[bytes]]]:
        """Each chunk's head and its stages' bytes; BitstreamError at the first that is damaged."""
        if self.end is None:
            raise BitstreamError(self.path, "no end record: read it with salvage")
        position, digest, end = self.begin, 0, self.end
        for index in range(end.chunks):
            try:
                head, parts, crc = self.read_chunk(position)
                frames = min(self.header.chunk_frames, end.frames - index * self.header.chunk_frames)
                if head.index != index or head.frames != frames:
                    raise CorruptError(f"chunk {head.index} of {head.frames} frames is in its place")
            except CorruptError as error:
                raise self.damaged(index, error) from error
            yield head, parts
            digest = crc32(crc, digest)
            position += self.header.head_bytes + sum(head.sizes) + CRC.size
        if position != self.length - END_BYTES:
            raise BitstreamError(self.path, "bytes between the last chunk and the end record")
        if digest != end.digest:
            raise BitstreamError(self.path, "its chunks are not those that it was written with")

    def read_chunk(self, position: int) -> tuple[Head, list[bytes], bytes]:
        """Head, stages' bytes and CRC of the chunk at `position`; CorruptError when it is damaged."""
        start = self.read(position, self.header.head_bytes)
        head = unpack_head(start, self.header, self.seed)
        size, here = sum(head.sizes), position + len(start)
        if here + size + CRC.size > self.length:
            raise CorruptError("truncated")
        data = self.read(here, size + CRC.size)
        content = opened(data, CRC.unpack(start[-CRC.size :])[0])
        cuts = [0, *accumulate(head.sizes)]
        return head, [content[a:b] for a, b in pairwise(cuts)], data[-CRC.size :]

    def decode(self, head: Head, parts: list[bytes], tables: EntropyTables | None) -> np.ndarray:
        """Codes int64 `[len(parts), F]`; CorruptError for bytes that no writer wrote."""
        codes = np.zeros((len(parts), head.frames), np.int64)
        for stage, (part, raw) in enumerate(zip(parts, head.raw, strict=False)):
            size = self.header.codebook_sizes[stage]
            if not raw and tables is None:
                raise CorruptError("coded with tables, and the header names none")
            if raw or tables is None:
                codes[stage] = unpack_bits(part, (size - 1).bit_length(), head.frames)
            else:
                codes[stage] = tables.decode(part, codes[:stage])
            if codes[stage].max() >= size:
                raise CorruptError(f"a code of stage {stage} is beyond its codebook of {size}")
        return codes

    def salvaged(self, tables: EntropyTables | None, num_quantizers: int) -> Iterator[Chunk]:
        """All chunks in order, the damaged ones with their problem and without codes."""
        position, frame, problem = self.begin, 0, ""
        most = self.length // self.header.least_chunk_bytes + 1  # numbers beyond it would be endless silence
        last = self.end.frames if self.end else most * self.header.chunk_frames
        while position < self.length:
            try:
                head, parts, _ = self.read_chunk(position)
                start = head.index * self.header.chunk_frames
                if start < frame or start + head.frames > last:
                    raise CorruptError(f"chunk {head.index} is in its place")
                codes = self.decode(head, parts[:num_quantizers], tables)
            except CorruptError as error:
                problem = problem or str(error)
                position = self.find_chunk(position + 1)
                continue
            if start > frame:
                yield Chunk(frame, start - frame, None, problem or "lost")
            yield Chunk(start, head.frames, codes)
            frame, problem = start + head.frames, ""
            position += self.header.head_bytes + sum(head.sizes) + CRC.size
        if self.end and self.end.frames > frame:
            yield Chunk(frame, self.end.frames - frame, None, problem or "lost")

    def find_chunk(self, position: int) -> int:
        """Where the next marker of a chunk is, or the file's end."""
        while True:
            begin, block = self.window
            if begin <= position <= begin + len(block) - len(CHUNK):
                found = block.find(CHUNK, position - begin)
                if found >= 0:
                    return begin + found
                position = begin + len(block) - len(CHUNK) + 1
            if position + len(CHUNK) > self.length:
                return self.length
            self.window = position, self.read(position, WINDOW)

    def damaged(self, index: int, error: Exception) -> BitstreamError:
        """The error of a chunk, with its place."""
        seconds = index * self.header.chunk_frames * self.header.hop_length / self.header.sample_rate
        return BitstreamError(self.path, f"chunk {index}, from {seconds:.2f} s on: {error}")


def truncate(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    num_quantizers: int,
    overwrite: bool = False,
) -> None:
    """Copy a `.codec` file with only its first stages, without the codec or its tables.

    The bytes are those that the codes' first stages are written to. BitstreamError for a damaged file,
    FileExistsError for an existing target, ValueError for a number of stages that the file does not have.
    """
    with BitstreamReader(source) as reader:
        count = len(reader.header.codebook_sizes)
        if reader.end is None or not 1 <= num_quantizers <= count:
            raise ValueError(
                f"num_quantizers must be 1 to {count} for {printable(source)}, got {num_quantizers}"
            )
        with new_file(target, overwrite) as file:
            writer = BitstreamWriter(file, reader.header.prefix(num_quantizers))
            for head, parts in reader.stored():
                writer.copy_chunk(parts[:num_quantizers], list(head.raw[:num_quantizers]), head.frames)
            writer.finish(reader.end.samples)


def require_tables(header: Header, tables: EntropyTables | None) -> None:
    """TablesError unless `tables` are those that the header names."""
    if not header.tables_id:
        return
    if tables is None:
        raise TablesError(f"the entropy tables {header.tables_id} are needed, and none are given")
    if tables.tables_id != header.tables_id:
        raise TablesError(f"the entropy tables {header.tables_id} are needed, not {tables.tables_id}")
    if tables.codec_id != header.codec_id or tables.codebook_sizes[: header.depth] != header.codebook_sizes:
        raise TablesError(f"the entropy tables are of codec {tables.codec_id}, not of {header.codec_id}")


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; BitstreamError for what is none, as a FIFO that would block for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BitstreamError(path, "not a regular file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, BitstreamError):
            raise
        raise BitstreamError(path, getattr(error, "strerror", None) or str(error)) from error


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write that appears complete or not at all; FileExistsError unless it may replace another."""
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{printable(target)} exists already: name another file, or use --force")
    temporary = target.parent / f".codec-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
