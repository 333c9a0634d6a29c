"""Results by file as JSON lines, from which an interrupted evaluation is resumed."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec.config import ConfigError
from codec.system import resuming

REMEDY = "name another folder with --output, or give --fresh to replace it"
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
