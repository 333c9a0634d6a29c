"""Files that appear complete or not at all, one writer a folder, and what is said of what cannot be used."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LABEL = ".codec"  # what temporary names begin with
OUTPUT_MARK = ".codec-output"


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
    path: str | os.PathLike[str], *, durable: bool = False, work: Path | None = None, label: str = LABEL
) -> Iterator[Path]:
    """A name for a new file, which takes the place of `path` when the block ends, and is removed if it fails.

    It lies beside `path`, or in `work`, of the same file system. `durable` files outlast a power failure, for
    the price of waiting for the disk. OSErrors, as of a full disk, name `path`.
    """
    target = Path(path)
    temporary = (work or target.parent) / temporary_name(label)
    try:
        with naming(target, temporary):
            yield temporary
            if durable:
                flush(temporary)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_whole(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when the block ends, and is removed if it fails.

    FileError when `path` is there, other than as an empty folder; OSErrors, as of a full disk, name it.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = path.parent / temporary_name(LABEL)
    try:
        with naming(path, temporary):
            temporary.mkdir()
            yield temporary
            try:
                if path.is_dir():
                    path.rmdir()  # Windows renames onto nothing, not even an empty folder
                temporary.rename(path)
            except OSError:
                require_free(path)  # of another process, which was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free(path: Path) -> None:
    """FileError unless nothing, or an empty folder, is there."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise FileError(path, "exists already: name another folder, or remove it")


def temporary_name(label: str) -> str:
    """A short name of its own: a long target name plus a suffix would pass the 255 bytes of file systems."""
    return f"{label}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


@contextmanager
def naming(target: Path, temporary: Path) -> Iterator[None]:
    """Let errors of writing name the target: those of a full disk name nothing, others the temporary file."""
    names = os.fspath(temporary), os.fspath(target)
    try:
        yield
    except OSError as error:
        if error.filename is not None and names[0] not in str(error.filename):  # of an input
            raise
        if error.errno is None:  # a library's own words
            text = str(error).replace(*names)
            raise OSError(text if names[1] in text else f"{names[1]} cannot be written: {text}") from error
        name = names[1] if error.filename is None else str(error.filename).replace(*names)
        raise OSError(error.errno, error.strerror, name) from error


def remove_leftovers(folder: Path, labels: Container[str] = (LABEL,)) -> None:
    """Remove what `written_whole` and `folder_whole` of processes of this machine left that were killed."""
    with suppress(OSError):  # what is not ours to remove, or just went
        for path in folder.iterdir():
            found = re.fullmatch(rf"(.+)-{re.escape(socket.gethostname())}-(\d{{1,9}})-\w+\.tmp", path.name)
            if found and found[1] in labels and not is_running(int(found[2])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_running(process: int) -> bool:
    """Whether there is a process of this number here."""
    if os.name != "posix":  # there, signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextmanager
def only_writer(folder: Path, lock: Path) -> Iterator[None]:
    """Hold the file `lock`, which is made if it is missing; FileError while another process does.

    The system gives it back when the process ends, however it does. Where a network file system has no
    locks, nobody is kept out.
    """
    lock.parent.mkdir(exist_ok=True)
    with lock.open("ab") as file:
        try:
            take(file)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                reason = "another process is writing here: wait until it ends, or name another folder"
                raise FileError(folder, reason) from error
        yield


def take(file: IO[Any]) -> None:
    """Lock a file, or OSError: EACCES or EAGAIN when another process has."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(2**30)  # behind what others read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # Of the process: with `flock`, workers that outlive it for a moment would hold it, too.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def flush(path: Path) -> None:
    """Wait until what was written to a file is on the disk; OSError when it has no room for it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8, at once or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def mark_output(folder: Path) -> None:
    """Mark a new folder as output, so that no search for recordings above it takes its files.

    A folder that holds visible files stays unmarked: they may be the user's recordings.
    """
    if all(name.startswith(".") for name in os.listdir(folder)):
        (folder / OUTPUT_MARK).touch()
