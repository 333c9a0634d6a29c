"""Bits per second of evaluated codes under context, stage by stage, for the tables of a comparison."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from codec.config import ConfigError
from codec.evaluation.records import FileScores, Summary
from codec.evaluation.runs import EvaluationRun, read_json
from codec.evaluation.systems import System
from codec.evaluation.tables import Table
from codec.evaluation.token_model import measure
from codec.evaluation.writing import write_summary
from codec.system.files import write_whole


def add_context(
    system: System, run: EvaluationRun, names: Iterable[str], minutes: float, device: str, fresh: bool = False
) -> None:
    """Train a `TokenModel` on the codes of the named files for some minutes; adds its rates to the summary.

    Cached in `token_model.json` until the codes or the minutes change, or `fresh`. Prints the reason if no
    model can be trained.
    """
    assert run.summary
    path, codes = run.folder / "token_model.json", read_codes(run.folder / "records.jsonl", names)
    identity = {"minutes": minutes, "crc32": zlib.crc32(b"".join(one.numpy().tobytes() for one in codes))}
    cache = read_json(path) if path.is_file() and not fresh else {}
    if cache | identity != cache:
        try:
            rows, steps = measure(codes, system.codebook_sizes, minutes, device, system.name)
        except ConfigError as error:
            print(f"{system.name}: no token model: {error}")
            return
        cache = identity | {"steps": steps, "bits_per_frame": rows}
        write_whole(path, json.dumps(cache, indent=2) + "\n")
    rate = run.summary.frame_rate or 0
    rates = [[round(rate * bits, 2) for bits in row] for row in cache["bits_per_frame"]]
    run.summary = replace(run.summary, context=rates, context_steps=cache["steps"])
    write_summary(run.folder, run.summary)


def read_codes(path: Path, names: Iterable[str]) -> list[Tensor]:
    """Codes int64 `[K, F]` of the named files that have any, from the records of an evaluation."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    records = {record.file: record for record in map(FileScores.from_json, map(json.loads, lines))}
    return [torch.tensor(records[name].codes) for name in names if name in records and records[name].codes]


def context_table(summaries: Mapping[str, Summary]) -> Table:
    """Bits per second of each stage: nominal, by frequencies of the codes, and under a language model."""
    rows = []
    for name, summary in summaries.items():
        if summary.context:
            steps = summary.context_steps
            rows += [[f"{name}: {n}", *row, steps] for n, row in enumerate(summary.context, start=1)]
            sums = [round(sum(column), 2) for column in zip(*summary.context, strict=True)]
            rows.append([f"{name}: all", *sums, steps])
    note = (
        "A Transformer of 128 channels predicts each code from the frames before it and the stages below it; "
        "measured on a tenth of the files, which it was not trained on. More steps give fewer bits."
    )
    head = ["codec: stage", "nominal bit/s", "frequencies of the codes", "language model", "training steps"]
    return Table("context", "Bits under context", note, head, rows)
