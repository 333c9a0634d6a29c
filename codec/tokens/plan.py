"""Encoding plan: assignment of sources to shards and batches, a pure function of files and options."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codec.audio.conversion import resampled_length
from codec.config import ConfigError
from codec.data.index import Index, IndexedFile, named
from codec.data.roots import is_archive, is_source
from codec.data.scan import scan, scan_files
from codec.system.address import is_file


@dataclass(frozen=True)
class Source:
    """Recording to encode: its index entry, its id and path in the dataset, and its problem, if any."""

    file: IndexedFile
    id: str
    path: str
    problem: str | None

    @property
    def seconds(self) -> float:
        """Duration in seconds; 0 for an unusable file."""
        return 0.0 if self.problem else self.file.seconds


@dataclass(frozen=True)
class Plan:
    """All sources, ordered by path, and the ranges of sources of each shard."""

    root: str
    index: Index
    sources: tuple[Source, ...]
    shards: tuple[range, ...]
    sha256: str

    def seconds(self, shard: int) -> float:
        """Duration of one shard in seconds."""
        return sum(self.sources[number].seconds for number in self.shards[shard])


def make_plan(
    inputs: Sequence[str | Path], sample_rate: int, shard_hours: float, progress: bool = True
) -> Plan:
    """Plan for a folder or for files; only headers are read. DataError if no file is usable."""
    if len(inputs) == 1 and not is_file(str(inputs[0])):
        index = scan(inputs[0], check_content=False, progress=progress, require_usable=False)
    elif others := [path for path in map(str, inputs) if len(inputs) > 1 and not is_recording(path)]:
        raise ConfigError(
            f"expected one folder, or any number of files: {others[0]} is no recording or archive; encode it "
            "alone, or name the files of all in one list"
        )
    else:
        index = scan_files(inputs)
    rows = {(f.path, f.span, f.problem): f for f in index.require_usable().files}  # of any weight
    files = [*rows.values()]
    described = [[f.path, f.size, *f.info, f.problem is None, *(f.span or ())] for f in files]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    sources = tuple(name_sources(files, sample_rate))
    return Plan(index.root, index, sources, tuple(cut(sources, shard_hours * 3600)), digest)


def is_recording(path: str) -> bool:
    """True for a file that is neither a list nor a compressed archive."""
    return is_file(path) and (is_archive(path) or not is_source(path))


def name_sources(files: Sequence[IndexedFile], sample_rate: int) -> Iterator[Source]:
    """Yield a source per recording, with a path in UTF-8 and an id: the path without extension, if unique.

    The id of a part of a file has the file's path and the frames, as `a.wav:8000-16000`. Its path, which
    names files, has `%3A` for that colon.
    """
    paths = [portable(file.path) for file in files]
    stems = Counter(os.path.splitext(path)[0] for path in set(paths))
    every, taken_names = set(paths), set[str]()
    for file, path in zip(files, paths, strict=True):
        stem, problem = os.path.splitext(path)[0], file.problem
        id = stem if stems[stem] == 1 and stem not in every else path
        if file.span:
            id, path = named(path, file.span), "{}%3A{}-{}".format(path, *file.span)
        if problem is None and not resampled_length(file.length, file.sample_rate, sample_rate):
            problem = f"too short: no whole sample at {sample_rate} Hz"
        if problem is None and taken_names & {id, path}:
            problem = f"its name in the dataset, {path}, is that of another recording: rename it"
        if problem is None:
            taken_names |= {id, path}
        yield Source(file, id, path, problem)


def portable(path: str) -> str:
    """Portable form of a relative path: bytes that are not UTF-8 are escaped, as `%E9`.

    So are a backslash, and a colon after the first letter, which on Windows could lead out of the folder.
    """
    if path[1:2] == ":":
        path = f"{path[0]}%3A{path[2:]}"
    path = path.replace("\\", "%5C")
    return "".join(f"%{ord(c) & 0xFF:02X}" if "\ud800" <= c <= "\udfff" else c for c in path)


def cut(sources: Sequence[Source], most_seconds: float) -> Iterator[range]:
    """Split sources into successive shards of at most `most_seconds`, or of one longer source."""
    begin, seconds = 0, 0.0
    for number, source in enumerate(sources):
        if seconds and seconds + source.seconds > most_seconds:
            yield range(begin, number)
            begin, seconds = number, 0.0
        seconds += source.seconds
    yield range(begin, len(sources))


def batches(plan: Plan, shard: int, batch_seconds: float) -> Iterator[tuple[int, ...]]:
    """Split a shard into batches of similar length, with at most `batch_seconds` including padding.

    Longer files, and files with a problem, are batches of their own.
    """
    ranked = sorted(plan.shards[shard], key=lambda number: (plan.sources[number].seconds, number))
    group: list[int] = []
    for number in ranked:
        seconds = plan.sources[number].seconds  # the longest so far
        alone = plan.sources[number].problem is not None or seconds > batch_seconds
        if group and (alone or (len(group) + 1) * seconds > batch_seconds):
            yield tuple(group)
            group = []
        if alone:
            yield (number,)
        else:
            group.append(number)
    if group:
        yield tuple(group)


def shard_of_jobs(
    num_shards: int | None, shard_id: int | None, environment: Mapping[str, str]
) -> tuple[int, int]:
    """Number of jobs and this job's index, from the arguments or else torchrun, `srun` and Slurm arrays.

    Each process of each array task is a job; torchrun, or else `srun`, counts the processes of all nodes.
    ConfigError for impossible numbers.
    """
    if (num_shards is None) != (shard_id is None):
        raise ConfigError("--num-shards and --shard-id go together")
    if num_shards is None or shard_id is None:
        num_shards, shard_id, names = 1, 0, []
        if "SLURM_ARRAY_TASK_ID" in environment:
            names.append("SLURM_ARRAY_TASK_ID")
            task, first, step = (
                int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
                for name, default in (("ID", "0"), ("MIN", "0"), ("STEP", "1"))
            )
            num_shards, shard_id = int(environment.get("SLURM_ARRAY_TASK_COUNT", 0)), (task - first) // step
            if (task - first) % step or not 0 <= shard_id < num_shards:
                raise ConfigError(
                    "this Slurm array's numbers have gaps: give --num-shards and --shard-id yourself"
                )
        # Not SLURM_NTASKS: that is set in a batch script, too, which runs once.
        for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
            if rank in environment and world in environment:
                names.append(rank)
                processes = int(environment[world])
                num_shards, shard_id = num_shards * processes, shard_id * processes + int(environment[rank])
                break
        if names:
            print(f"job {shard_id} of {num_shards}, as {' and '.join(names)} say{'s' * (len(names) < 2)}")
    if not 0 <= shard_id < num_shards:
        raise ConfigError(f"--shard-id must be 0 to {num_shards - 1}, as --num-shards says, got {shard_id}")
    return num_shards, shard_id
