"""Partition of recordings into training and held-out parts, identified by content instead of path."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from codec.config import ConfigError
from codec.data.index import DataError, Index, IndexedFile, named
from codec.data.split import split
from codec.system import address
from codec.system.archive import unpacked
from codec.system.files import printable, write_whole

log = logging.getLogger(__name__)
RECORD, COLUMNS = "files.csv", ("part", "identity", "seconds", "file")
TRAINED, HELD_OUT = "trained", "held out"
Files = Sequence[IndexedFile]
Record = dict[str, list[tuple[str, tuple[int, int] | None]]]  # part and span by identity of the whole


def identity(file: IndexedFile) -> str:
    """Identity of a recording by its content; by its absolute path if the content was not checked.

    That of a part of a file ends with its frames, as `:8000-16000`.
    """
    if file.rms:
        content = [*file.info, float(file.peak).hex(), float(file.rms).hex()]
        key = " ".join(map(str, content)).encode()
    else:
        key = os.fsencode(file.path if address.parts(file.path)[0] else os.path.realpath(file.path))
    name = hashlib.sha256(key).hexdigest()[:16]
    return named(name, file.span)


def by_recording(parts: Mapping[str, str]) -> Record:
    """Parts by the identity of the whole recording, each with its span or None."""
    record: Record = {}
    for name, part in parts.items():
        recording, _, frames = name.partition(":")
        span = re.fullmatch(r"(\d+)-(\d+)", frames)
        record.setdefault(recording, []).append((part, (int(span[1]), int(span[2])) if span else None))
    return record


def recorded(file: IndexedFile, record: Record) -> list[tuple[str, IndexedFile]]:
    """Parts of a run in which a file with an absolute path lies, each with the frames that lie in it.

    Other recorded spans are ignored if the file is recorded with its own.
    """
    pieces = list[tuple[str, IndexedFile]]()
    spans = record.get(identity(replace(file, span=None)), [])
    for part, span in [entry for entry in spans if entry[1] == file.span] or spans:
        inside = overlap(file.range, span or file.range)
        if inside:
            pieces.append((part, file if inside == file.range else replace(file, span=inside)))
    return pieces


def recorded_cuts(files: Files, known: Mapping[str, str]) -> dict[IndexedFile, list[tuple[str, IndexedFile]]]:
    """Recorded parts (`known`, as `recorded` returns them) that lie in the files that a run has cut.

    Files that are recorded themselves are not cut; their spans, and those of cuts, cut no overlapping file.
    """
    record = {name: spans for name, spans in by_recording(known).items() if any(span for _, span in spans)}
    names = {file: identity(file) for file in files} if record else {}
    cuts = {file: ends_of(file, record) for file, name in names.items() if name not in known}
    owned = {*names.values()} | {identity(piece) for pieces in cuts.values() for _, piece in pieces}
    others = by_recording({name: part for name, part in known.items() if name not in owned})
    others = {name: spans for name, spans in others.items() if name in record}
    return {file: pieces or recorded(file, others) for file, pieces in cuts.items()}


def ends_of(file: IndexedFile, record: Record) -> list[tuple[str, IndexedFile]]:
    """Two recorded parts of a file, one from its begin and one up to its end; empty without such a cut."""
    first, end = file.range
    ends = [
        (part, replace(file, span=span))
        for part, span in record.get(identity(replace(file, span=None)), [])
        if span and overlap(span, file.range) == span and (span[0] == first) != (span[1] == end)
    ]
    return ends if len(ends) == 2 else []


def overlap(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int] | None:
    """Common frames (first, end) of two spans."""
    first, end = max(one[0], other[0]), min(one[1], other[1])
    return (first, end) if first < end else None


def divide(
    index: Index, share: float, crop: float, known: Mapping[str, str]
) -> tuple[list[IndexedFile], list[IndexedFile]]:
    """Training and held-out files of a folder, with absolute paths: `split` with crops of `crop` seconds.

    In a run with `known` parts by identity, files that were cut are cut as before, and no other is.
    """
    files = {file: file.below(index.root) for file in index.usable}
    cuts = recorded_cuts(list(files.values()), known)
    pieces = [piece for file in files.values() for piece in cuts.get(file, [])]
    rest = [file for file in index.usable if not cuts.get(files[file])]
    alone = bool(pieces) and len(rest) < 2
    parts = (rest, ()) if alone else split(rest, share, float("inf") if known else crop)
    trained, valid = ([files.get(file) or file.below(index.root) for file in part] for part in parts)
    trained += [piece for part, piece in pieces if part != HELD_OUT]
    valid += [piece for part, piece in pieces if part == HELD_OUT]
    return sorted(trained, key=place), sorted(valid, key=place)


def place(file: IndexedFile) -> tuple[str, str, tuple[int, int]]:
    """Path and frames of a recording, as key for sorting: shards are sorted as the folder they came from."""
    return unpacked(file.path), file.path, file.range


def separate(
    roots: Sequence[tuple[Files, Files]], known: Mapping[str, str] | None = None
) -> tuple[list[list[IndexedFile]], list[IndexedFile]]:
    """Training files of each root, and all held-out files, with no recording in both.

    roots: training and held-out files of each root; the parts of overlapping roots may contradict.
    known: parts of recordings by identity, as in a resumed run; these recordings keep their parts.
    """
    known = known or {}
    identities = {file: identity(file) for root in roots for part in root for file in part}
    # A root of one file has it in both parts. It is used for training if other roots hold out files.
    proposed = {identities[file] for train, valid in roots if list(train) != list(valid) for file in valid}
    held_names = {
        one for one in identities.values() if known.get(one, HELD_OUT if one in proposed else "") == HELD_OUT
    }
    # All names are those of held-out files for one recording alone, which is used in both parts.
    if not held_names or held_names.issuperset(identities.values()):
        return [list(train) for train, _ in roots], [file for _, valid in roots for file in valid]
    valid: dict[str, IndexedFile] = {}
    trained: list[list[IndexedFile]] = []
    num_moved = 0
    for train, held_files in roots:
        files = sorted(dict.fromkeys((*held_files, *train)), key=place)
        trained.append([file for file in files if identities[file] not in held_names])
        for file in files:
            if identities[file] in held_names:
                valid.setdefault(identities[file], file)
        num_moved += sum(identities[file] in held_names for file in train)
    if num_moved:
        log.info(
            "%d training files equal held-out files, now or in an earlier run: they are held out, too",
            num_moved,
        )
    return without_overlap(trained, list(valid.values())), list(valid.values())


def without_overlap(trained: Sequence[Files], held: Files) -> list[list[IndexedFile]]:
    """Training files without those of which a part is held out, as by another root or row of a list.

    `DataError` if none remains.
    """
    if not any(file.span for files in (held, *trained) for file in files):
        return [list(files) for files in trained]
    spans: dict[str, list[tuple[int, int]]] = {}
    for file in held:
        spans.setdefault(identity(replace(file, span=None)), []).append(file.range)

    def apart(file: IndexedFile) -> bool:
        others = spans.get(identity(replace(file, span=None)), [])
        return not any(overlap(file.range, span) for span in others)

    remaining = [list(filter(apart, files)) for files in trained]
    num_files, num_remaining = (sum(map(len, roots)) for roots in (trained, remaining))
    if num_files and not num_remaining:
        raise DataError(
            f"all {num_files} parts of files for training overlap held-out parts: list parts that do not "
            "overlap, add recordings, or lower data.validation.fraction"
        )
    if num_remaining < num_files:
        log.info(
            "%d parts of files are not trained on: they overlap held-out parts", num_files - num_remaining
        )
    return remaining


def held_out(index: Index, share: float, models: Iterable[str]) -> list[IndexedFile]:
    """Held-out files of a folder: those held out in a model's run and, of files in no run, a `share`.

    Files, and parts of files, that any model was trained on are removed. ConfigError if none remains.
    """
    proposed = split(index.usable, share)[1]
    runs = [by_recording(parts) for parts in map(parts_near, map(Path, models)) if parts]
    if not runs:
        return list(proposed)
    files = [one for file in index.usable for one in held_out_of(file, index.root, proposed, runs)]
    if not files:
        raise ConfigError(f"--held-out: the models were trained on all recordings in {printable(index.root)}")
    return files


def held_out_of(file: IndexedFile, root: str, proposed: Files, runs: Sequence[Record]) -> list[IndexedFile]:
    """Parts of a file that are held out in every run with it; those `proposed` if no run has it."""
    pieces, trained = None, list[tuple[int, int]]()
    for run in runs:
        parts = recorded(file.below(root), run)
        trained += [piece.range for part, piece in parts if part == TRAINED]
        ranges = [piece.range for part, piece in parts if part == HELD_OUT]
        if ranges:
            earlier_ranges = [file.range] if pieces is None else pieces
            common = [overlap(one, other) for one in earlier_ranges for other in ranges]
            pieces = [span for span in common if span]
    if pieces is None:
        pieces = [one.range for one in proposed if one.path == file.path and overlap(one.range, file.range)]
    free = [span for span in pieces if not any(overlap(span, other) for other in trained)]
    return [file if span == file.range else replace(file, span=span) for span in free]


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
    """Rows of a run folder's record by identity; empty without a record.

    A recording in both parts, as the only one of a run, counts as trained.
    """
    try:
        with (folder / RECORD).open(encoding="utf-8", newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row.get("part") == TRAINED)
            return {row["identity"]: row for row in rows}
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
    current = {identity(replace(file, span=None)): printable(os.path.basename(file.path)) for file in files}
    recorded = {name.partition(":")[0]: row["file"] for name, row in before.items()}
    missing = [file for name, file in recorded.items() if name not in current]
    new = [file for name, file in current.items() if name not in recorded]
    changed = ", ".join(
        f"{len(names)} {word} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
        for names, word in ((missing, "gone"), (new, "new"))
        if names
    )
    if before and changed:
        log.warning("the recordings have changed: %s; held-out recordings remain held out", changed)
