"""Files that appear complete or not at all, and what is said of those that cannot be used."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileError(ValueError):
    """A file that cannot be used: its `path`, and the `reason` in plain words."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def printable(path: str | os.PathLike[str]) -> str:
    r"""A file's name for messages: one line, valid UTF-8; odd bytes and control characters as `\x..`."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def written_whole(
    path: str | os.PathLike[str], *, durable: bool = False, work: Path | None = None, label: str = ".codec"
) -> Iterator[Path]:
    """A name for a new file, which takes the place of `path` when the block ends, and is removed if it fails.

    It lies beside `path`, or in `work`, of the same file system. `durable` files outlast a power failure, for
    the price of waiting for the disk.
    """
    target = Path(path)
    # A short name of its own: a long target name plus a suffix would pass the 255 bytes of file systems.
    temporary = (work or target.parent) / f"{label}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until what was written to a file is on the disk; OSError when it has no room for it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8, at once or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
