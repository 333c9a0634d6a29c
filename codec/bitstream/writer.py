"""Writer of `.codec` files, and truncation to fewer quantizers without the model.

Each chunk decodes independently. Its stages are stored one after the other and do not depend on later ones.
The format is documented in `codec.bitstream.format`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np

from codec.bitstream.entropy_model import EntropyTables
from codec.bitstream.format import CRC, BitstreamError, End, Head, Header, least_bytes
from codec.bitstream.range_coder import pack_bits
from codec.bitstream.reader import BitstreamReader, Chunk, require_tables
from codec.config import ConfigError
from codec.system.files import printable, remove_leftovers, written_whole
from codec.system.stdio import is_pipe, standard_output

__all__ = [
    "BitstreamError",
    "BitstreamReader",
    "BitstreamWriter",
    "Chunk",
    "Header",
    "check_target",
    "new_file",
    "truncate",
]


class BitstreamWriter:
    """Writes codes that arrive in pieces to an open file, which is incomplete until `finish`."""

    def __init__(self, file: IO[bytes], header: Header, tables: EntropyTables | None = None):
        self.file, self.header, self.tables = file, header, tables
        self.seed, self.digest = header.crc, 0
        self.chunks = self.frames = 0
        self.stage_bytes, self.bytes = [0] * len(header.codebook_sizes), 0
        self.waiting = np.zeros((len(header.codebook_sizes), 0), np.int64)
        self.put(header.pack())

    def put(self, data: bytes) -> None:
        """Write and count bytes."""
        self.file.write(data)
        self.bytes += len(data)

    def write(self, codes: np.ndarray) -> None:
        """Add codes `[K, F]`; ValueError for other shapes and for codes beyond their codebooks."""
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
        """Encode and write one chunk `[K, F]`."""
        require_tables(self.header, self.tables)
        parts = [self.encode(codes[: stage + 1]) for stage in range(len(codes))]
        self.copy_chunk([part for part, _ in parts], [raw for _, raw in parts], codes.shape[1])

    def copy_chunk(self, parts: list[bytes], raw: list[bool], frames: int) -> None:
        """Write one chunk of encoded stages."""
        head = Head(self.chunks, frames, tuple(map(len, parts)), tuple(raw)).pack(self.header, self.seed)
        crc = CRC.pack(crc32(b"".join(parts), CRC.unpack(head[-CRC.size :])[0]))
        self.put(b"".join([head, *parts, crc]))
        self.digest = crc32(crc, self.digest)
        self.chunks, self.frames = self.chunks + 1, self.frames + frames
        self.stage_bytes = [total + len(part) for total, part in zip(self.stage_bytes, parts, strict=True)]

    def encode(self, codes: np.ndarray) -> tuple[bytes, bool]:
        """Encode the last stage's codes of `[K, F]`; returns the bytes, and True for raw codes."""
        size, frames = self.header.codebook_sizes[len(codes) - 1], codes.shape[1]
        raw = pack_bits(codes[-1], (size - 1).bit_length())
        if self.tables is None or len(codes) > len(self.tables.stages):
            return raw, True
        coded = self.tables.encode(codes).ljust(least_bytes(frames), b"\0")
        return (coded, False) if len(coded) < len(raw) else (raw, True)

    def finish(self, samples: int) -> None:
        """Write the last chunk and the end record; ValueError if `samples` contradicts the frames."""
        frames = self.frames + self.waiting.shape[1]
        if samples < 1 or frames != -(-samples // self.header.hop_length):
            raise ValueError(f"{frames} frames of {self.header.hop_length} samples are not {samples} samples")
        if self.waiting.shape[1]:
            self.write_chunk(self.waiting)
        self.put(End(self.chunks, self.frames, samples, self.digest).pack(self.seed))


def truncate(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    num_quantizers: int,
    overwrite: bool = False,
) -> None:
    """Copy a `.codec` file with only its first stages, without the codec or its tables.

    `target` may be `-`, standard output. The result has the same bytes as compression with fewer stages.
    BitstreamError for a damaged file, FileExistsError for an existing target, ConfigError for a number of
    stages that the file does not have.
    """
    with BitstreamReader(source) as reader:
        count = len(reader.header.codebook_sizes)
        if reader.end is None or not 1 <= num_quantizers <= count:
            raise ConfigError(
                f"num_quantizers must be 1 to {count} for {printable(source)}, got {num_quantizers}"
            )
        with new_file(target, overwrite) as file:
            writer = BitstreamWriter(file, reader.header.prefix(num_quantizers))
            for head, parts in reader.stored():
                writer.copy_chunk(parts[:num_quantizers], list(head.raw[:num_quantizers]), head.frames)
            writer.finish(reader.end.samples)


def check_target(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise FileExistsError for an existing file unless `overwrite`, FileNotFoundError without its folder."""
    if is_pipe(path):
        return
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{printable(Path(path).parent)}: no such folder to write into")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{printable(path)} exists already: name another file, or use --force")


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for atomic writing; FileExistsError for an existing one unless `overwrite`.

    The path `-` opens standard output.
    """
    if is_pipe(path):
        file = standard_output()
        yield file
        file.flush()
        return
    check_target(path, overwrite)
    remove_leftovers(Path(path).parent)
    with written_whole(path, durable=True) as temporary, temporary.open("xb") as file:
        yield file
