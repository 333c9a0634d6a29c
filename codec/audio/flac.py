"""Length of FLAC files without a sample count in the header, from their last frame (RFC 9639)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from codec.audio.headed import Headed
from codec.system import archive

MAGIC, HEAD = b"fLaC\0\0\0\x22", 26  # start of a FLAC file; bytes up to the end of its sample count
LARGEST_FRAME, LONGEST_HEADER = 2**21, 16  # bytes
BLOCK_SIZES = {
    1: 192,
    **{n: 576 << (n - 2) for n in range(2, 6)},
    **{n: 256 << (n - 8) for n in range(8, 16)},
}


def table(polynomial: int, bits: int) -> list[int]:
    """Lookup table of a CRC, one entry per byte value."""
    remainders = []
    for byte in range(256):
        crc = byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1) ^ (polynomial if crc >> (bits - 1) else 0)
            crc &= (1 << bits) - 1
        remainders.append(crc)
    return remainders


CRC8, CRC16 = table(0x07, 8), table(0x8005, 16)


def crc8(data: bytes) -> int:
    """CRC-8 of a frame header; 0 if the data end with their CRC."""
    crc = 0
    for byte in data:
        crc = CRC8[crc ^ byte]
    return crc


def crc16(data: bytes) -> int:
    """CRC-16 of a frame; 0 if the data end with their CRC."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ CRC16[crc >> 8 ^ byte]
    return crc


def end_of_frame(header: bytes, block_size: int) -> int | None:
    """Index of the sample after a frame, from its header; None if invalid. `block_size` is the stream's."""
    if header[0] != 0xFF or header[1] & 0xFE != 0xF8 or header[3] & 1:
        return None
    ones = 8 - (header[4] ^ 0xFF).bit_length()  # of the frame number, coded like UTF-8, up to 36 bits
    if ones == 1 or ones == 8:
        return None
    place = 4 + max(1, ones)
    number = header[4] & (0x7F >> ones)
    for byte in header[5:place]:
        number = number << 6 | byte & 0x3F
    code = header[2] >> 4
    length = {6: 1, 7: 2}.get(code, 0)
    samples = (
        int.from_bytes(header[place : place + length], "big") + 1 if length else BLOCK_SIZES.get(code, 0)
    )
    place += length + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if not samples or crc8(header[: place + 1]):
        return None
    return (number if header[1] & 1 else number * block_size) + samples


@functools.lru_cache(2**14)
def count_samples(path: str, size: int, mtime_ns: int) -> int:
    """Number of samples per channel, from the last frame's header; 0 if the file does not end with a frame.

    Cached per path, size and modification time.
    """
    with archive.open_bytes(path) as file:
        return last_sample(file, size)


def last_sample(file: IO[bytes], size: int) -> int:
    """Index of the sample after the last frame of a file of `size` bytes; 0 if no frame ends the file."""
    head = file.read(HEAD)
    block_size, longest = int.from_bytes(head[10:12], "big"), int.from_bytes(head[15:18], "big")
    begin = max(HEAD, size - (longest or LARGEST_FRAME))
    file.seek(begin)
    tail = file.read(size - begin)
    place = len(tail)
    while (place := tail.rfind(b"\xff", 0, place)) >= 0:
        header = tail[place : place + LONGEST_HEADER].ljust(LONGEST_HEADER, b"\0")
        end = end_of_frame(header, block_size)
        if end is not None and not crc16(tail[place:]):
            return end
    return 0


@contextmanager
def with_length(path: str | os.PathLike[str]) -> Iterator[Headed | None]:
    """File with the missing sample count, as when written to a pipe, filled in; `None` for other files."""
    with archive.open_bytes(path) as file:
        head = bytearray(file.read(HEAD))
        unpatchable = not head.startswith(MAGIC) or len(head) < HEAD or head[21] & 15 or any(head[22:26])
        status = archive.status(path)
        samples = 0 if unpatchable else count_samples(os.fspath(path), status.st_size, status.st_mtime_ns)
        if not 0 < samples < 2**36:
            yield None
            return
        head[21] |= samples >> 32
        head[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
        yield Headed(file, bytes(head), HEAD, status.st_size)
