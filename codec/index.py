"""A folder of audio: which files are usable, how long they are, and what is wrong with the others."""

import difflib
import hashlib
import json
import logging
import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from codec.audio import AudioError, AudioInfo, measure, open_audio, printable, read_header

log = logging.getLogger(__name__)

# fmt: off
EXTENSIONS = frozenset({
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd",
    ".caf", ".w64", ".rf64", ".sph", ".voc",
})
# fmt: on
CLIPPED_SHARE = 1e-3  # share of clipped samples from which a file is mentioned; it stays usable
CACHE_VERSION = 1
UNKNOWN = -1  # time of last change of a file whose state could not be read


class DataError(ValueError):
    """A folder that cannot be used: missing, not readable, or without a single usable audio file."""


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """One file: its header, its level (0 where the content was not checked) and what is wrong with it.

    `path` is relative to the root, with `/` between folders and surrogate escapes for bytes that are
    not UTF-8. `peak` and `rms` are linear (1 = full scale); `clipped` is the share of samples at full
    scale in runs of three or more. `mtime_ns` is −1 for a file whose state could not be read.
    """

    path: str
    size: int
    mtime_ns: int
    frames: int = 0
    sample_rate: int = 0
    channels: int = 0
    peak: float = 0.0
    rms: float = 0.0
    clipped: float = 0.0
    problem: str | None = None

    @property
    def info(self) -> AudioInfo:
        """Length, rate and channels as `audio.read_info` gives them."""
        return AudioInfo(self.frames, self.sample_rate, self.channels)

    @property
    def seconds(self) -> float:
        """Duration in seconds; 0 for a file that could not be read."""
        return self.frames / self.sample_rate if self.sample_rate else 0.0

    def below(self, root: str) -> "IndexedFile":
        """The same file with an absolute path."""
        return replace(self, path=os.path.join(root, self.path))


Cache = dict[str, tuple[IndexedFile, bool]]  # with whether the content was checked


@dataclass(frozen=True)
class Index:
    """The audio files below `root` (sorted by path), and how many others were `ignored` by extension."""

    root: str
    files: tuple[IndexedFile, ...]
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> tuple[IndexedFile, ...]:
        """The files without a problem."""
        return tuple(file for file in self.files if file.problem is None)

    @property
    def problems(self) -> tuple[IndexedFile, ...]:
        """The files with a problem."""
        return tuple(file for file in self.files if file.problem is not None)

    @property
    def clipped(self) -> tuple[IndexedFile, ...]:
        """Usable files of which more than 0.1 % of the samples are clipped."""
        return tuple(file for file in self.usable if file.clipped > CLIPPED_SHARE)

    def require_usable(self) -> "Index":
        """Return the index itself; `DataError` with the reasons when no file is usable."""
        if self.usable:
            return self
        where = f"no usable audio file in {printable(self.root)}: "
        if self.files:
            raise DataError(where + "; ".join(_grouped(self.problems)))
        others = ", ".join(f"{count} {suffix}" for suffix, count in Counter(self.ignored).most_common(5))
        found = f"it holds only other files ({others})" if others else "it is empty"
        raise DataError(f"{where}{found}; looked in all its sub-folders for {' '.join(sorted(EXTENSIONS))}")

    def summary(self) -> str:
        """Hours, formats, rates and channels of the usable files, and the problems counted: a few lines."""
        usable = self.usable
        minutes = sum(file.seconds for file in usable) / 60
        length = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.1f} minutes"
        lines = [
            f"{printable(self.root)}: {len(usable)} usable files, {length}",
            "  formats: " + _counted(os.path.splitext(file.path)[1].lower()[1:] for file in usable),
            "  rates: " + _counted(f"{file.sample_rate} Hz" for file in usable),
            "  channels: " + _counted(str(file.channels) for file in usable),
        ]
        if self.clipped:
            lines.append(f"  used although clipped: {_names(self.clipped)}")
        if self.problems:
            lines.append(f"  skipped: {len(self.problems)}")
            lines += [f"    {group}" for group in _grouped(self.problems)]
        return "\n".join(lines)

    def report(self) -> str:
        """The summary, then one line for each file that is skipped or clipped, with its reason."""
        skipped = [f"skipped  {printable(file.path)}: {file.problem}" for file in self.problems]
        clipped = [
            f"clipped  {printable(file.path)}: {file.clipped:.1%} of its samples" for file in self.clipped
        ]
        return "\n".join([self.summary(), *skipped, *clipped]) + "\n"


