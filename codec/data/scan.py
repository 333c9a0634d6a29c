"""Index of recordings, with a cache for unchanged files."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, replace
from pathlib import Path

from codec.audio.levels import CANCELLING, Levels, measure
from codec.audio.mp3 import may_be_odd, quiet
from codec.audio.reading import AudioError, AudioInfo, decode_blocks, open_audio, read_header
from codec.data.index import DataError, Index, IndexedFile
from codec.data.lists import Row, parts_of
from codec.data.roots import is_pattern, is_source
from codec.data.source import CONNECTIONS, UNKNOWN, Source, list_folder, list_rows, open_source
from codec.system.address import absolute, common, is_address, parent, require_local
from codec.system.archive import is_file
from codec.system.files import printable, written_whole
from codec.system.progress import progress_bar
from codec.system.sources import find

log = logging.getLogger(__name__)

CACHE_VERSION, CACHED = 2, 11  # the entries' fields in the cache: of whole files, without span and weight
Cache = dict[str, tuple[IndexedFile, bool]]  # True if the content was checked


def scan(
    root: str | os.PathLike[str],
    check_content: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    require_usable: bool = True,
) -> Index:
    """Index a folder, tar archive or list of recordings; entries of unchanged files are read from a cache.

    Each may be at an address of fsspec, as `s3://bucket/folder`; the cache is local.
    With `check_content` every file is decoded once (in blocks, on `workers` threads) to find
    truncated, silent, clipped and non-finite files; without it only headers are read. See `open_source`
    for the files. Raises `DataError` if the source is missing, not readable, or (with `require_usable`) has
    no usable file.
    """
    source = open_source(root)
    cache_file = _cache_file(source.name, cache_dir)
    waiting = {file.path: file for file in source.files}
    source = replace(source, files=())  # of a million files, one entry each is in memory
    examined, is_current = _load_cache(cache_file, waiting, check_content)
    num_threads = CONNECTIONS if is_address(source.root) else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers or num_threads) as pool:
        try:
            for file in _examine_all(source, [*waiting.values()], check_content, pool, progress):
                examined[file.path] = file, check_content
        finally:
            # After Ctrl-C too: stop soon, and cache the files examined so far.
            pool.shutdown(cancel_futures=True)
            if waiting or not is_current:
                _save_cache(cache_file, examined)
    files = [file for file, _ in examined.values()]
    files = files if source.rows is None else parts_of(files, source.rows)
    entries = sorted([*files, *source.unreadable], key=lambda file: (file.path, file.range))
    index = Index(source.root, tuple(entries), dict(source.ignored), source.name)
    return index.require_usable() if require_usable else index


def scan_files(paths: Sequence[str | os.PathLike[str]]) -> Index:
    """Index files by their headers, relative to their common folder; duplicates are indexed once.

    Archives, or a single list, give their recordings.
    """
    if len(paths) == 1 and is_source(paths[0]):
        return scan(paths[0], check_content=False, require_usable=False)
    files = sorted({absolute(path) for path in paths})
    try:
        folder = common([parent(path) for path in files])
    except ValueError as error:
        raise DataError("files on several drives or at several addresses: encode them one by one") from error
    source = list_rows("", folder, [*map(Row, files)])
    files = [_examine(source.root, file, check_content=False) for file in source.files]
    entries = sorted([*files, *source.unreadable], key=lambda file: file.path)
    return Index(source.root, tuple(entries), dict(source.ignored))


def has_audio(root: str | os.PathLike[str]) -> bool:
    """True for sources, addresses, archives and lists, and for a folder with audio files."""
    return (
        find(os.fspath(root)) is not None
        or is_address(root)
        or os.path.isfile(root)
        or is_pattern(root)
        or (os.path.isdir(root) and bool(list_folder(os.fspath(root)).files))
    )


def _examine_all(
    source: Source, files: list[IndexedFile], check_content: bool, pool: ThreadPoolExecutor, progress: bool
) -> Iterator[IndexedFile]:
    options = {"total": len(files), "unit": "file", "disable": not progress}
    with progress_bar(None, f"scanning {printable(source.name)}", **options) as bar:
        # In portions: a million files are not a million pending calls.
        for start in range(0, len(files), 512):
            portion = files[start : start + 512]
            for file in pool.map(lambda file: _examine(source.root, file, check_content), portion):
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
    regular = check_content and is_file(path) and not may_be_odd(path)
    return nullcontext([]) if regular else quiet(path)


def _cache_file(root: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return (
        Path(require_local(cache_dir or "") or os.path.join(base, "codec")).expanduser()
        / f"index-{name}.jsonl"
    )


def _load_cache(path: Path, waiting: dict[str, IndexedFile], check_content: bool) -> tuple[Cache, bool]:
    """Move the unchanged files out of `waiting`; returns them, and False if the cache has other entries."""
    examined: Cache = {}
    count = 0
    try:
        with path.open(encoding="ascii") as lines:
            about = json.loads(next(lines, ""))
            for line in lines:
                count += 1
                *fields, checked = json.loads(line)
                cached, file = IndexedFile(*fields), waiting.get(fields[0])
                # A scan of headers alone must give the same result with and without an earlier check of the
                # content.
                enough = checked if check_content else not checked or cached.problem is None
                if file and enough and (cached.size, cached.mtime_ns) == (file.size, file.mtime_ns):
                    examined[file.path] = (
                        IndexedFile(file.path, file.size, file.mtime_ns, *fields[3:]),
                        checked,
                    )
            if about != {"version": CACHE_VERSION, "files": count}:
                raise ValueError("of another version, or cut short")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, LookupError) as error:
        log.warning("ignoring the index cache %s: %s", printable(path), error)
        examined = {}
    for name in examined:
        del waiting[name]
    return examined, count == len(examined)


def _save_cache(path: Path, files: Cache) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # ASCII JSON escapes lone surrogates, so that names which are not UTF-8 survive.
        with written_whole(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as cache:
            cache.write(json.dumps({"version": CACHE_VERSION, "files": len(files)}))
            for file, checked in files.values():
                cache.write("\n" + json.dumps([*astuple(file)[:CACHED], checked]))
    except OSError as error:
        log.warning("the index cache is not kept: %s", error)
