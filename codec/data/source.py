"""Listings of recordings: a folder or address, an archive read in place, a list of both, or a source."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from codec.data.index import EXTENSIONS, FOREIGN_EXTENSIONS, DataError, IndexedFile
from codec.data.lists import Row, expand, read_list
from codec.data.roots import PACKED, is_archive, is_pattern, require_source
from codec.data.shards import choose_archives, missing_members
from codec.system import address, archive, sources
from codec.system.address import State, absolute, as_folder, is_address, why
from codec.system.files import OUTPUT_MARK, printable

OUTPUT = "written by a codec command (to use it, name the folder itself)"
CONNECTIONS = 32  # requests to a server at a time
UNKNOWN = -1  # modification time of a file whose state could not be read
ORIGINAL = ".original"  # extension that Lhotse gives a recording in the format of its source


@dataclass(frozen=True)
class Source:
    """Recordings of the folder, archive or list `name`, with paths below `root`, sorted.

    Name and root may be addresses. `files` have a path, a size and a time of last change only;
    `archive.open_bytes` opens them. `unreadable` are folders and archives that could not be listed, `ignored`
    counts other files by kind. The `rows` of a list name files, or parts of them.
    """

    name: str
    root: str
    files: Sequence[IndexedFile]
    unreadable: Sequence[IndexedFile] = ()
    ignored: dict[str, int] = field(default_factory=dict)
    rows: Sequence[Row] | None = None


def open_source(name: str | os.PathLike[str]) -> Source:
    """List the source at a path; `DataError` if it is missing, not readable, or of another kind."""
    if sources.find(os.fspath(name)):
        return list_address(os.fspath(name))
    path = require_source(name)
    if is_pattern(path):
        return list_rows(path, address.parent(path.partition("{")[0]), [*map(Row, expand(path))])
    if not address.is_file(path):
        return list_address(as_folder(path)) if is_address(path) else list_folder(path)
    if is_archive(path):
        return list_archive(path)
    return list_rows(path, address.parent(path), read_list(path))


def list_archive(path: str, within: str = "") -> Source:
    """Audio files of an archive, below `within`; `DataError` if it is not readable or of another format."""
    rows = path.lower().endswith(archive.ARROW)
    try:
        contents = archive.contents(path)
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {why(error)}") from error
    if contents.damage and not contents.members and not within:
        form = "Arrow file of recordings" if rows else "tar archive"
        raise DataError(f"{printable(path)} is no {form}, or damaged: {contents.damage}")
    names, outputs = without_outputs(contents.members)
    files, ignored = list[IndexedFile](), contents.others.copy()
    before = f"{within}/" if within else ""
    for name in names:
        member = contents.members[name]
        if rows or is_audio(name) or name.endswith(ORIGINAL):
            files.append(IndexedFile(before + name, member.st_size, member.st_mtime_ns))
        else:
            ignored[kind(name)] += 1
    faults = [(before + name, OUTPUT) for name in outputs]
    faults += [(within or os.path.basename(path), contents.damage)] if contents.damage else []
    faults += [(before + name, problem) for name, problem in missing_members(path, contents.members)]
    unreadable = [IndexedFile(name, 0, UNKNOWN, problem=problem) for name, problem in faults]
    return Source(path, path, sorted(files, key=lambda file: file.path), unreadable, dict(ignored))


def list_within(root: str, name: str) -> Source:
    """Source of an archive below `root`; one that is not readable has that as its fault."""
    try:
        return list_archive(os.path.join(root, name), name)
    except DataError as error:
        return faulty(root, {name: f"archive not readable: {error}"})


def list_rows(path: str, folder: str, rows: Sequence[Row]) -> Source:
    """Files of a list, and of the archives in it, relative to `folder` or to the folder of all of them."""
    address.forget()
    places = [absolute(row.path, folder) for row in rows]
    try:
        here = not places or address.parts(folder)[0] == address.parts(places[0])[0]
        root = address.common([folder if here else address.parent(places[0]), *places])
    except ValueError as error:  # also other drives of Windows
        raise DataError(
            f"{printable(path)}: its files are on several drives or at several addresses: use a list for each"
        ) from error
    named, parts = list[Row](), list[Source]()
    for row, place in zip(rows, places, strict=True):
        row = row._replace(path=address.relative(place, root))
        if not is_archive(place):
            named.append(row)
        elif row.start or row.duration is not None:
            raise DataError(f"{printable(path)}: start and duration are of a recording, not of {row.path}")
        else:
            parts.append(list_within(root, row.path))
            named += [row._replace(path=file.path) for file in parts[-1].files]
    listed = {file.path: file for part in parts for file in part.files}
    files = entries(root, sorted({row.path for row in named}), listed)
    plain = len(named) == len(files) and all(row == Row(row.path) for row in named)
    return replace(joined(path, root, parts), files=files, rows=None if plain else named)


def joined(name: str, root: str, parts: Sequence[Source]) -> Source:
    """Source with the files and faults of several with the same root."""
    files = sorted((file for part in parts for file in part.files), key=lambda file: file.path)
    ignored = sum((Counter(part.ignored) for part in parts), Counter[str]())
    return Source(name, root, files, [fault for part in parts for fault in part.unreadable], dict(ignored))


def list_folder(root: str) -> Source:
    """Audio files below a folder, each folder once; links are followed, outputs of codec commands skipped."""
    parts = list[Source]()
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
            parts.append(faulty(root, {folder: f"folder not readable: {error.strerror}"}))
            continue
        if folder and any(entry.name == OUTPUT_MARK for entry in entries):
            parts.append(faulty(root, {folder: OUTPUT}))
            continue
        names = list[str]()
        for entry in (entry for entry in entries if not entry.name.startswith(".")):
            if entry.is_symlink() and os.path.isdir(entry.path):
                links.append(posixpath.join(folder, entry.name))
            elif entry.is_dir(follow_symlinks=False):
                folders.append(posixpath.join(folder, entry.name))
            else:
                names.append(entry.name)
        parts += list_files(root, folder, names)
    return joined(root, root, parts)


def list_address(root: str) -> Source:
    """Audio files below an address that ends with `/`, also a source's; outputs of commands are skipped."""
    try:
        states = address.find(root)
    except OSError as error:
        raise DataError(f"cannot list {printable(root)}: {why(error)}") from error
    paths, outputs = without_outputs(states)
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(posixpath.dirname(path), []).append(posixpath.basename(path))
    parts = [faulty(root, dict.fromkeys(outputs, OUTPUT))]
    for folder, names in folders.items():
        parts += list_files(root, folder, names, states)
    return joined(root, root, parts)


