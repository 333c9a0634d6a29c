"""Addresses such as `s3://bucket/folder`, whose files fsspec lists and opens, and local paths beside them."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from codec.config import ConfigError
from codec.system import sources
from codec.system.files import FileError, printable

ADDRESS = re.compile(r"(?:[\w+.-]{2,}::)*([\w+.-]{2,})://", re.ASCII)
# A password, or a signature in the query of a link.
SECRET = re.compile(r"(//)[^/@]*:[^/]*@|([?&])[^&=/]*(?:sig|token|key|secret|passw)[^&=/]*=.*", re.IGNORECASE)
BLOCK, SMALL_BLOCK = 2**18, 2**14  # bytes that are read ahead: of recordings, and between headers of a tar
MOST_REMEMBERED = 2**17  # states of files, about 40 MB
TIMES = "mtime", "LastModified", "last_modified", "modified", "updated", "created", "ETag"


class State(NamedTuple):
    """Size, time of last change (or else a checksum of its tag) and type of a file, as of `os.stat`."""

    st_size: int
    st_mtime_ns: int
    st_mode: int


def is_address(path: str | os.PathLike[str]) -> bool:
    """True for an address of fsspec, `protocol://…` or with a cache `simplecache::protocol://…`."""
    text = os.fspath(path)
    return ADDRESS.match(text) is not None and sources.find(text) is None


def parts(path: str) -> tuple[str, str]:
    """Protocol of an address, as `s3://`, and the rest; the protocol of a local path is empty."""
    match = ADDRESS.match(path)
    return (match[0], path[match.end() :]) if match else ("", path)


def absolute(path: str | os.PathLike[str], folder: str = "") -> str:
    """Absolute form of a path below `folder`; either may be an address. FileError for one with a secret."""
    text = os.fspath(path)
    if is_address(text):
        return without_secret(text)
    protocol, base = parts(folder)
    if protocol:
        return protocol + posixpath.normpath(posixpath.join(base, text))
    return os.path.abspath(os.path.join(base, text))


def without_secret(text: str) -> str:
    """Return an address, or an option with one; FileError if it holds a password or a token."""
    if (match := ADDRESS.search(text)) is None or masked(text) == text:
        return text
    name = f"FSSPEC_{match[1].upper()}"
    raise FileError(
        masked(text),
        "a password or token in an address would be saved with the run: leave it out, and give it as the "
        f"package for {match[1]}:// reads it, e.g. in the environment variables {name}_USERNAME and "
        f"{name}_PASSWORD",
    )


def masked(text: str) -> str:
    """Text with `***` instead of a password or token."""
    return SECRET.sub(r"\1\2***", text)


def require_local(path: str | os.PathLike[str]) -> str:
    """Return a local path; ConfigError for an address."""
    text = os.fspath(path)
    if is_address(text):
        raise ConfigError(
            f"{printable(masked(text))} is an address: recordings alone are read from addresses, and nothing "
            "is written there: name a local path, and copy the files"
        )
    return text


def parent(path: str) -> str:
    """Folder of a file."""
    protocol, rest = parts(path)
    return protocol + (posixpath if protocol else os.path).dirname(rest)


def common(paths: Sequence[str]) -> str:
    """Common folder of several; ValueError if there is none. That of addresses ends with `/`."""
    protocols, rests = zip(*map(parts, paths), strict=True)
    if len({*protocols}) > 1:
        raise ValueError("paths of several protocols")
    if not protocols[0]:
        return os.path.commonpath(rests)
    return as_folder(protocols[0] + posixpath.commonpath(rests))


def as_folder(address: str) -> str:
    """Address with `/` as its end, which a relative path may follow."""
    return address if address.endswith("/") else f"{address}/"


def relative(path: str, folder: str) -> str:
    """Path relative to a folder above it, with `/` between folders."""
    protocol, rest = parts(path)
    if protocol:
        return posixpath.relpath(rest, parts(folder)[1] or ".")
    return os.path.relpath(path, folder).replace(os.sep, "/")


@contextmanager
def reached(address: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of an address and the path in it.

    FileError for a protocol that is unknown or lacks its package. Errors of the packages become OSErrors.
    """
    from fsspec.core import url_to_fs

    try:
        yield url_to_fs(address)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or error.name or ADDRESS.match(address)
        raise FileError(address, f"{error}: `pip install {package}`") from error
    except (OSError, FileError):
        raise
    except Exception as error:
        raise as_os_error(error, address) from error


