"""Results by file, a line of JSON each: what is kept of an evaluation that was stopped."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec.config import ConfigError


class Records:
    """Records of files by name in a file of JSON lines; the first line says what they are results of.

    With `resume` those of an equal `identity` are kept; those of another are refused by ConfigError. A line
    that a kill cut short is dropped. Without, the file is begun anew.
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
        """What the file holds; a last line without an end is cut off."""
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
        """Keep a record; a later one of the same file takes its place."""
        line = json.dumps(record) + "\n"
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            self.done[record["file"]] = record
            file.write(line)
