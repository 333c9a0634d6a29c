"""Inventory of a folder of audio: its files, their headers and levels, and their problems."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction

from codec.audio.conversion import resampled_span
from codec.audio.reading import AudioInfo
from codec.system.files import printable

# fmt: off
EXTENSIONS = frozenset({
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd",
    ".caf", ".w64", ".rf64", ".sph", ".voc",
})
# Audio formats that libsndfile does not read: reported with a way to convert them, never ignored.
FOREIGN_EXTENSIONS = frozenset({
    ".m4a", ".m4b", ".aac", ".adts", ".alac", ".webm", ".mka", ".wma", ".wv", ".ape", ".amr", ".ac3", ".3gp",
    ".dsf", ".tta", ".shn", ".ra", ".mp2", ".spx",
})
# fmt: on
CLIPPED_SHARE = 1e-3  # files with a larger share of clipped samples are reported, but stay usable


class DataError(ValueError):
    """An unusable folder: missing, not readable, or without a usable audio file."""


@contextmanager
def of_option(option: str) -> Iterator[None]:
    """Prefix a DataError with the option that names the folder."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{option}: {error}") from error


@dataclass(frozen=True, slots=True)
class Excerpt(os.PathLike[str]):
    """Path of a file of which only the frames `span` (first, end) are meant."""

    path: str
    span: tuple[int, int]

    def __fspath__(self) -> str:
        return self.path


