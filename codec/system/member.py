"""Members of archives: the place of a file's bytes within another file, and their reader."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

HEAD = 4096  # bytes of a member kept in memory: decoders read headers in small pieces


class Member(NamedTuple):
    """Place of a file within an archive, in bytes, and its state as of `os.stat`."""

    archive: str
    offset: int
    st_size: int
    st_mtime_ns: int
    st_mode: int = stat.S_IFREG

    def open(self) -> io.RawIOBase:
        """Open the file for reading, unbuffered."""
        return Reader(self)


class Reader(io.RawIOBase):
    """Readable bytes of a member."""

    def __init__(self, member: Member) -> None:
        self.file = open(member.archive, "rb", buffering=0)  # noqa: SIM115
        self.start, self.size, self.position = member.offset, member.st_size, 0
        self.file.seek(self.start)
        self.head = self.file.read(min(HEAD, self.size)) or b""

    def close(self) -> None:
        """Close the archive."""
        if hasattr(self, "file"):
            self.file.close()
        super().close()

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
            self.file.seek(self.start + self.position)
            count = self.file.readinto(memoryview(buffer)[:count]) or 0
        self.position += count
        return count


@dataclass
class Contents:
    """Files of an archive by path; numbers of other entries by kind; the damage that ended the list."""

    members: dict[str, Member] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    damage: str | None = None