def scan(
    root: str | os.PathLike[str],
    check_content: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    require_usable: bool = True,
) -> Index:
    """Index all audio files below `root`; files that did not change since the last scan come from a cache.

    With `check_content` every file is decoded once (in blocks, on `workers` threads) to find the
    truncated, silent, clipped and non-finite ones; without it only headers are read. Links to folders
    are followed, each folder once. Raises `DataError` when the folder is missing, not a folder, not
    readable, or (unless `require_usable` is off) holds no usable file.
    """
    folder = _require_folder(root)
    paths, unreadable, ignored = _walk(folder)
    cache_file = _cache_file(folder, cache_dir)
    cache = _load_cache(cache_file)
    stated = [_state(folder, path) for path in paths]
    done = {file.path: cache[file.path] for file in stated if _unchanged(file, cache, check_content)}
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        try:
            todo = [file for file in stated if file.path not in done]
            for file in _examine_all(folder, todo, check_content, pool, progress):
                done[file.path] = file, check_content
        finally:
            # Also after Ctrl-C: stop soon, and keep what was examined so far.
            pool.shutdown(cancel_futures=True)
            if done != cache:
                _save_cache(cache_file, done)
    found = sorted([*(file for file, _ in done.values()), *unreadable], key=lambda file: file.path)
    index = Index(folder, tuple(found), dict(ignored))
    return index.require_usable() if require_usable else index


def has_audio(root: str | os.PathLike[str]) -> bool:
    """Whether `root` is a folder with at least one file whose name says that it is audio."""
    return os.path.isdir(root) and bool(_walk(os.fspath(root))[0])


def split(
    files: Sequence[IndexedFile], valid_fraction: float
) -> tuple[tuple[IndexedFile, ...], tuple[IndexedFile, ...]]:
    """Training and validation files; a hash of its path decides for each file alone.

    So adding files moves no other file, except in folders so small that the hash leaves one side
    empty: then the file closest to the limit changes sides. A single file is used for both.
    """
    if not 0 < valid_fraction < 1:
        raise ValueError(f"valid_fraction must lie between 0 and 1, got {valid_fraction}")
    if len(files) < 2:
        log.warning("%d usable file only: it is used for training and for validation", len(files))
        return tuple(files), tuple(files)
    ranked = sorted(files, key=lambda file: (_position(file.path), file.path))
    count = sum(_position(file.path) < valid_fraction for file in ranked)
    valid = {file.path for file in ranked[: min(max(count, 1), len(files) - 1)]}
    train = tuple(file for file in files if file.path not in valid)
    return train, tuple(file for file in files if file.path in valid)


def _position(path: str) -> float:
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _require_folder(root: str | os.PathLike[str]) -> str:
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
    # Links wait until all real folders are done, so that a file keeps its real path whatever links to it.
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
        for entry in (entry for entry in entries if not entry.name.startswith(".")):
            path = f"{folder}/{entry.name}" if folder else entry.name
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_symlink() and os.path.isdir(entry.path):
                links.append(path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif suffix in EXTENSIONS:
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
    return (cached.size, cached.mtime_ns) == (file.size, file.mtime_ns) and (checked or not check_content)


def _examine_all(
    root: str, files: list[IndexedFile], check_content: bool, pool: ThreadPoolExecutor, progress: bool
) -> Iterator[IndexedFile]:
    # A log file needs no line every half second.
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
    info = AudioInfo(0, 0, 0)
    try:
        with open_audio(path) as opened:
            info = read_header(opened, path)
            if not opened.seekable():
                raise AudioError(path, f"not seekable ({opened.subtype}): rewrite it as PCM wav or FLAC")
            levels = measure(opened, path) if check_content else (0.0, 0.0, 0.0)
    except AudioError as error:
        # An error of the system (permissions) can go away without the file changing: never reuse it.
        known = UNKNOWN if isinstance(error.__cause__, OSError) else file.mtime_ns
        return IndexedFile(file.path, file.size, known, *info, problem=error.reason)
    return IndexedFile(file.path, file.size, file.mtime_ns, *info, *levels)


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
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(rows), "ascii")
        os.replace(temporary, path)
    except OSError as error:
        log.warning("the index cache is not kept: %s", error)


def _counted(values: Iterable[str]) -> str:
    counts = Counter(values).most_common()
    more = f", {len(counts) - 6} more" if len(counts) > 6 else ""
    return ", ".join(f"{value} ({count})" for value, count in counts[:6]) + more


def _names(files: Sequence[IndexedFile]) -> str:
    more = f", … {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(printable(file.path) for file in files[:3]) + more


def _grouped(problems: Sequence[IndexedFile]) -> list[str]:
    groups: dict[str, list[IndexedFile]] = {}
    for file in problems:
        groups.setdefault((file.problem or "").split(":")[0], []).append(file)
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [f"{len(files)} {kind} ({_names(files)})" for kind, files in ranked]
