"""Lists of recordings as text, CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any, NamedTuple

from codec.data.index import DataError, IndexedFile
from codec.system.address import why
from codec.system.archive import open_bytes
from codec.system.files import printable

log = logging.getLogger(__name__)
COLUMNS = "path", "start", "duration", "weight"
LARGEST = 1e12  # value in a row: its product with a sample rate or a duration stays finite
ROUNDING = 0.01  # seconds that a row may exceed its file by: durations are written with few digits
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


class Row(NamedTuple):
    """One row of a list: a path, the part of the file in seconds, and a factor of its probability."""

    path: str
    start: float = 0.0
    duration: float | None = None
    weight: float = 1.0


def read_list(path: str) -> list[Row]:
    """Read a list, each row once; `DataError` for a row that cannot be read, with its number."""
    reader = LISTS[os.path.splitext(path)[1].lower()]
    unknown: dict[str, None] = {}
    rows: dict[Row, None] = {}
    try:
        with io.TextIOWrapper(open_bytes(path), "utf-8-sig", "surrogateescape", newline="") as file:
            for number, fields in reader(file):
                unknown |= dict.fromkeys(str(key) for key in fields if key not in COLUMNS)
                rows[parse_row(fields, f"{printable(path)}, line {number}")] = None
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {why(error)}") from error
    except (csv.Error, RecursionError) as error:
        raise DataError(f"{printable(path)}: {error}") from error
    if unknown:
        names = ", ".join(printable(name) for name in unknown)
        log.info("%s: columns that are not read: %s; read are %s", path, names, ", ".join(COLUMNS))
    return list(rows)


def expand(pattern: str) -> Iterator[str]:
    """Yield the paths of a pattern with numbers or words in braces, as `{000..009}` or `{a,b}` in a shell."""
    match = BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    first, last, words = match.groups()
    if not words and int(first) > int(last):
        raise DataError(f"{printable(pattern)}: {match[0]} counts down: write {{{last}..{first}}}")
    numbers = () if words else range(int(first), int(last) + 1)
    for word in words.split(",") if words else (f"{number:0{len(first)}d}" for number in numbers):
        yield from expand(pattern[: match.start()] + word + pattern[match.end() :])


def parse_row(fields: Mapping[str, Any], where: str) -> Row:
    """Check the fields of a row; `DataError` with `where` for one that is missing or impossible."""
    path = fields.get("path")
    if not isinstance(path, str) or not path or "\0" in path:
        raise DataError(f"{where}: no path; the columns are {', '.join(COLUMNS)}")
    values = {}
    for name, least in (("start", 0.0), ("duration", None), ("weight", None)):
        text = fields.get(name)
        if text is None or text == "":
            continue
        try:
            value = math.nan if isinstance(text, bool) else float(text)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not (0 < value <= LARGEST or value == least):
            raise DataError(
                f"{where}: {name} must be a number above 0, got {text!r:.40} (the most is {LARGEST:g})"
            )
        values[name] = value
    return Row(path, **values)


def text_lines(file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and path of each line."""
    for number, line in enumerate(file, start=1):
        if path := line.rstrip("\r\n"):
            yield number, {"path": path}


def json_lines(file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and fields of each line, a JSON object."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise DataError(f"{printable(file.name)}, line {number}: no JSON: {error}") from error
        if not isinstance(fields, dict):
            raise DataError(f"{printable(file.name)}, line {number}: expected an object with a path")
        yield number, fields


def csv_lines(file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and fields of each row below the header."""
    reader = csv.DictReader(file)
    for fields in reader:
        yield reader.line_num, {key: value for key, value in fields.items() if key is not None}


LISTS: dict[str, Callable[[IO[str]], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".txt": text_lines,
    ".csv": csv_lines,
    ".jsonl": json_lines,
}


def parts_of(files: Iterable[IndexedFile], rows: Sequence[Row]) -> list[IndexedFile]:
    """Entry of each row, from the entries of whole files; a row outside of its file has that as problem."""
    by_path = {file.path: file for file in files}
    entries: dict[IndexedFile, None] = {}
    for row in rows:
        file = by_path[row.path]
        if file.problem is None:
            first = round(row.start * file.sample_rate)
            end = file.frames if row.duration is None else first + round(row.duration * file.sample_rate)
            if end > file.frames + ROUNDING * file.sample_rate or first >= min(end, file.frames):
                wanted = "" if row.duration is None else f" + {row.duration:g}"
                problem = f"outside of the file: {row.start:g}{wanted} s of its {file.seconds:.3f} s"
                file = replace(file, problem=problem)
            else:
                span = first, min(end, file.frames)
                file = replace(file, span=span if span != (0, file.frames) else None, weight=row.weight)
        entries[file] = None
    return list(entries)