def as_os_error(error: Exception, address: str) -> Exception:
    """OSError of a package's own error; other errors that are for the user stay as they are."""
    if isinstance(error, OSError | FileError):
        return error
    if str(error).startswith("Protocol not known"):
        import fsspec

        return FileError(address, f"unknown protocol: fsspec has {', '.join(fsspec.available_protocols())}")
    return OSError(errno.EIO, f"{type(error).__name__}: {error}", address)


def why(error: OSError) -> str:
    """Reason of an OSError in words."""
    return error.strerror or str(error) or type(error).__name__


def state_of(about: dict[str, Any]) -> State:
    """State of a file from fsspec's dictionary about it."""
    modes = {"file": stat.S_IFREG, "directory": stat.S_IFDIR}
    time: Any = next((about[name] for name in TIMES if about.get(name) is not None), 0)
    time = time.timestamp() if hasattr(time, "timestamp") else time
    version = int(time * 1e9) if isinstance(time, int | float) else zlib.crc32(str(time).encode())
    return State(about["size"] or 0, version, modes.get(about["type"], stat.S_IFIFO))


_states: dict[str, State] = {}
_changing = threading.Lock()  # a memory, which the threads of a scan fill together


def state(address: str) -> State:
    """State of a file or folder, asked of its server; OSError if there is none."""
    with reached(address) as (system, path):
        current = state_of(system.info(path))
    remember(_states, address, current)
    return current


def known_state(address: str) -> State:
    """State of a file as last listed or asked for in this process, see `forget`."""
    return _states.get(address) or state(address)


def remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    """Put a value into a memory of limited size, in place of the oldest."""
    with _changing:
        while len(memory) >= MOST_REMEMBERED:
            del memory[next(iter(memory))]
        memory[key] = value


def forget(address: str | None = None) -> None:
    """Ask the server again for the state of a file, as after an error, or of all files."""
    with _changing:
        _states.clear() if address is None else _states.pop(address, None)


def is_file(path: str) -> bool:
    """True for a file, as `os.path.isfile`; an address with `/` at its end is a folder."""
    if not is_address(path):
        return os.path.isfile(path)
    try:
        return not path.endswith("/") and stat.S_ISREG(state(path).st_mode)
    except OSError:
        return False


def exists(path: str) -> bool:
    """True for a file or folder, or a dangling link."""
    if not is_address(path):
        return os.path.lexists(path)
    try:
        return bool(state(path))
    except OSError:
        return False


def open_raw(path: str, block: int = BLOCK) -> Any:
    """Open a source's recording, a local file without a buffer, or an address with one of `block` bytes."""
    if place := sources.find(path):
        return place[0].source.open(place[1])
    if not is_address(path):
        return open(path, "rb", buffering=0)
    with reached(path) as (system, place):
        return system.open(place, "rb", block_size=block, size=known_state(path).st_size)


def read_range(path: str, start: int, count: int) -> bytes:
    """Read bytes of a file at an address by one request, fewer at its end; OSError if it fails."""
    try:
        with reached(path) as (system, place):
            content: bytes = system.cat_file(place, start=start, end=start + count)
    except OSError:
        forget(path)
        raise
    if len(content) < count:
        forget(path)
    return content


def find(root: str) -> dict[str, State]:
    """States of the files below an address, or of a source, by relative path; OSError if it is not listed."""
    if place := sources.find(root):
        return {id: State(size, 0, stat.S_IFREG) for id, size in place[0].sizes.items()}
    with reached(root) as (system, path):
        system.invalidate_cache()
        base = as_folder(system._strip_protocol(path))
        states = {
            # HTTP lists names alone.
            about["name"].removeprefix(base): state_of(
                about if about.get("size") is not None else system.info(about["name"])
            )
            for about in walk(system, base)
        }
    for name, one in states.items():
        remember(_states, as_folder(root) + name, one)
    return states


def walk(system: Any, root: str) -> Iterator[dict[str, Any]]:
    """Yield fsspec's dictionaries about all files below a folder.

    Object stores list them at once. fsspec's own walk would leave out the folders that it cannot list.
    """
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    kind = type(getattr(system, "fs", system))  # of the system within a cache
    if getattr(kind, "_find", kind.find) not in (AbstractFileSystem.find, AsyncFileSystem._find):
        yield from system.find(root, detail=True).values()
        return
    folders = [root]
    while folders:
        folder = folders.pop()
        with suppress(FileNotFoundError):  # removed, or a link of a page that leads nowhere
            for about in system.ls(folder, detail=True):
                below = as_folder(about["name"])
                if about["type"] != "directory":
                    yield about
                elif below != folder and below.startswith(folder):
                    folders.append(below)
