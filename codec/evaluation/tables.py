"""Tables of an evaluation, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec.system.files import write_whole


@dataclass(frozen=True)
class Table:
    """Table with a title, a note, column heads, and rows of text, numbers or None."""

    name: str
    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as csv, atomically; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_whole(path, text.getvalue())
