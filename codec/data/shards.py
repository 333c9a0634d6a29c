"""Archives within a folder: tars, as of WebDataset, and those of a Lhotse Shar folder."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

CUTS = re.compile(r"cuts\.(\d+)\.jsonl(?:\.gz)?")
RECORDINGS = re.compile(r"recording\.(\d+)\.tar")
LONGEST_LINE = 2**24  # bytes of a cut


def choose_archives(folder: str, names: Sequence[str]) -> tuple[set[str], dict[str, str]]:
    """Names of the archives of recordings among a folder's files, and problems by name.

    In a Shar folder (Lhotse, `CutSet.to_shar`) these are `recording.*.tar`, one for each `cuts.*.jsonl.gz`.
    """
    if cuts := [match for name in names if (match := CUTS.fullmatch(name))]:
        needed = {f"recording.{match[1]}.tar": match[0] for match in cuts}
        missing = {name: f"missing: {needed[name]} needs it" for name in sorted({*needed} - {*names})}
        return {name for name in names if RECORDINGS.fullmatch(name)}, missing
    return {name for name in names if name.lower().endswith(".tar")}, {}


def missing_members(path: str, members: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the cuts of a Shar folder that its archive at `path` lacks, with their problem."""
    folder, name = os.path.split(path)
    match = RECORDINGS.fullmatch(name)
    stems = {os.path.splitext(member)[0] for member in members}
    for cuts in (f"cuts.{match[1]}.jsonl{end}" for end in ("", ".gz") if match):
        try:
            with (gzip.open if cuts.endswith("z") else open)(os.path.join(folder, cuts), "rb") as file:
                while line := file.readline(LONGEST_LINE):
                    if (key := str(json.loads(line)["id"])) not in stems:
                        yield key, f"missing in its archive: it is a cut of {cuts}"
        except FileNotFoundError:
            continue
        except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, RecursionError) as error:
            yield cuts, f"damaged: not the cuts of {name}: {error}"
