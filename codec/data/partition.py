"""Partition of recordings into training and held-out parts, identified by content instead of path."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from codec.config import ConfigError
from codec.data.index import Index, IndexedFile
from codec.data.scan import split
from codec.system.files import printable, write_whole

log = logging.getLogger(__name__)
RECORD, COLUMNS = "files.csv", ("part", "identity", "seconds", "file")
TRAINED, HELD_OUT = "trained", "held out"
Files = Sequence[IndexedFile]


def identity(file: IndexedFile) -> str:
    """Identity of a recording by its content; by its absolute path if the content was not checked."""
    if file.rms:
        content = [*file.info, float(file.peak).hex(), float(file.rms).hex()]
        key = " ".join(map(str, content)).encode()
    else:
        key = os.fsencode(os.path.realpath(file.path))
    return hashlib.sha256(key).hexdigest()[:16]


def separate(
    roots: Sequence[tuple[Files, Files]], known: Mapping[str, str] | None = None
) -> tuple[list[list[IndexedFile]], list[IndexedFile]]:
    """Training files of each root, and all held-out files, with no recording in both.

    roots: training and held-out files of each root; the parts of overlapping roots may contradict.
    known: parts of recordings by identity, as in a resumed run; these recordings keep their parts.
    """
    known = known or {}
    everything = {file.path: identity(file) for root in roots for part in root for file in part}
    # A root of one file has it in both parts. It is used for training if other roots hold out files.
    proposed = {
        everything[file.path] for train, valid in roots if list(train) != list(valid) for file in valid
    }
    held = {
        one for one in everything.values() if known.get(one, HELD_OUT if one in proposed else "") == HELD_OUT
    }
    if not held or held == set(everything.values()):  # such as a single recording, used in both parts
        return [list(train) for train, _ in roots], [file for _, valid in roots for file in valid]
    valid: dict[str, IndexedFile] = {}
    trained: list[list[IndexedFile]] = []
    num_moved = 0
    for train, held_files in roots:
        below = {file.path: file for file in (*train, *held_files)}
        trained.append([below[path] for path in sorted(below) if everything[path] not in held])
        for file in sorted((*held_files, *train), key=lambda file: file.path):
            if everything[file.path] in held:
                valid.setdefault(everything[file.path], file)
        num_moved += sum(everything[file.path] in held for file in train)
    if num_moved:
        log.info("%d files are held out because they are, or were, elsewhere too", num_moved)
    return trained, list(valid.values())


def held_out(index: Index, share: float, models: Iterable[str]) -> list[IndexedFile]:
    """Held-out files of a folder: those held out in a model's run and, of files in no run, a `share`.

    Files that any model was trained on are removed. ConfigError if none remains.
    """
    paths = {file.path for file in split(index.usable, share)[1]}
    runs = [parts_of_run for parts_of_run in map(parts_near, map(Path, models)) if parts_of_run]
    for file in index.usable if runs else ():
        parts = {parts_of_run.get(identity(file.below(index.root))) for parts_of_run in runs}
        if TRAINED in parts:
            paths.discard(file.path)
        elif HELD_OUT in parts:
            paths.add(file.path)
    if not paths:
        raise ConfigError(f"--held-out: the models were trained on all recordings in {printable(index.root)}")
    return [file for file in index.usable if file.path in paths]


def write_record(
    folder: Path, trained: Iterable[Files], held_out: Files, before: Mapping[str, Mapping[str, str]]
) -> None:
    """Write the training and held-out recordings into a run folder.

    Rows of `before` with missing recordings are kept: a folder that is connected again keeps its parts.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    parts = [(TRAINED, file) for root in trained for file in root] + [(HELD_OUT, file) for file in held_out]
    rows = [
        (part, identity(file), f"{file.seconds:.3f}", printable(os.path.basename(file.path)))
        for part, file in parts
    ]
    present = {row[1] for row in rows}
    missing = [
        [row.get(column, "") for column in COLUMNS] for name, row in before.items() if name not in present
    ]
    writer.writerows([*rows, *missing])
    write_whole(folder / RECORD, text.getvalue())


def read_record(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of a run folder's record by identity; empty without a record."""
    try:
        with (folder / RECORD).open(encoding="utf-8", newline="") as file:
            return {row["identity"]: row for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error):
        return {}


def parts_near(model: Path) -> dict[str, str]:
    """Parts of recordings by identity, from the run of a model, checkpoint or run folder."""
    for folder in (model, model.parent, model.parent.parent):
        rows = read_record(folder)
        if rows:
            return {name: row.get("part", "") for name, row in rows.items()}
    return {}


def warn_of_changes(before: Mapping[str, Mapping[str, str]], files: Iterable[IndexedFile]) -> None:
    """Warn if a resumed run has other recordings than its record."""
    now = {identity(file): printable(os.path.basename(file.path)) for file in files}
    gone = [row["file"] for name, row in before.items() if name not in now]
    new = [file for name, file in now.items() if name not in before]
    changed = ", ".join(
        f"{len(names)} {word} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
        for names, word in ((gone, "gone"), (new, "new"))
        if names
    )
    if before and changed:
        log.warning("the recordings have changed: %s; what was held out stays so", changed)
