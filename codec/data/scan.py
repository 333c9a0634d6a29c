"""Index of a folder of audio, with a cache for unchanged files; split into training and validation."""

import difflib
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from pathlib import Path

from tqdm import tqdm

from codec.audio.levels import CANCELLING, Levels, measure
from codec.audio.mp3 import may_be_odd, quiet
from codec.audio.reading import AudioError, AudioInfo, decode_blocks, open_audio, read_header
from codec.config import ConfigError
from codec.data.index import EXTENSIONS, FOREIGN_EXTENSIONS, DataError, Index, IndexedFile
from codec.system.files import OUTPUT_MARK, printable, written_whole

log = logging.getLogger(__name__)

CACHE_VERSION = 2
OUTPUT = "written by a codec command (to use it, name the folder itself)"
UNKNOWN = -1  # modification time of a file whose state could not be read
Cache = dict[str, tuple[IndexedFile, bool]]  # True if the content was checked


def scan(
    root: str | os.PathLike[str],
    check_content: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    require_usable: bool = True,
) -> Index:
    """Index all audio files below `root`; entries of unchanged files are read from a cache.

    With `check_content` every file is decoded once (in blocks, on `workers` threads) to find
    truncated, silent, clipped and non-finite files; without it only headers are read. Links to folders
    are followed, each folder once; outputs of codec commands below `root` are skipped. Raises
    `DataError` if the folder is missing, not a folder, not readable, or (with `require_usable`) holds no
    usable file.
    """
    folder = require_folder(root)
    paths, unreadable, ignored = _walk(folder)
    cache_file = _cache_file(folder, cache_dir)
    cache = _load_cache(cache_file)
    stated = [_state(folder, path) for path in paths]
    examined = {file.path: cache[file.path] for file in stated if _unchanged(file, cache, check_content)}
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        try:
            todo = [file for file in stated if file.path not in examined]
            for file in _examine_all(folder, todo, check_content, pool, progress):
                examined[file.path] = file, check_content
        finally:
            # After Ctrl-C too: stop soon, and cache the files examined so far.
            pool.shutdown(cancel_futures=True)
            if examined != cache:
                _save_cache(cache_file, examined)
    entries = sorted([*(file for file, _ in examined.values()), *unreadable], key=lambda file: file.path)
    index = Index(folder, tuple(entries), dict(ignored))
    return index.require_usable() if require_usable else index


def scan_files(paths: Sequence[str | os.PathLike[str]]) -> Index:
    """Index files by their headers, relative to their common folder; duplicates are indexed once."""
    absolute = sorted({os.path.abspath(path) for path in paths})
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])
    states = [_state(root, os.path.relpath(path, root).replace(os.sep, "/")) for path in absolute]
    files = [_examine(root, state, check_content=False) for state in states]
    return Index(root, tuple(sorted(files, key=lambda file: file.path)))


def has_audio(root: str | os.PathLike[str]) -> bool:
    """True if `root` is a folder with at least one file with an audio extension."""
    return os.path.isdir(root) and bool(_walk(os.fspath(root))[0])


def split(
    files: Sequence[IndexedFile], valid_fraction: float
) -> tuple[tuple[IndexedFile, ...], tuple[IndexedFile, ...]]:
    """Split into training and validation files by a hash of each path.

    Adding files moves no other file, except in folders so small that the hash leaves one side empty: then
    the file closest to the limit changes sides. If the mean duration of the validation files is above twice
    or below half of the mean of all, `valid_fraction` is of the duration instead: files are added in the
    order of their hashes as long as they fit. A single file is used for both.
    """
    if not 0 < valid_fraction < 1:
        raise ConfigError(f"valid_fraction must lie between 0 and 1, got {valid_fraction}")
    if len(files) < 2:
        log.warning("%d usable file only: it is used for training and for validation", len(files))
        return tuple(files), tuple(files)
    ranked = sorted(files, key=lambda file: (_position(file.path), file.path))
    count = sum(_position(file.path) < valid_fraction for file in ranked)
    chosen = ranked[: min(max(count, 1), len(files) - 1)]
    total = sum(file.seconds for file in files)
    if not total / 2 <= sum(file.seconds for file in chosen) * len(files) / len(chosen) <= total * 2:
        chosen = _fitting(ranked, valid_fraction, total)
    valid = {file.path for file in chosen}
    train = tuple(file for file in files if file.path not in valid)
    return train, tuple(file for file in files if file.path in valid)


