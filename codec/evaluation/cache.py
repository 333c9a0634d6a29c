"""Results by file as JSON lines, from which an interrupted evaluation is resumed."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec.config import ConfigError


class Records:
    """Records of files by name in a file of JSON lines; the first line is the evaluation's `identity`.

    With `resume`, existing records are kept, except for a last line truncated by a kill; ConfigError if
    their identity differs. Without `resume` the file is replaced.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], resume: bool):
        self.path, self.lock = path, threading.Lock()
        self.done: dict[str, dict[str, Any]] = {}
        head = json.loads(json.dumps(identity))
        lines = self.whole_lines() if resume else []
        if lines and lines[0] != head:
            differ = sorted(
                key for key in head.keys() | lines[0].keys() if head.get(key) != lines[0].get(key)
            )
            raise ConfigError(
                f"{path.parent} holds another evaluation ({', '.join(differ)} differ): name another folder "
                "with --output, or give --fresh to replace it"
            )
        self.done = {record["file"]: record for record in lines[1:]}
        if not lines:
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")

    def whole_lines(self) -> list[dict[str, Any]]:
        """Read all complete lines; an incomplete last line is removed from the file."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.path.open("r+b") as file:
                file.truncate(end)
        try:
            return [json.loads(line) for line in content[:end].decode("utf-8").splitlines()]
        except ValueError as error:
            raise ConfigError(f"{self.path}: damaged ({error}): give --fresh to replace it") from error

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, which replaces an earlier one of the same file."""
        line = json.dumps(record) + "\n"
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            self.done[record["file"]] = record
            file.write(line)
