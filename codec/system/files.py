"""Atomic file writes, directory locks and `FileError`."""

from __future__ import annotations

import errno
import hashlib
import logging
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

from codec.config import ConfigError

log = logging.getLogger(__name__)
LABEL = ".codec"  # prefix of temporary names
OUTPUT_MARK, LOCK = ".codec-output", ".lock"


class FileError(ValueError):
    """An unusable file: its `path`, and the `reason` in plain words."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def printable(path: str | os.PathLike[str]) -> str:
    r"""Path as one line of valid UTF-8, for messages; other bytes and control characters as `\x..`."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def written_whole(
    path: str | os.PathLike[str], *, durable: bool = False, work: Path | None = None, label: str = LABEL
) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends, and is removed if the block raises.

    It is next to `path`, or in `work` on the same file system. With `durable` the file is flushed to the
    disk first, to survive a power failure. OSErrors, as of a full disk, carry the name of `path`.
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
    """Yield a temporary folder that becomes `path` when the block ends, and is removed if the block raises.

    FileError if `path` exists and is not an empty folder. OSErrors, as of a full disk, carry its name.
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
                require_free(path)  # another process may have created it
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free(path: Path) -> None:
    """FileError unless `path` is absent or an empty folder."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise FileError(path, "exists already: name another folder, or remove it")


def temporary_name(label: str) -> str:
    """Unique short name; the target's name plus a suffix could exceed the 255 bytes of file systems."""
    return f"{label}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


@contextmanager
def naming(target: Path, temporary: Path) -> Iterator[None]:
    """Put the target's name into OSErrors: that of a full disk has none, others have the temporary name."""
    names = os.fspath(temporary), os.fspath(target)
    try:
        yield
    except OSError as error:
        if error.filename is not None and names[0] not in str(error.filename):  # of an input
            raise
        if error.errno is None:  # raised by a library, with a message only
            text = str(error).replace(*names)
            raise OSError(text if names[1] in text else f"{names[1]} cannot be written: {text}") from error
        name = names[1] if error.filename is None else str(error.filename).replace(*names)
        raise OSError(error.errno, error.strerror, name) from error


def remove_leftovers(folder: Path, labels: Container[str] = (LABEL,)) -> None:
    """Remove temporary files and folders that killed processes of this machine left in a folder."""
    with suppress(OSError):  # another user's file, or one that was just removed
        for path in folder.iterdir():
            match = re.fullmatch(rf"(.+)-{re.escape(socket.gethostname())}-(\d{{1,9}})-\w+\.tmp", path.name)
            if match and match[1] in labels and not is_running(int(match[2])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_running(process: int) -> bool:
    """True if a process with this id runs on this machine."""
    if os.name != "posix":  # on Windows, signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


@contextmanager
def only_writer(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """Lock a folder by its file `lock`; ConfigError, with the other process's id, if it is locked already.

    The operating system releases the lock when the process ends. A folder that stays empty is removed, with
    its new parents. On a network file system without locks nothing is locked, with a warning.
    """
    path = folder / lock
    created = [parent for parent in folder.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            take(file)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ConfigError(
                    f"{printable(folder)}: {file.read() or 'another process'} is writing here: wait until it "
                    "ends, stop it, or name another folder"
                ) from error
            log.warning("%s is not locked against a second process: %s", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no file that is open
                if set(os.listdir(folder)) <= {lock, OUTPUT_MARK}:
                    (folder / OUTPUT_MARK).unlink(missing_ok=True)
                    path.unlink()
                    for empty in (folder, *created):
                        empty.rmdir()


def take(file: IO[Any]) -> None:
    """Lock a file; OSError with EACCES or EAGAIN if another process holds the lock."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(2**30)  # beyond the content that others read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # `lockf` locks for the process: with `flock`, workers that outlive it briefly would hold the lock.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def flush(path: Path) -> None:
    """Flush a written file to the disk; OSError if the disk is full."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically; bytes of names that are not UTF-8 as `\\udc..`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def mark_output(folder: Path) -> None:
    """Mark a new folder as output, so that scans of folders above it skip its files.

    A folder with visible files is not marked: they may be the user's recordings.
    """
    if all(name.startswith(".") for name in os.listdir(folder)):
        (folder / OUTPUT_MARK).touch()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
