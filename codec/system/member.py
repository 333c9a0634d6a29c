"""Members of archives: the place of a file's bytes within another file, and their reader."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from codec.system.address import as_os_error, forget, open_raw, read_range

HEAD = 4096  # bytes of a member kept in memory: decoders read headers in small pieces
PCM = b"\1\0", b"\3\0", b"\xfe\xff"  # formats of wav: integers, floats, extensible


class Member(NamedTuple):
    """Place of a file within an archive, or of a source's recording, and its state as of `os.stat`."""

    archive: str
    offset: int
    st_size: int
    st_mtime_ns: int
    st_mode: int = stat.S_IFREG

    def open(self) -> Reader:
        """Open the file for reading, unbuffered."""
        return Reader(self)

    def part(self, start: int, count: int) -> bytes:
        """Read `count` bytes from `start`; at an address by a request for them alone."""
        return read_range(self.archive, self.offset + start, count)


class Reader(io.RawIOBase):
    """Readable bytes of a member, or of a file at an address.

    After an error there is nothing to read, and `close` raises it: libsndfile's callbacks pass none on.
    """

    failure: Exception | None = None

    def __init__(self, member: Member) -> None:
        self.member, self.name, self.file = member, member.archive, open_raw(member.archive)
        self.start, self.size, self.position = member.offset, member.st_size, 0
        self.head, head = b"", bytearray(min(HEAD, self.size))
        self.head, self.position = bytes(head[: self.readinto(memoryview(head))]), 0

    def descriptor(self) -> int | None:
        """File descriptor at the first byte of a PCM wav of the length in its header; None for other members.

        libsndfile reads these as embedded files, which saves calls from C into Python.
        """
        is_wav = self.head[:4] == b"RIFF" and self.head[8:16] == b"WAVEfmt " and self.head[20:22] in PCM
        is_local = os.name == "posix" and isinstance(self.file, io.FileIO)
        if not is_local or not is_wav or int.from_bytes(self.head[4:8], "little") + 8 != self.size:
            return None
        self.file.seek(self.start)
        return self.file.fileno()

    def close(self) -> None:
        """Close the archive."""
        if hasattr(self, "file"):
            self.file.close()
        super().close()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte; returns the new position."""
        base = self.position if whence == os.SEEK_CUR else self.size if whence == os.SEEK_END else 0
        self.position = max(0, base + offset)
        return self.position

    def part(self, start: int, count: int) -> bytes:
        """Read `count` bytes from `start`, fewer at the end of the file."""
        self.position = start
        return self.read(count) or b""

    def tell(self) -> int:
        """Position of the next byte."""
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill a buffer; returns the number of bytes read."""
        end = min(self.position + len(buffer), self.size)
        count = max(0, end - self.position)
        if end <= len(self.head):
            buffer[:count] = self.head[self.position : end]
        else:
            try:
                self.file.seek(self.start + self.position)
                wanted, count = count, self.file.readinto(memoryview(buffer)[:count]) or 0
                if count < wanted:
                    forget(self.name)
            except Exception as error:
                forget(self.name)
                self.failure, count = as_os_error(error, self.name), 0
        self.position += count
        return count


@dataclass
class Contents:
    """Files of an archive by path; numbers of other entries by kind; the damage that ended the list."""

    members: dict[str, Member] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    damage: str | None = None
