"""Sources of recordings: a folder, a tar archive read in place, or a list of files."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from codec.data.index import EXTENSIONS, FOREIGN_EXTENSIONS, DataError, IndexedFile
from codec.data.lists import LISTS, Row, read_list
from codec.system import archive
from codec.system.files import OUTPUT_MARK, printable

OUTPUT = "written by a codec command (to use it, name the folder itself)"
UNKNOWN = -1  # modification time of a file whose state could not be read
PACKED = re.compile(r"\.(tar\.(gz|bz2?|xz|zst|lz[4o]?|lzma|br|z|7z|zip)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
TOOLS = {"gz": "gzip", "bz": "bzip2", "xz": "xz", "zst": "zstd"}  # by a part of the suffix


@dataclass(frozen=True)
class Source:
    """Recordings of the folder, archive or list `name`, with paths below `root`, sorted.

    `files` have a path, a size and a time of last change only; `archive.open_bytes` opens them. `unreadable`
    are folders and archives that could not be listed, `ignored` counts other files by kind. The `rows` of a
    list name files, or parts of them.
    """

    name: str
    root: str
    files: Sequence[IndexedFile]
    unreadable: Sequence[IndexedFile] = ()
    ignored: dict[str, int] = field(default_factory=dict)
    rows: Sequence[Row] | None = None


def open_source(name: str | os.PathLike[str]) -> Source:
    """List the source at a path; `DataError` if it is missing, not readable, or of another kind."""
    path = require_source(name)
    if not os.path.isfile(path):
        return list_folder(path)
    return list_archive(path) if path.lower().endswith(".tar") else list_rows(path)


def require_source(name: str | os.PathLike[str]) -> str:
    """Absolute path of a folder, tar archive or list; `DataError` for anything else."""
    path = os.path.abspath(os.path.expanduser(os.fspath(name)))
    if not os.path.isfile(path):
        return require_folder(path)
    if packed := PACKED.search(path):
        tool = next((tool for key, tool in TOOLS.items() if key in packed[0].lower()), None)
        remedy = f"`{tool} -dk {printable(os.path.basename(path))}`" if tool else "its tool"
        raise DataError(
            f"{printable(path)} is compressed, and crops are read from the middle: decompress it with "
            f"{remedy} and name the .tar"
        )
    if not is_source(path):
        raise DataError(
            f"{printable(path)} is a file: name the folder that holds the audio files, a .tar, or a list "
            f"({', '.join(LISTS)})"
        )
    return path


def is_source(path: str | os.PathLike[str]) -> bool:
    """True for a file that is named as an archive or a list."""
    text = os.fspath(path)
    named = PACKED.search(text) or os.path.splitext(text)[1].lower() in (".tar", *LISTS)
    return bool(named) and os.path.isfile(text)


def require_folder(root: str | os.PathLike[str]) -> str:
    """Absolute path of a folder; `DataError` if it is missing or not readable."""
    folder = os.path.abspath(os.path.expanduser(os.fspath(root)))
    try:
        os.scandir(folder).close()
    except FileNotFoundError as error:
        parent, name = os.path.split(folder)
        siblings = os.listdir(parent) if os.path.isdir(parent) else []
        close = difflib.get_close_matches(name, siblings, n=1)
        hint = f"; did you mean {printable(os.path.join(parent, close[0]))}?" if close else ""
        raise DataError(f"no such folder: {printable(folder)}{hint}") from error
    except OSError as error:
        raise DataError(f"cannot read the folder {printable(folder)}: {error.strerror}") from error
    return folder


def list_archive(path: str) -> Source:
    """Audio files of a tar archive; `DataError` if it is not readable or no tar archive."""
    try:
        contents = archive.contents(path)
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {error.strerror}") from error
    if contents.damage and not contents.members:
        raise DataError(f"{printable(path)} is no tar archive, or damaged: {contents.damage}")
    outputs = {name.rpartition("/")[0] for name in contents.members if name.rpartition("/")[2] == OUTPUT_MARK}
    files, ignored = list[IndexedFile](), contents.others.copy()
    for name, member in contents.members.items():
        folders = name.split("/")
        if any(part.startswith(".") for part in folders):
            continue
        if outputs and any("/".join(folders[:depth]) in outputs for depth in range(1, len(folders))):
            continue
        suffix = os.path.splitext(name)[1].lower()
        if suffix in EXTENSIONS or suffix in FOREIGN_EXTENSIONS:
            files.append(IndexedFile(name, member.st_size, member.st_mtime_ns))
        else:
            ignored[suffix or "without extension"] += 1
    faults = [(name, OUTPUT) for name in outputs if name]
    faults += [(os.path.basename(path), contents.damage)] if contents.damage else []
    unreadable = [IndexedFile(name, 0, UNKNOWN, problem=problem) for name, problem in faults]
    return Source(path, path, sorted(files, key=lambda file: file.path), unreadable, dict(ignored))


def list_rows(path: str) -> Source:
    """Files of a list; their paths are relative to the list's folder, or to the folder of all of them."""
    rows = read_list(path)
    folder = os.path.dirname(path)
    places = [os.path.normpath(os.path.join(folder, row.path)) for row in rows]
    try:
        root = os.path.commonpath([folder, *places]) if places else folder
    except ValueError as error:  # other drives of Windows
        raise DataError(f"{printable(path)}: its files are on several drives: use several lists") from error
    named = [
        row._replace(path=os.path.relpath(place, root).replace(os.sep, "/"))
        for row, place in zip(rows, places, strict=True)
    ]
    files = [state(root, name) for name in sorted({row.path for row in named})]
    return Source(path, root, files, rows=named)


def list_folder(root: str) -> Source:
    """Audio files below a folder, each folder once; links are followed, outputs of codec commands skipped."""
    paths: list[str] = []
    unreadable: list[IndexedFile] = []
    ignored: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    # Links are followed after all real folders, so that a file with links to it keeps its real path.
    folders, links = [""], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(os.path.join(root, folder))
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, folder)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            unreadable.append(
                IndexedFile(folder, 0, UNKNOWN, problem=f"folder not readable: {error.strerror}")
            )
            continue
        if folder and any(entry.name == OUTPUT_MARK for entry in entries):
            unreadable.append(IndexedFile(folder, 0, UNKNOWN, problem=OUTPUT))
            continue
        for entry in (entry for entry in entries if not entry.name.startswith(".")):
            path = f"{folder}/{entry.name}" if folder else entry.name
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_symlink() and os.path.isdir(entry.path):
                links.append(path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif suffix in EXTENSIONS or suffix in FOREIGN_EXTENSIONS:
                paths.append(path)
            else:
                ignored[suffix or "without extension"] += 1
    return Source(root, root, [state(root, path) for path in sorted(paths)], unreadable, dict(ignored))


def state(root: str, path: str) -> IndexedFile:
    """Entry of a file below `root` with its size and time of last change."""
    try:
        status = archive.status(os.path.join(root, path))
    except OSError:
        return IndexedFile(path, 0, UNKNOWN)
    return IndexedFile(path, status.st_size, status.st_mtime_ns)
