"""Records of an evaluation and their files: the scores by file, from which it is resumed, and the summary."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from codec.config import ConfigError, fits
from codec.system import resuming

REMEDY = "name another folder with --output, or give --fresh to replace it"
Means = dict[str, float | None]  # mean scores and bitrates in kbit/s at a point, and its num_quantizers
UNREACHED: Any = None  # value of fields that a failed file did not get to


@dataclass(frozen=True)
class PointScores:
    """Scores of a reconstruction by metric, None where it failed, and bits of payload and file if known."""

    num_quantizers: int
    bits: int | None
    file_bits: int | None
    scores: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Entries of a record's point: the fields, the scores among them."""
        entries = dict(vars(self))
        return entries | entries.pop("scores")

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> PointScores:
        """Read a record's point."""
        return cls(*map(entries.pop, ("num_quantizers", "bits", "file_bits")), scores=entries)


@dataclass(frozen=True)
class FileScores:
    """Record of a file: its scores at each point and its codes, or its error.

    `stamp` is its size and modification time, `metrics` are their versions, `reasons` those of failed scores.
    """

    file: str
    number: int
    stamp: list[int]
    seconds: float = UNREACHED
    reasons: dict[str, str] = UNREACHED
    metrics: dict[str, str] = UNREACHED
    points: list[PointScores] = UNREACHED
    codes: list[list[int]] = UNREACHED
    error: str | None = None

    def to_json(self) -> str:
        """Line of the cache, without unreached fields."""
        entries = {name: value for name, value in vars(self).items() if value is not None}
        return json.dumps(entries, default=PointScores.to_json)

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> FileScores:
        """Read the entries of a line."""
        entries["points"] = [PointScores.from_json(point) for point in entries.get("points", [])]
        return cls(**entries)


class Records:
    """Records of files by name in a file of JSON lines; the first line is the evaluation's `identity`.

    With `resume`, existing records are kept, except for a last line truncated by a kill; ConfigError if
    their identity differs. Without `resume` the file is replaced.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], resume: bool):
        self.path, self.lock = path, threading.Lock()
        if not resume:
            path.unlink(missing_ok=True)
        resuming.resume(path.parent, path.name, identity, REMEDY)
        self.done = {record.file: record for record in self.whole_lines()}

    def whole_lines(self) -> list[FileScores]:
        """Read the records of all complete lines; an incomplete last line is removed from the file."""
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.path.open("r+b") as file:
                file.truncate(end)
        try:
            lines = content[:end].decode("utf-8").splitlines()[1:]
            return [FileScores.from_json(json.loads(line)) for line in lines]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{self.path}: damaged ({error}): {REMEDY}") from error

    def add(self, record: FileScores) -> None:
        """Append a record, which replaces an earlier one of the same file."""
        line = record.to_json() + "\n"
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            self.done[record.file] = record
            file.write(line)


@dataclass(frozen=True)
class Summary:
    """Summary of an evaluation, with the names and the order of `summary.json`.

    `frames` are None without codes; `codebook_*` are lists over stages; of `metrics` the versions are listed.
    Fields that are None otherwise are not in the file. Systems of a `family` are one curve; None is a model.
    `ceiling` is True for uncompressed latents, and for the audio itself. `context` is the rates of
    `measure` in bit/s, after `context_steps` of training.
    """

    files: int = 0
    seconds: float = 0.0
    frames: int | None = None
    codebook_sizes: list[int] = field(default_factory=list)
    codebook_usage: list[float] = field(default_factory=list)
    codebook_perplexity: list[float] = field(default_factory=list)
    codebook_entropy: list[float] = field(default_factory=list)
    rate_distortion: list[Means] = field(default_factory=list)
    empty_cells: int = 0
    frame_rate: float | None = None
    tokens_per_second: float | None = None
    parameters: dict[str, int] | None = None
    family: str | None = None
    ceiling: bool | None = None
    baseline: str | None = None
    ffmpeg: str | None = None
    pycodec2: str | None = None
    metrics: dict[str, str] = field(default_factory=dict)
    lower_is_better: list[str] = field(default_factory=list)
    own_metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    encode_ms: float | None = None
    decode_ms: float | None = None
    timed_on: str | None = None
    context: list[list[float]] | None = None
    context_steps: int | None = None

    @property
    def means(self) -> Means:
        """Mean scores and bitrates of the last point, which has all quantizers."""
        return self.rate_distortion[-1]

    def to_json(self) -> dict[str, Any]:
        """Entries of `summary.json`, which has the means of the last point at its top, too."""
        means = {name: value for name, value in self.means.items() if name != "num_quantizers"}
        entries = {name: value for name, value in vars(self).items() if value is not None or name == "frames"}
        return {"files": self.files, "seconds": self.seconds} | means | entries

    @classmethod
    def from_json(cls, entries: Mapping[str, Any], scores: Iterable[str]) -> Summary:
        """Read `summary.json`; ValueError if an entry or a score is missing, or of another type."""
        hints = get_type_hints(cls)
        names = hints.keys() & entries.keys()
        invalid = {"files", "rate_distortion", *scores} - entries.keys()
        invalid |= {name for name in names if not fits(entries[name], hints[name])}
        if invalid:
            raise ValueError(f"summary.json lacks {', '.join(sorted(invalid))}: evaluate the run again")
        return cls(**{name: entries[name] for name in names})