def without_outputs(paths: Iterable[str]) -> tuple[list[str], set[str]]:
    """Paths that are neither hidden nor in an output of a codec command, and the folders of outputs."""
    paths = list(paths)
    outputs = {folder for folder, _, name in (path.rpartition("/") for path in paths) if name == OUTPUT_MARK}
    outputs.discard("")

    def is_input(path: str) -> bool:
        folders = path.split("/")
        hidden = any(part.startswith(".") for part in folders)
        return not hidden and not (
            outputs and any("/".join(folders[:depth]) in outputs for depth in range(1, len(folders)))
        )

    return list(filter(is_input, paths)), outputs


def list_files(
    root: str, folder: str, names: Sequence[str], states: Mapping[str, State] | None = None
) -> list[Source]:
    """Sources of the files of one folder below `root`: its audio files, and its archives."""
    archives, faults = choose_archives(os.path.join(root, folder), names)
    paths = {name: posixpath.join(folder, name) for name in names}
    others = [name for name in names if name not in archives]
    audio = [paths[name] for name in others if is_audio(name)]
    listed = {path: IndexedFile(path, *states[path][:2]) for path in audio} if states else {}
    ignored = Counter(kind(name) for name in others if not is_audio(name))
    named = {posixpath.join(folder, name): problem for name, problem in faults.items()}
    plain = replace(faulty(root, named), files=entries(root, audio, listed), ignored=dict(ignored))
    return [plain, *(list_within(root, path) for name, path in paths.items() if name in archives)]


def is_audio(name: str) -> bool:
    """True for a name with the extension of an audio file."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in EXTENSIONS or suffix in FOREIGN_EXTENSIONS


def kind(name: str) -> str:
    """Extension of another file, for the report."""
    packed = PACKED.search(name)
    return packed[0].lower() if packed else os.path.splitext(name)[1].lower() or "without extension"


def faulty(root: str, problems: Mapping[str, str]) -> Source:
    """Source of folders and archives that could not be listed, with their problems."""
    return Source("", root, (), [IndexedFile(name, 0, UNKNOWN, problem=problems[name]) for name in problems])


def entries(root: str, paths: Sequence[str], listed: Mapping[str, IndexedFile]) -> list[IndexedFile]:
    """Entries of files below `root`, those not in `listed` with their states from disk or server."""
    if not is_address(root):
        return [listed.get(path) or state(root, path) for path in paths]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(lambda path: listed.get(path) or state(root, path), paths))


def state(root: str, path: str) -> IndexedFile:
    """Entry of a file below `root` with its size and time of last change."""
    try:
        status = archive.status(os.path.join(root, path))
    except OSError:
        return IndexedFile(path, 0, UNKNOWN)
    return IndexedFile(path, status.st_size, status.st_mtime_ns)
