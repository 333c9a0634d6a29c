"""Shards on disk: written atomically, each with a completion note; the index is merged from all notes."""

from __future__ import annotations

import json
import platform
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from codec import __version__
from codec.system.files import remove_leftovers, written_whole
from codec.tokens import arrow as token_arrow
from codec.tokens.files import (
    INDEX_FILE,
    MANIFEST_FILE,
    META_FILE,
    TokenError,
    TokenFormat,
    Utterance,
    flush_folder,
    mirrored,
    shard_file,
)
from codec.tokens.plan import WORK, Plan

REPORT_FILE, SKIPPED_FILE = "report.txt", "skipped.jsonl"
Outcome = tuple[Utterance, np.ndarray] | str  # tokens of a source, or the reason for their absence


def note(output: Path, shard: int) -> Path:
    """Path of a shard's note: written when the shard is complete, with its rows."""
    return output / WORK / f"{shard:05d}.jsonl"


@contextmanager
def in_work(output: Path, path: Path, label: str) -> Iterator[BinaryIO]:
    """Open a durable file for `path`, written as `label-*` in the work folder until it is complete."""
    with (
        written_whole(path, durable=True, work=output / WORK, label=label) as temporary,
        temporary.open("xb") as file,
    ):
        yield file


def sweep(output: Path, shards: Sequence[int]) -> None:
    """Remove temporary files of these shards that killed processes of this machine left."""
    remove_leftovers(output / WORK, {f"{shard:05d}" for shard in shards})


def write_shard(
    output: Path,
    shard: int,
    plan: Plan,
    outcomes: Mapping[int, Outcome],
    about: Mapping[str, Any],
    device: str,
) -> None:
    """Write the tokens of a shard, then its note; `outcomes` has every source of the shard."""
    ordered = [outcomes[number] for number in plan.shards[shard]]
    encoded = [outcome for outcome in ordered if not isinstance(outcome, str)]
    save = save_arrow if about["layout"] == "arrow" else save_npy
    rows = iter(save(output, shard, encoded, about) if encoded else [])
    lines: list[dict[str, Any]] = [{"shard": shard, "device": device}]
    for number, outcome in zip(plan.shards[shard], ordered, strict=True):
        path = plan.sources[number].path
        problem = {"path": path, "problem": outcome}
        lines.append(problem if isinstance(outcome, str) else asdict(next(rows)))
    with in_work(output, note(output, shard), f"{shard:05d}") as file:
        file.write(json_lines(lines))
    flush_folder(output / WORK)


def save_arrow(
    output: Path, shard: int, done: Sequence[tuple[Utterance, np.ndarray]], about: Mapping[str, Any]
) -> Iterator[Utterance]:
    """Write one Arrow file; yields the rows with the offsets of their codes."""
    path = output / shard_file(shard)
    path.parent.mkdir(exist_ok=True)
    rows, codes = [row for row, _ in done], [one for _, one in done]
    with in_work(output, path, f"{shard:05d}") as file:
        token_arrow.write_shard(file, rows, codes, json.dumps(dict(about)).encode())
    flush_folder(path.parent)
    for row, offset in zip(rows, token_arrow.code_offsets(path), strict=True):
        yield replace(row, shard=shard, offset=int(offset))


def save_npy(
    output: Path, shard: int, done: Sequence[tuple[Utterance, np.ndarray]], about: Mapping[str, Any]
) -> Iterator[Utterance]:
    """Write one `.npy` file per utterance, in the folder structure of the recordings; yields the rows."""
    folders = set()
    for row, codes in done:
        path = output / mirrored(row.path, ".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_work(output, path, f"{shard:05d}") as file:
            np.save(file, codes, allow_pickle=False)
        folders.add(path.parent)
        yield row
    for folder in folders:
        flush_folder(folder)


def all_done(output: Path, plan: Plan) -> bool:
    """Return True if every shard has its note."""
    return all(note(output, shard).is_file() for shard in range(len(plan.shards)))


def merge(output: Path, plan: Plan, token_format: TokenFormat, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the index, the report and, as the last file, `tokens.json`; returns its content."""
    rows: list[Utterance] = []
    problems: dict[int, str] = {}  # by number: two paths may have the same portable form
    devices = set()
    for shard, sources in enumerate(plan.shards):
        first, *lines = map(json.loads, note(output, shard).read_text("ascii").splitlines())
        if len(lines) != len(sources):
            raise TokenError(f"{note(output, shard)}: damaged: remove it to encode this shard again")
        devices.add(first["device"])
        numbered = zip(sources, lines, strict=True)
        problems.update({number: line["problem"] for number, line in numbered if "problem" in line})
        rows += [Utterance(**line) for line in lines if "problem" not in line]
    if not rows:
        raise TokenError(f"nothing was encoded: {'; '.join(problems.values())[:500]}")
    index_crc32 = save_index(output, token_format.layout, rows)
    token_format = replace(token_format, items=len(rows), index_crc32=index_crc32)
    content = token_format.describe() | dict(about) | summary(rows, token_format, plan)
    content |= {"devices": sorted(devices), "versions": versions()}
    save_report(output, plan, problems)
    save(output / META_FILE, output, (json.dumps(content, indent=2) + "\n").encode())
    shutil.rmtree(output / WORK, ignore_errors=True)
    return content


def save_index(output: Path, layout: str, rows: Sequence[Utterance]) -> int:
    """Write the index of either layout; returns its CRC-32."""
    path = output / (INDEX_FILE if layout == "arrow" else MANIFEST_FILE)
    if layout == "arrow":
        with in_work(output, path, "merge") as file:
            token_arrow.write_index(file, rows)
    else:
        places = ("shard", "offset")
        lines = [{k: v for k, v in asdict(row).items() if k not in places} for row in rows]
        save(path, output, json_lines(lines))
    return zlib.crc32(path.read_bytes())


def save_report(output: Path, plan: Plan, problems: Mapping[int, str]) -> None:
    """Write the report of all files as text, and the skipped files as JSON lines."""
    files = tuple(replace(s.file, problem=problems.get(number)) for number, s in enumerate(plan.sources))
    report = replace(plan.index, files=files).report()
    save(output / REPORT_FILE, output, report.encode("utf-8", "backslashreplace"))
    lines = [{"path": plan.sources[number].path, "problem": text} for number, text in problems.items()]
    save(output / SKIPPED_FILE, output, json_lines(lines))


def save(path: Path, output: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    with in_work(output, path, "merge") as file:
        file.write(content)
    flush_folder(path.parent)


def summary(rows: Sequence[Utterance], token_format: TokenFormat, plan: Plan) -> dict[str, Any]:
    """Number of frames, hours, skipped files and shards, for `tokens.json`."""
    return {
        "frames": sum(row.n_frames for row in rows),
        "hours": round(sum(row.n_samples / row.sample_rate for row in rows) / 3600, 6),
        "skipped": len(plan.sources) - len(rows),
        "shards": len({row.shard for row in rows}) if token_format.layout == "arrow" else None,
    }


def versions() -> dict[str, str]:
    """Versions of the libraries and the machine type that computed the tokens."""
    import torch

    return {
        "codec": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def json_lines(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Encode as one JSON object per line, in ASCII."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode("ascii")