def _fitting(ranked: Sequence[IndexedFile], share: float, total: float) -> list[IndexedFile]:
    chosen: list[IndexedFile] = []
    remaining = share * total
    most = min(max(1, int(len(ranked) * max(share, 0.5))), len(ranked) - 1)  # keeps variety for training
    for file in ranked:
        if file.seconds <= remaining and len(chosen) < most:
            chosen.append(file)
            remaining -= file.seconds
    return chosen or [min(ranked, key=lambda file: file.seconds)]


def _position(path: str) -> float:
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def require_folder(root: str | os.PathLike[str]) -> str:
    """Absolute path of a folder; `DataError` if it is missing, not a folder or not readable."""
    folder = os.path.abspath(os.path.expanduser(os.fspath(root)))
    if os.path.isfile(folder):
        raise DataError(f"{printable(folder)} is a file: name the folder that holds the audio files")
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


def _walk(root: str) -> tuple[list[str], list[IndexedFile], Counter[str]]:
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
    return sorted(paths), unreadable, ignored


def _state(root: str, path: str) -> IndexedFile:
    try:
        status = os.stat(os.path.join(root, path))
    except OSError:
        return IndexedFile(path, 0, UNKNOWN)
    return IndexedFile(path, status.st_size, status.st_mtime_ns)


def _unchanged(file: IndexedFile, cache: Cache, check_content: bool) -> bool:
    if file.path not in cache:
        return False
    cached, checked = cache[file.path]
    # A scan of headers alone must give the same result with and without an earlier check of the content.
    enough = checked if check_content else not checked or cached.problem is None
    return (cached.size, cached.mtime_ns) == (file.size, file.mtime_ns) and enough


def _examine_all(
    root: str, files: list[IndexedFile], check_content: bool, pool: ThreadPoolExecutor, progress: bool
) -> Iterator[IndexedFile]:
    # Without a terminal, a line per half second would fill the log.
    interval = 0.5 if sys.stderr.isatty() else 30.0
    options = {"unit": "file", "delay": 1.0, "mininterval": interval, "disable": not progress}
    with tqdm(total=len(files), desc=f"scanning {printable(root)}", **options) as bar:
        # In portions: a million files are not a million pending calls.
        for start in range(0, len(files), 512):
            portion = files[start : start + 512]
            for file in pool.map(lambda file: _examine(root, file, check_content), portion):
                bar.update()
                yield file


def _examine(root: str, file: IndexedFile, check_content: bool) -> IndexedFile:
    path = os.path.join(root, file.path)
    info, levels, lines = AudioInfo(0, 0, 0), Levels(0.0, 0.0, 0.0, False), list[str]()
    try:
        with _printing(path, check_content) as lines, open_audio(path) as opened:
            info = read_header(opened, path)
            if not opened.seekable():
                raise AudioError(path, f"not seekable ({opened.subtype}): rewrite it as PCM wav or FLAC")
            if check_content:
                levels = measure(decode_blocks(opened, path), path)
    except AudioError as error:
        # A system error (permissions) can be resolved without a change of the file: never reuse it.
        mtime_ns = UNKNOWN if isinstance(error.__cause__, OSError) else file.mtime_ns
        return IndexedFile(file.path, file.size, mtime_ns, *info, problem=error.reason)
    remark = CANCELLING if levels.cancels else f"libmpg123 says: {lines[0]}" if lines else None
    return IndexedFile(file.path, file.size, file.mtime_ns, *info, *levels[:3], remark=remark)


def _printing(path: str, check_content: bool) -> AbstractContextManager[list[str]]:
    """Capture libmpg123's messages about an MP3; regular files, for which it prints none, are not wrapped."""
    regular = check_content and os.path.isfile(path) and not may_be_odd(path)
    return nullcontext([]) if regular else quiet(path)


def _cache_file(root: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return Path(cache_dir or os.path.join(base, "codec")).expanduser() / f"index-{name}.jsonl"


def _load_cache(path: Path) -> Cache:
    try:
        lines = path.read_text("ascii").splitlines()
        if json.loads(lines[0]) != {"version": CACHE_VERSION, "files": len(lines) - 1}:
            raise ValueError("of another version, or cut short")
        rows = [json.loads(line) for line in lines[1:]]
        return {row[0]: (IndexedFile(*row[:-1]), row[-1]) for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, LookupError) as error:
        log.warning("ignoring the index cache %s: %s", printable(path), error)
        return {}


def _save_cache(path: Path, files: Cache) -> None:
    # ASCII JSON escapes lone surrogates, so that names which are not UTF-8 survive.
    rows = [json.dumps({"version": CACHE_VERSION, "files": len(files)})]
    rows += [json.dumps([*astuple(file), checked]) for file, checked in files.values()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text("\n".join(rows), "ascii")
    except OSError as error:
        log.warning("the index cache is not kept: %s", error)
