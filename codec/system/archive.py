"""Files in archives, at addresses and of sources: `corpus.tar/a.wav` is the path of a member."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
from functools import lru_cache
from typing import Any, cast

from codec.system import address, sources
from codec.system.arrow import read_rows
from codec.system.member import Contents, Member
from codec.system.tar import read_contents

TAR, ARROW = ".tar", ".arrow"
WITHIN = re.compile(r"(?<=\.tar)[/\\]|(?<=\.arrow)[/\\]", re.IGNORECASE)
ARCHIVE = re.compile(r"[^/]*\.(tar|arrow)/", re.IGNORECASE)


class MissingMember(FileNotFoundError):
    """Raised for a path that is not in its archive or source, with the reason."""


_contents: dict[str, tuple[tuple[int, int], Contents]] = {}  # contents, and size and time of the archive


def contents(archive: str) -> Contents:
    """List an archive by its headers; kept in memory until the archive changes."""
    return listed(archive, look(archive))


def look(archive: str) -> address.State | os.stat_result:
    """State of an archive: of a local file now, at an address see `address.known_state`."""
    return address.known_state(archive) if address.is_address(archive) else os.stat(archive)


def regular(path: str) -> address.State | os.stat_result | None:
    """State of a regular file, see `look`; None for other paths."""
    try:
        status = look(path)
    except (OSError, ValueError):  # ValueError for a path with a NUL
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def listed(archive: str, status: address.State | os.stat_result) -> Contents:
    """Contents of an archive in this state."""
    state = status.st_size, status.st_mtime_ns
    if archive not in _contents or _contents[archive][0] != state:
        if archive.lower().endswith(ARROW) and address.is_address(archive):
            _contents[archive] = (
                state,
                Contents(damage="Arrow files are read on a local disk alone, copy them there"),
            )
        elif archive.lower().endswith(ARROW):
            _contents[archive] = state, read_rows(archive, status.st_mtime_ns)
        else:
            with address.open_raw(archive, address.SMALL_BLOCK) as file:
                _contents[archive] = state, read_contents(file, archive, status.st_size)
    return _contents[archive][1]


def unpacked(path: str) -> str:
    """Path of a member after each archive in it is unpacked in place."""
    return ARCHIVE.sub("", path)


def find(path: str | os.PathLike[str]) -> Member | None:
    """Member at a path, file or folder at an address, or recording of a source; None for local files.

    MissingMember if the archive or source lacks it.
    """
    text = os.fspath(path)
    if place := sources.find(text):
        (_, sizes), id = place
        if id not in sizes:
            raise MissingMember(errno.ENOENT, "no such recording in the source", text)
        return Member(text, 0, sizes[id], 0)
    for match in WITHIN.finditer(text):
        archive = text[: match.start()]
        if status := regular(archive):
            inside = listed(archive, status)
            if member := inside.members.get(text[match.end() :]):
                return member
            fault = f"which is {inside.damage}" if inside.damage else "which may be another than was scanned"
            remedy = "put the archive back that was scanned, or start again to scan this one"
            raise MissingMember(errno.ENOENT, f"no such file in its archive, {fault}: {remedy}", text)
    return Member(text, 0, *address.known_state(text)) if address.is_address(text) else None


def status(path: str | os.PathLike[str]) -> os.stat_result | Member:
    """State of a file, as `os.stat`, or of a member of an archive."""
    return find(path) or os.stat(path)


def open_bytes(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file, or a member of an archive, for reading."""
    member = find(path)
    return io.BufferedReader(member.open()) if member else open(path, "rb")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file or member, which is read again only if it has changed."""
    state = status(path)
    return _sha256(os.fspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=2**14)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with open_bytes(path) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def is_file(path: str | os.PathLike[str]) -> bool:
    """True for a regular file, or a member of an archive."""
    try:
        return stat.S_ISREG(status(path).st_mode)
    except (OSError, ValueError):  # ValueError for a path with a NUL
        return False
