"""Standard input and output as bytes, for the path `-`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from codec.system.files import FileError

PIPE = "-"
INPUT, OUTPUT = "standard input", "standard output"


def is_pipe(path: str | os.PathLike[str] | None) -> bool:
    """Return True for `-`, standard input or output."""
    return path is not None and os.fspath(path) == PIPE


def check_pipes(
    inputs: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> None:
    """Raise FileError if `-` is among the paths and its stream is closed or a terminal."""
    if any(map(is_pipe, inputs)):
        if sys.stdin is None:
            raise FileError(INPUT, "is closed: pipe a file into it, or name one")
        if sys.stdin.isatty():
            raise FileError(INPUT, "is a terminal: pipe a file into it, or name one")
    if is_pipe(output) and standard_output().isatty():
        raise FileError(OUTPUT, "is a terminal, which cannot show binary data: pipe it, or name a file")


def standard_input() -> IO[bytes]:
    """Return standard input as a binary stream."""
    return sys.stdin.buffer


def standard_output() -> IO[bytes]:
    """Return standard output as a binary stream, also while messages are redirected; FileError if closed."""
    stream: Any = sys.__stdout__
    if stream is None:
        raise FileError(OUTPUT, "is closed: pipe it, or name a file")
    return stream.buffer


@contextmanager
def spooled(path: str | os.PathLike[str], head: bytes = b"") -> Iterator[Path]:
    """Path of a file; for `-`, of a temporary file with `head` and the rest of standard input.

    FileErrors about the temporary file name standard input.
    """
    if not is_pipe(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="codec-") as folder:
        copy = Path(folder) / "stdin"
        with copy.open("wb") as file:
            file.write(head)
            shutil.copyfileobj(standard_input(), file)
        try:
            yield copy
        except FileError as error:
            if os.fspath(error.path) == str(copy):
                error.path = INPUT
            raise
