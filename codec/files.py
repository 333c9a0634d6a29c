"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
