"""Training and held-out recordings, told apart by content, wherever they lie."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from codec.config import ConfigError
from codec.files import printable, write_whole
from codec.index import split
from codec.inventory import Index, IndexedFile

log = logging.getLogger(__name__)
RECORD, COLUMNS = "files.csv", ("part", "identity", "seconds", "file")
TRAINED, HELD_OUT = "trained", "held out"
Files = Sequence[IndexedFile]


def identity(file: IndexedFile) -> str:
    """Name of what a file, with an absolute path, holds; of where it lies if its content was not checked."""
    if file.rms:
        content = [*file.info, float(file.peak).hex(), float(file.rms).hex()]
        found = " ".join(map(str, content)).encode()
    else:
        found = os.fsencode(os.path.realpath(file.path))
    return hashlib.sha256(found).hexdigest()[:16]


def separate(
    roots: Sequence[tuple[Files, Files]], known: Mapping[str, str] | None = None
) -> tuple[list[list[IndexedFile]], list[IndexedFile]]:
    """Training files of each root, and all that is held out, without one recording in both.

    roots: what is trained and held out below each; with overlaps, one file may be on different sides.
    known: part of recordings by identity, as of a run that goes on; they stay where they were.
    """
    known = known or {}
    everything = {file.path: identity(file) for root in roots for part in root for file in part}
    # A root of one file has it on both sides. It stays for training where other roots hold out.
    proposed = {
        everything[file.path] for train, valid in roots if list(train) != list(valid) for file in valid
    }
    held = {
        one for one in everything.values() if known.get(one, HELD_OUT if one in proposed else "") == HELD_OUT
    }
    if not held or held == set(everything.values()):  # as of a single recording, which has to serve as both
        return [list(train) for train, _ in roots], [file for _, valid in roots for file in valid]
    valid: dict[str, IndexedFile] = {}
    trained: list[list[IndexedFile]] = []
    moved = 0
    for train, out in roots:
        below = {file.path: file for file in (*train, *out)}
        trained.append([below[path] for path in sorted(below) if everything[path] not in held])
        for file in sorted((*out, *train), key=lambda file: file.path):
            if everything[file.path] in held:
                valid.setdefault(everything[file.path], file)
        moved += sum(everything[file.path] in held for file in train)
    if moved:
        log.info("%d files are held out because they are, or were, elsewhere too", moved)
    return trained, list(valid.values())


def held_out(index: Index, share: float, models: Iterable[str]) -> list[IndexedFile]:
    """Files that training holds out of a folder: those that the models' runs did, else a share of it.

    What one of the models was trained on is left out. ConfigError when nothing remains.
    """
    kept = {file.path for file in split(index.usable, share)[1]}
    runs = [known for known in map(parts_near, map(Path, models)) if known]
    for file in index.usable if runs else ():
        parts = {known.get(identity(file.below(index.root))) for known in runs}
        if TRAINED in parts:
            kept.discard(file.path)
        elif HELD_OUT in parts:
            kept.add(file.path)
    if not kept:
        raise ConfigError(f"--held-out: the models were trained on all recordings in {printable(index.root)}")
    return [file for file in index.usable if file.path in kept]


def write_record(
    folder: Path, trained: Iterable[Files], held_out: Files, before: Mapping[str, Mapping[str, str]]
) -> None:
    """Write the training and held-out recordings into a run folder.

    Rows of `before` whose recordings are missing stay: a folder that comes back keeps its parts.
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
    """Rows of a run folder's record by identity; none if there is no record."""
    try:
        with (folder / RECORD).open(encoding="utf-8", newline="") as file:
            return {row["identity"]: row for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error):
        return {}


def parts_near(model: Path) -> dict[str, str]:
    """Parts of recordings by identity, of the run that a model, checkpoint or run folder belongs to."""
    for folder in (model, model.parent, model.parent.parent):
        rows = read_record(folder)
        if rows:
            return {name: row.get("part", "") for name, row in rows.items()}
    return {}


def say_changes(before: Mapping[str, Mapping[str, str]], files: Iterable[IndexedFile]) -> None:
    """Warn when a run goes on with other recordings than its record names."""
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
