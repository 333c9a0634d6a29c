"""Results by file as JSON lines, from which an interrupted evaluation is resumed."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec.config import ConfigError
from codec.evaluation.records import FileScores
from codec.system import resuming

REMEDY = "name another folder with --output, or give --fresh to replace it"


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
