"""Reader of `.codec` files, with every field validated: files may be malicious."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple
from zlib import crc32

import numpy as np

from codec.bitstream.entropy_model import EntropyTables, TablesError
from codec.bitstream.format import (
    CHUNK,
    CRC,
    END_BYTES,
    LARGEST_HEADER,
    BitstreamError,
    End,
    Head,
    Header,
    unpack_end,
    unpack_head,
    unpack_header,
    unsealed,
)
from codec.bitstream.range_coder import CorruptError, unpack_bits
from codec.config import ConfigError

WINDOW = 2**16  # bytes read at a time in the search for the next intact chunk


class Chunk(NamedTuple):
    """Codes int64 `[K, frames]` from frame `start` on; None with a `problem` if they are lost."""

    start: int
    frames: int
    codes: np.ndarray | None
    problem: str = ""


class BitstreamReader:
    """Reads a `.codec` file, `with BitstreamReader(path) as reader`; BitstreamError if it is damaged.

    With `salvage`, only the header must be intact: `end` is None if the end record is lost, and damaged
    chunks are returned with their `problem`.
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
        """Read up to `size` bytes from `position` on, without exceeding the file's length."""
        self.file.seek(position)
        return self.file.read(max(0, min(size, self.length - position)))

    def read_end(self) -> End | None:
        """Read the end record; if it is damaged or has too many chunks, CorruptError, or None in salvage."""
        try:
            end = unpack_end(self.read(max(0, self.length - END_BYTES), END_BYTES), self.header, self.seed)
            if (end.chunks - 1) * self.header.least_chunk_bytes > self.length:
                raise CorruptError(f"{end.chunks} chunks do not fit into {self.length} bytes")
        except CorruptError:
            if self.salvage:
                return None
            raise
        return end

    @property
    def most_frames(self) -> int:
        """Number of frames; without an end record, an upper bound from the file size."""
        if self.end:
            return self.end.frames
        return (self.length // self.header.least_chunk_bytes + 1) * self.header.chunk_frames

    def chunks(
        self, tables: EntropyTables | None = None, num_quantizers: int | None = None
    ) -> Iterator[Chunk]:
        """Yield the chunks with codes of the first `num_quantizers`; TablesError for other `tables`."""
        require_tables(self.header, tables)
        count = len(self.header.codebook_sizes)
        if num_quantizers is not None and not 1 <= num_quantizers <= count:
            raise ConfigError(f"num_quantizers must be 1 to {count} for {self.path}, got {num_quantizers}")
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
        """Yield each chunk's head and its stages' bytes; BitstreamError at the first damaged chunk."""
        if self.end is None:
            raise BitstreamError(self.path, "no end record: read it with salvage")
        position, digest, end = self.begin, 0, self.end
        for index in range(end.chunks):
            try:
                head = self.read_head(position)
                parts, crc = self.read_stages(position, head)
                frames = min(self.header.chunk_frames, end.frames - index * self.header.chunk_frames)
                if head.index != index or head.frames != frames:
                    raise CorruptError(
                        f"expected chunk {index} of {frames} frames, "
                        f"found chunk {head.index} of {head.frames} frames"
                    )
            except CorruptError as error:
                raise self.damaged(index, error) from error
            yield head, parts
            digest = crc32(crc, digest)
            position += self.size(head)
        if position != self.length - END_BYTES:
            raise BitstreamError(self.path, "bytes between the last chunk and the end record")
        if digest != end.digest:
            raise BitstreamError(self.path, "the chunks do not match the end record's checksum")

    def size(self, head: Head) -> int:
        """Size of a chunk in bytes."""
        return self.header.head_bytes + sum(head.sizes) + CRC.size

    def read_head(self, position: int) -> Head:
        """Read the head of the chunk at `position`; CorruptError if it is damaged or exceeds the file."""
        head = unpack_head(self.read(position, self.header.head_bytes), self.header, self.seed)
        if position + self.size(head) > self.length:
            raise CorruptError("truncated")
        return head

    def read_stages(self, position: int, head: Head) -> tuple[list[bytes], bytes]:
        """Read stages' bytes and CRC of the chunk at `position`; CorruptError if it is damaged."""
        data = self.read(position, self.size(head))
        begin = self.header.head_bytes
        content = unsealed(data[begin:], CRC.unpack_from(data, begin - CRC.size)[0])
        cuts = [0, *accumulate(head.sizes)]
        return [content[a:b] for a, b in pairwise(cuts)], data[-CRC.size :]

    def decode(self, head: Head, parts: list[bytes], tables: EntropyTables | None) -> np.ndarray:
        """Decode codes int64 `[len(parts), F]`; CorruptError for invalid bytes."""
        codes = np.zeros((len(parts), head.frames), np.int64)
        for stage, (part, raw) in enumerate(zip(parts, head.raw, strict=False)):
            size = self.header.codebook_sizes[stage]
            if raw:
                codes[stage] = unpack_bits(part, (size - 1).bit_length(), head.frames)
            elif tables is None or stage >= len(tables.stages):
                raise CorruptError(f"coded with tables, and there are none for stage {stage}")
            else:
                codes[stage] = tables.decode(part, codes[:stage])
            if codes[stage].max() >= size:
                raise CorruptError(f"a code of stage {stage} is beyond its codebook of {size}")
        return codes

    def salvaged(self, tables: EntropyTables | None, num_quantizers: int) -> Iterator[Chunk]:
        """Yield all chunks in order; damaged ones with a problem instead of codes."""
        position, frame, problem = self.begin, 0, ""
        budget = 2 * self.length  # bound of bytes read: real chunks do not overlap, forged ones may
        while position < self.length:
            skipped = 1
            try:
                head = self.read_head(position)
                budget -= self.size(head)
                skipped = 1 if budget > 0 else self.size(head)
                parts, _ = self.read_stages(position, head)
                skipped = self.size(head)  # an intact chunk contains no other chunk
                start = head.index * self.header.chunk_frames
                if start < frame or start + head.frames > self.most_frames:
                    raise CorruptError(f"unexpected chunk {head.index} at frame {frame}")
                codes = self.decode(head, parts[:num_quantizers], tables)
            except CorruptError as error:
                problem = problem or str(error)
                position = self.find_chunk(position + skipped)
                continue
            if start > frame:
                yield Chunk(frame, start - frame, None, problem or "lost")
            yield Chunk(start, head.frames, codes)
            frame, problem = start + head.frames, ""
            position += self.size(head)
        if self.end and self.end.frames > frame:
            yield Chunk(frame, self.end.frames - frame, None, problem or "lost")

    def find_chunk(self, position: int) -> int:
        """Position of the next head with a matching checksum, or the file's length."""
        size = self.header.head_bytes - CRC.size
        while position + size + CRC.size <= self.length:
            begin, block = self.window
            last = begin + len(block) - size - CRC.size
            if not begin <= position <= last:
                self.window = position, self.read(position, WINDOW)
                continue
            marker = block.find(CHUNK, position - begin)
            if marker < 0:
                position = begin + len(block) - len(CHUNK) + 1
            elif begin + marker > last:
                position = begin + marker
            elif CRC.unpack_from(block, marker + size)[0] == crc32(block[marker : marker + size], self.seed):
                return begin + marker
            else:
                position = begin + marker + 1
        return self.length

    def damaged(self, index: int, error: Exception) -> BitstreamError:
        """Error with the chunk's index and time."""
        seconds = index * self.header.chunk_frames * self.header.hop_length / self.header.sample_rate
        return BitstreamError(self.path, f"chunk {index}, from {seconds:.2f} s on: {error}")


def require_tables(header: Header, tables: EntropyTables | None) -> None:
    """Raise TablesError unless `tables` have the id in the header."""
    if not header.tables_id:
        return
    if tables is None:
        raise TablesError(f"the entropy tables {header.tables_id} are needed, and none are given")
    if tables.tables_id != header.tables_id:
        raise TablesError(f"the entropy tables {header.tables_id} are needed, not {tables.tables_id}")
    common = min(header.depth, len(tables.codebook_sizes))
    sizes_match = tables.codebook_sizes[:common] == header.codebook_sizes[:common]
    if tables.codec_id != header.codec_id or not sizes_match:
        raise TablesError(f"the entropy tables are of codec {tables.codec_id}, not of {header.codec_id}")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; BitstreamError for others, such as a FIFO that would block forever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BitstreamError(path, "not a regular file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, BitstreamError):
            raise
        raise BitstreamError(path, getattr(error, "strerror", None) or str(error)) from error
