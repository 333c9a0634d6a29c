"""Split of recordings into training and validation, by whole files or within a long one."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from codec.config import ConfigError
from codec.data.index import IndexedFile
from codec.system.archive import unpacked

log = logging.getLogger(__name__)
DOMINATING = 2 / 3  # share of the duration from which on one file may be cut
LEAST = 1.0  # seconds of each part of a file that is cut
GAP = 0.5  # seconds between the parts; resampling a crop reads fewer samples beyond its ends
Parts = tuple[tuple[IndexedFile, ...], tuple[IndexedFile, ...]]


def split(files: Sequence[IndexedFile], valid_fraction: float, crop: float = 0.0) -> Parts:
    """Split into training and validation files by a hash of each path, which is without the archives in it.

    Adding files moves no other file, except in folders so small that the hash leaves one side empty: then
    the file closest to the limit changes sides. If the mean duration of the validation files is above twice
    or below half of the mean of all, `valid_fraction` is of the duration instead: files are added in the
    order of their hashes as long as they fit.

    A single file, or one of over two thirds of the duration beside which whole files cannot give the share,
    is cut: its end is held out. A single file that would leave less than `crop` seconds is used for both.
    """
    if not 0 < valid_fraction < 1:
        raise ConfigError(f"valid_fraction must lie between 0 and 1, got {valid_fraction}")
    by_path = totals(files, {file: file.path for file in files})
    most = DOMINATING * sum(by_path.values())
    # Listed parts of a file stay together, unless they are most of all.
    apart = {file for file in files if file.span and by_path[file.path] > most}
    called = names_of(by_path)
    names = {file: called[file.path] + (f":{file.range}" if file in apart else "") for file in files}
    ranked = sorted({*names.values()}, key=lambda name: (position(name), name))
    if len(ranked) < 2:
        parts = cut(files[0], valid_fraction * files[0].seconds, crop) if files else None
        if parts:
            return parts[:1], parts[1:]
        log.warning("%d usable file only: it is used for training and for validation", len(files))
        return tuple(files), tuple(files)
    duration = totals(files, names)
    seconds = {name: duration[name] for name in ranked}
    chosen = choose(seconds, valid_fraction)
    total, held_seconds = sum(seconds.values()), sum(seconds[name] for name in chosen)
    pieces, longest = None, max(files, key=lambda file: (file.seconds, file.path))
    wanted = valid_fraction * total
    if longest.seconds > DOMINATING * total and not wanted / 2 <= held_seconds <= wanted * 2:
        base, missing = (chosen, wanted - held_seconds) if held_seconds < wanted else (set[str](), wanted)
        if pieces := cut(longest, missing, crop):
            chosen = base
    train, valid = list[IndexedFile](), list[IndexedFile]()
    for file in files:
        if pieces and file == longest:
            train.append(pieces[0])
            valid.append(pieces[1])
        else:
            (valid if names[file] in chosen else train).append(file)
    return tuple(train), tuple(valid)


def names_of(paths: Iterable[str]) -> dict[str, str]:
    """Names by which recordings are held out, by path: those of archives without the archive, if unique."""
    names = {path: unpacked(path) for path in paths}
    counts = Counter(names.values())
    return {path: name if counts[name] == 1 else path for path, name in names.items()}


def totals(files: Sequence[IndexedFile], names: Mapping[IndexedFile, str]) -> dict[str, float]:
    """Duration in seconds of all files of each name."""
    totals: dict[str, float] = {}
    for file in files:
        totals[names[file]] = totals.get(names[file], 0.0) + file.seconds
    return totals


def choose(seconds: Mapping[str, float], share: float) -> set[str]:
    """Names to hold out, of those ranked by hash with their durations: a share of them or of the time."""
    ranked, total = list(seconds), sum(seconds.values())
    count = sum(position(name) < share for name in ranked)
    chosen = ranked[: min(max(count, 1), len(ranked) - 1)]
    if total / 2 <= sum(seconds[name] for name in chosen) * len(ranked) / len(chosen) <= total * 2:
        return set(chosen)
    chosen, remaining = list[str](), share * total
    most = min(max(1, int(len(ranked) * max(share, 0.5))), len(ranked) - 1)  # keeps variety for training
    for name in ranked:
        if seconds[name] <= remaining and len(chosen) < most:
            chosen.append(name)
            remaining -= seconds[name]
    return set(chosen or [min(ranked, key=lambda name: seconds[name])])


def cut(file: IndexedFile, seconds: float, crop: float = 0.0) -> tuple[IndexedFile, IndexedFile] | None:
    """Parts of a file for training and validation, the last `seconds`; None for a file that is too short."""
    first, end = file.range
    start = end - round(max(seconds, LEAST) * file.sample_rate)
    last = start - round(GAP * file.sample_rate)
    if not file.sample_rate or last - first < max(LEAST, crop + 0.01) * file.sample_rate:
        return None
    return replace(file, span=(first, last)), replace(file, span=(start, end))


def position(path: str) -> float:
    """Hash of a path, from 0 to 1."""
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
