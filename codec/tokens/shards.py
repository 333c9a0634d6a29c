"""Shards on disk: written atomically, each with a completion note; the index is merged from all notes."""

from __future__ import annotations

import json
import platform
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from codec.tokens.formats import LatentFormat, Statistics
from codec.tokens.plan import Plan

REPORT_FILE, SKIPPED_FILE, WORK = "report.txt", "skipped.jsonl", ".encoding"
Encoded = tuple[Utterance, np.ndarray]  # index row and tokens of a source
Outcome = Encoded | str  # or the reason for their absence


@dataclass(frozen=True)
class Shards:
    """Shards of a dataset in `output`; `about` are the identifying entries of `tokens.json`."""

    output: Path
    plan: Plan
    format: TokenFormat
    about: Mapping[str, Any]

    @property
    def is_merged(self) -> bool:
        """True if the dataset is complete, and its notes removed."""
        return (self.output / META_FILE).is_file()

    def note(self, shard: int) -> Path:
        """Path of a shard's note: written when the shard is complete, with its rows."""
        return self.output / WORK / f"{shard:05d}.jsonl"

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Shards without their notes."""
        return [shard for shard in shards if not self.note(shard).is_file()]

    def sweep(self, shards: Iterable[int]) -> None:
        """Remove temporary files of these shards that killed processes of this machine left."""
        remove_leftovers(self.output / WORK, {f"{shard:05d}" for shard in shards})

    @contextmanager
    def opened(self, path: Path, label: str) -> Iterator[BinaryIO]:
        """Open a durable file for `path`, written as `label-*` in the work folder until it is complete."""
        with (
            written_whole(path, durable=True, work=self.output / WORK, label=label) as temporary,
            temporary.open("xb") as file,
        ):
            yield file

    def save(self, path: Path, content: bytes, label: str = "merge") -> None:
        """Write a file atomically and durably."""
        with self.opened(path, label) as file:
            file.write(content)
        flush_folder(path.parent)

    def write(self, shard: int, outcomes: Mapping[int, Outcome], device: str) -> None:
        """Write the tokens of a shard, then its note; `outcomes` has every source of the shard."""
        ordered = [outcomes[number] for number in self.plan.shards[shard]]
        encoded = [outcome for outcome in ordered if not isinstance(outcome, str)]
        save = self.save_arrow if self.format.layout == "arrow" else self.save_npy
        rows = iter(save(shard, encoded) if encoded else [])
        lines: list[dict[str, Any]] = [{"shard": shard, "device": device}]
        if isinstance(self.format, LatentFormat):
            parts = [Statistics.of(latents) for _, latents in encoded]
            lines[0]["statistics"] = Statistics.merged(parts).stored() if parts else None
        for number, outcome in zip(self.plan.shards[shard], ordered, strict=True):
            problem = {"path": self.plan.sources[number].path, "problem": outcome}
            lines.append(problem if isinstance(outcome, str) else asdict(next(rows)))
        self.save(self.note(shard), json_lines(lines), f"{shard:05d}")

    def save_arrow(self, shard: int, done: Sequence[Encoded]) -> Iterator[Utterance]:
        """Write one Arrow file; yields the rows with the offsets of their codes."""
        path = self.output / shard_file(shard)
        path.parent.mkdir(exist_ok=True)
        rows, codes = [row for row, _ in done], [one for _, one in done]
        with self.opened(path, f"{shard:05d}") as file:
            token_arrow.write_shard(
                file, rows, codes, json.dumps(dict(self.about)).encode(), self.format.column
            )
        flush_folder(path.parent)
        for row, offset in zip(rows, token_arrow.code_offsets(path, self.format.column), strict=True):
            yield replace(row, shard=shard, offset=int(offset))

    def save_npy(self, shard: int, done: Sequence[Encoded]) -> Iterator[Utterance]:
        """Write one `.npy` file per utterance, in the folders of the recordings; yields the rows."""
        folders = set()
        for row, codes in done:
            path = self.output / mirrored(row.path, ".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.opened(path, f"{shard:05d}") as file:
                np.save(file, codes, allow_pickle=False)
            folders.add(path.parent)
            yield row
        for folder in folders:
            flush_folder(folder)

    def merge(self) -> dict[str, Any]:
        """Write the index, the report and, as the last file, `tokens.json`; returns its content."""
        rows: list[Utterance] = []
        problems: dict[int, str] = {}  # by number: two paths may have the same portable form
        devices, statistics = set(), []
        for shard, sources in enumerate(self.plan.shards):
            first, *lines = map(json.loads, self.note(shard).read_text("ascii").splitlines())
            if len(lines) != len(sources):
                raise TokenError(f"{self.note(shard)}: damaged: remove it to encode this shard again")
            devices.add(first["device"])
            if first.get("statistics"):
                statistics.append(Statistics.restored(first["statistics"]))
            numbered = zip(sources, lines, strict=True)
            problems.update({number: line["problem"] for number, line in numbered if "problem" in line})
            rows += [Utterance(**line) for line in lines if "problem" not in line]
        if not rows:
            raise TokenError(f"nothing was encoded: {'; '.join(problems.values())[:500]}")
        final_format = replace(self.format, items=len(rows), index_crc32=self.save_index(rows))
        content = final_format.describe() | dict(self.about) | summary(rows, final_format, self.plan)
        content |= {"devices": sorted(devices), "versions": versions()}
        if statistics:
            content["statistics"] = Statistics.merged(statistics).describe()
        self.save_report(problems)
        self.save(self.output / META_FILE, (json.dumps(content, indent=2) + "\n").encode())
        shutil.rmtree(self.output / WORK, ignore_errors=True)
        return content

    def save_index(self, rows: Sequence[Utterance]) -> int:
        """Write the index of either layout; returns its CRC-32."""
        arrow = self.format.layout == "arrow"
        path = self.output / (INDEX_FILE if arrow else MANIFEST_FILE)
        if arrow:
            with self.opened(path, "merge") as file:
                token_arrow.write_index(file, rows)
        else:
            places = ("shard", "offset")
            lines = [{k: v for k, v in asdict(row).items() if k not in places} for row in rows]
            self.save(path, json_lines(lines))
        return zlib.crc32(path.read_bytes())

    def save_report(self, problems: Mapping[int, str]) -> None:
        """Write the report of all files as text, and the skipped files as JSON lines."""
        sources = self.plan.sources
        files = tuple(replace(s.file, problem=problems.get(number)) for number, s in enumerate(sources))
        report = replace(self.plan.index, files=files).report()
        self.save(self.output / REPORT_FILE, report.encode("utf-8", "backslashreplace"))
        lines = [{"path": sources[number].path, "problem": text} for number, text in problems.items()]
        self.save(self.output / SKIPPED_FILE, json_lines(lines))


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