def named(recording: str, span: tuple[int, int] | None) -> str:
    """Name of a recording; that of a part ends with its frames (first, end), as `a.wav:8000-16000`."""
    return recording if span is None else f"{recording}:{span[0]}-{span[1]}"


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """One file: its header, its levels (0 if the content was not checked) and its problem.

    `path` is relative to the root, with `/` between folders and surrogate escapes for bytes that are
    not UTF-8. `peak` and `rms` are linear (1 = full scale); `clipped` is the share of samples at full
    scale in runs of three or more. `mtime_ns` is −1 for a file whose state could not be read. A file with a
    `remark` is usable but unusual. A part of a file has a `span`: its first
    frame, and the one after its last. `weight` is a factor of its probability.
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
    remark: str | None = None
    span: tuple[int, int] | None = None
    weight: float = 1.0

    @property
    def info(self) -> AudioInfo:
        """Length, rate and channels of the whole file, as returned by `audio.read_info`."""
        return AudioInfo(self.frames, self.sample_rate, self.channels)

    @property
    def range(self) -> tuple[int, int]:
        """First frame, and the one after the last, of the span or else of the file."""
        return self.span or (0, self.frames)

    @property
    def name(self) -> str:
        """Path, with the frames of a part."""
        return named(self.path, self.span)

    @property
    def length(self) -> int:
        """Number of frames of the span, or else of the file."""
        first, end = self.range
        return end - first

    @property
    def seconds(self) -> float:
        """Duration of the span, or else of the file, in seconds; 0 for a file that could not be read."""
        return self.length / self.sample_rate if self.sample_rate else 0.0

    def range_at(self, sample_rate: int, speed: Fraction | int = 1) -> tuple[int, int]:
        """The `range` in samples at `sample_rate` Hz, played `speed` times as fast."""
        return resampled_span(self.range, self.sample_rate, sample_rate, speed)

    def samples_at(self, sample_rate: int) -> int:
        """Length of the span, or else of the file, in samples at `sample_rate` Hz."""
        first, end = self.range_at(sample_rate)
        return end - first

    def below(self, root: str) -> IndexedFile:
        """Copy with an absolute path below `root`."""
        return replace(self, path=os.path.join(root, self.path))

    def located(self, root: str = "") -> str | Excerpt:
        """Path below `root` of the recording: an `Excerpt` for a part of a file."""
        path = os.path.join(root, self.path)
        return path if self.span is None else Excerpt(path, self.span)


@dataclass(frozen=True)
class Index:
    """Audio files below `root`, sorted by path, and the number of `ignored` files by extension.

    `name` is the path of the archive or list that names the files, else empty.
    """

    root: str
    files: tuple[IndexedFile, ...]
    ignored: dict[str, int] = field(default_factory=dict)
    name: str = ""

    @property
    def usable(self) -> tuple[IndexedFile, ...]:
        """Files without a problem."""
        return tuple(file for file in self.files if file.problem is None)

    @property
    def problems(self) -> tuple[IndexedFile, ...]:
        """Files with a problem."""
        return tuple(file for file in self.files if file.problem is not None)

    @property
    def clipped(self) -> tuple[IndexedFile, ...]:
        """Usable files with more than 0.1 % clipped samples."""
        return tuple(file for file in self.usable if file.clipped > CLIPPED_SHARE)

    @property
    def remarked(self) -> tuple[IndexedFile, ...]:
        """Usable files with a remark."""
        return tuple(file for file in self.usable if file.remark is not None)

    def require_usable(self) -> Index:
        """Return the index itself; `DataError` with the reasons if no file is usable."""
        if self.usable:
            return self
        where = f"no usable audio file in {printable(self.name or self.root)}: "
        if self.files:
            raise DataError(where + "; ".join(_grouped(self.problems)))
        others = ", ".join(f"{count} {suffix}" for suffix, count in Counter(self.ignored).most_common(5))
        reason = f"it holds only other files ({others})" if others else "it is empty"
        if ".parquet" in self.ignored:
            reason += (
                ": save a dataset from Parquet as Arrow, datasets.load_dataset(...).save_to_disk(FOLDER)"
            )
        raise DataError(f"{where}{reason}; looked in all its sub-folders for {' '.join(sorted(EXTENSIONS))}")

    def summary(self) -> str:
        """Summary in a few lines: duration, formats, rates and channels of usable files, and problems."""
        usable, where = self.usable, printable(self.name or self.root)
        minutes = sum(file.seconds for file in usable) / 60
        length = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.1f} minutes"
        lines = [
            f"{where}: {len(usable)} usable file{'s' * (len(usable) != 1)}, {length}",
            "  formats: " + _counted(os.path.splitext(file.path)[1].lower()[1:] for file in usable),
            "  rates: " + _counted(f"{file.sample_rate} Hz" for file in usable),
            "  channels: " + _counted(str(file.channels) for file in usable),
        ]
        if self.clipped:
            lines.append(f"  used although clipped: {_names(self.clipped)}")
        for kind, files in _by_kind(self.remarked):
            lines.append(f"  used although {kind}: {_names(files)}")
        if self.ignored:
            count, others = sum(self.ignored.values()), _counted(Counter(self.ignored).elements())
            lines.append(f"  ignored by their names: {count} other file{'s' * (count != 1)}, {others}")
        if self.problems:
            lines.append(f"  skipped: {len(self.problems)}")
            lines += [f"    {group}" for group in _grouped(self.problems)]
        return "\n".join(lines)

    def report(self) -> str:
        """Summary, then one line for each skipped, clipped or remarked file, with its reason."""
        skipped = [f"skipped  {printable(file.name)}: {file.problem}" for file in self.problems]
        clipped = [
            f"clipped  {printable(file.name)}: {file.clipped:.1%} of its samples" for file in self.clipped
        ]
        remarked = [f"odd      {printable(file.name)}: {file.remark}" for file in self.remarked]
        return "\n".join([self.summary(), *skipped, *clipped, *remarked]) + "\n"


def _counted(values: Iterable[str]) -> str:
    counts = Counter(values).most_common()
    more = f", {len(counts) - 6} more" if len(counts) > 6 else ""
    return ", ".join(f"{value} ({count})" for value, count in counts[:6]) + more


def _names(files: Sequence[IndexedFile]) -> str:
    more = f", … {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(printable(file.name) for file in files[:3]) + more


def _grouped(problems: Sequence[IndexedFile]) -> list[str]:
    return [f"{len(files)} {kind} ({_names(files)})" for kind, files in _by_kind(problems)]


def _by_kind(entries: Sequence[IndexedFile]) -> list[tuple[str, list[IndexedFile]]]:
    groups: dict[str, list[IndexedFile]] = {}
    for file in entries:
        groups.setdefault((file.problem or file.remark or "").split(":")[0], []).append(file)
    return sorted(groups.items(), key=lambda group: -len(group[1]))
