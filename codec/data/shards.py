"""Archives within a folder: tars, as of WebDataset and Lhotse, and Arrow files of `datasets`."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

from codec.system.archive import ARROW, TAR, open_bytes

CUTS = re.compile(r"cuts\.(\d+)\.jsonl(?:\.gz)?")
RECORDINGS = re.compile(r"recording\.(\d+)\.tar")
STATE, INFO = "state.json", "dataset_info.json"
LONGEST_LINE = 2**24  # bytes of a cut


def choose_archives(folder: str, names: Sequence[str]) -> tuple[set[str], dict[str, str]]:
    """Names of the archives of recordings among a folder's files, and problems by name.

    In a Shar folder (Lhotse, `CutSet.to_shar`) these are `recording.*.tar`, one for each `cuts.*.jsonl.gz`.
    In a folder of Hugging Face's `Dataset.save_to_disk` they are the Arrow files that `state.json` lists.
    """
    archives = {name for name in names if name.lower().endswith(TAR)}
    if cuts := [match for name in names if (match := CUTS.fullmatch(name))]:
        needed = {f"recording.{match[1]}.tar": match[0] for match in cuts}
        missing = {name: f"missing: {needed[name]} needs it" for name in sorted({*needed} - {*names})}
        return {name for name in names if RECORDINGS.fullmatch(name)}, missing
    try:
        files = listed_files(os.path.join(folder, STATE)) if STATE in names else set[str]()
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        return archives, {STATE: f"damaged: no list of Arrow files: {error}"} if INFO in names else {}
    missing = {name: f"missing: {STATE} lists it" for name in sorted(files - {*names})}
    return archives | files & {*names}, missing


def listed_files(state: str) -> set[str]:
    """Names of the Arrow files that a dataset's `state.json` lists."""
    with open_bytes(state) as file:
        names = (str(entry["filename"]) for entry in json.load(file)["_data_files"])
        return {name for name in names if name.endswith(ARROW)}


def missing_members(path: str, members: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the cuts of a Shar folder that its archive at `path` lacks, with their problem."""
    folder, name = os.path.split(path)
    match = RECORDINGS.fullmatch(name)
    stems = {os.path.splitext(member)[0] for member in members}
    for cuts in (f"cuts.{match[1]}.jsonl{end}" for end in ("", ".gz") if match):
        try:
            with open_bytes(os.path.join(folder, cuts)) as content:
                file = gzip.GzipFile(fileobj=content) if cuts.endswith("z") else content
                while line := file.readline(LONGEST_LINE):
                    if (key := str(json.loads(line)["id"])) not in stems:
                        yield key, f"missing in its archive: it is a cut of {cuts}"
        except FileNotFoundError:
            continue
        except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, RecursionError) as error:
            yield cuts, f"damaged: not the cuts of {name}: {error}"
