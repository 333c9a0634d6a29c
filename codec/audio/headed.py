"""File with a replaced header, for libraries that rely on the header."""

from __future__ import annotations

import io
import os
from typing import IO


class Headed(io.RawIOBase):
    """Readable concatenation of `head` and the bytes of a file from `start` to `end`."""

    def __init__(self, file: IO[bytes], head: bytes, start: int, end: int) -> None:
        self.file, self.head, self.start, self.position = file, head, start, 0
        self.size = len(head) + end - start

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte; returns the new position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        """Position of the next byte."""
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill a buffer; returns the number of bytes read."""
        count = max(0, min(len(buffer), self.size - self.position))
        content = self.head[self.position : self.position + count]
        if len(content) < count:
            self.file.seek(self.start + max(0, self.position - len(self.head)))
            content += self.file.read(count - len(content))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)
