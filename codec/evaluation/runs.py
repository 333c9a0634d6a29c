"""Scores of finished runs: read from folders, grouped by variant, compared by significance tests."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codec.config import ConfigError
from codec.evaluation.records import Summary
from codec.evaluation.statistics import holm, interval, paired_p_value, pooled_p_value
from codec.metrics.base import Metric
from codec.metrics.registry import described
from codec.model.untrusted import read_yaml
from codec.system.files import printable

RESULT = "result.json"
LONGEST_LABEL = 80  # characters
# Options that may differ between runs of one variant.
INCIDENTAL = {"seed", "name", "run_dir", "resume", "logger", "num_workers", "cache_dir", "trust"}
INCIDENTAL |= {"save_every", "keep_every", "sweep", "search", "metrics"}


@dataclass
class EvaluationRun:
    """Run folder: its config, and the evaluation's scores by file (`scores[metric][file]`) or its error."""

    folder: Path
    config: dict[str, Any]
    label: str
    summary: Summary | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str | None = None

    @property
    def seed(self) -> Any:
        """Seed of the run; None without a config."""
        return self.config.get("seed")


@dataclass(frozen=True)
class Comparison:
    """Mean score of a variant with its interval, spread over seeds, and Holm-corrected p against the best."""

    mean: float
    low: float
    high: float
    spread: float | None
    best: bool
    p: float | None


def find_runs(folders: Sequence[Path], evaluation: str = "evaluation") -> list[EvaluationRun]:
    """Find all runs in and below some folders; ConfigError if a folder is missing or none holds a run."""
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder")
    places = {place.resolve(): place for folder in folders for place in run_folders(folder)}
    if not places:
        names = ", ".join(map(str, folders))
        raise ConfigError(f"{names}: no run of codec-train in there (a folder with config.yaml)")
    return [read_run(place, evaluation) for place in places.values()]


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folder if it is a run, otherwise the runs in its sub-folders."""
    if (folder / "config.yaml").is_file() or (folder / RESULT).is_file():
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            yield from run_folders(child)


def read_run(folder: Path, evaluation: str) -> EvaluationRun:
    """Read one run; damaged and unfinished runs get an `error`."""
    run = EvaluationRun(folder, {}, folder.name)
    try:
        if (folder / "config.yaml").is_file():
            run.config = as_mapping(read_yaml(folder / "config.yaml"), "config.yaml")
        result = read_json(folder / RESULT) if (folder / RESULT).is_file() else {}
        run.label = label_of(result.get("swept") or {}) or folder.name
        if result.get("status") == "failed":
            run.error = str(result.get("error"))
        elif not run.config:
            run.error = "damaged: there is no config.yaml"
        elif not (folder / evaluation / "summary.json").is_file():
            run.error = f"not finished, or not evaluated: there is no {evaluation}/summary.json"
        else:
            entries = read_json(folder / evaluation / "summary.json")
            run.scores = read_scores(folder / evaluation / "files.csv")
            run.summary = Summary.from_json(entries, run.scores)
    except (OSError, ValueError, KeyError) as error:
        run.error = f"damaged: {error}"
    return run


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError with the file's name if it is invalid."""
    try:
        return as_mapping(json.loads(path.read_text(encoding="utf-8")), path.name)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def as_mapping(value: Any, name: str) -> dict[str, Any]:
    """Return the value; ValueError unless it is a mapping."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds no options")
    return value


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Read files.csv as `scores[metric][file]`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "file" not in rows[0]:
        raise ValueError(f"{path.name} holds no scores")
    metrics = [name for name in rows[0] if name != "file"]
    try:
        return {
            metric: {row["file"]: float(row[metric]) for row in rows if row[metric] != ""}
            for metric in metrics
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def label_of(swept: Mapping[str, Any]) -> str:
    """Short name of a variant from its swept options: choices of groups by value, others as `key=value`."""
    label = ", ".join(
        str(value) if "." not in key and key.lstrip("+").isalpha() else f"{key.rpartition('.')[2]}={value}"
        for key, value in sorted(swept.items())
        if key != "seed"
    )
    return printable(label if len(label) <= LONGEST_LABEL else f"{label[:LONGEST_LABEL]}…")


def group(runs: Sequence[EvaluationRun]) -> dict[str, list[EvaluationRun]]:
    """Group runs with scores by variant; configs of one variant differ only in seed and other incidentals.

    A run with the config and seed of another gets an `error` and is omitted.
    """
    variants: dict[str, list[EvaluationRun]] = {}
    for run in runs:
        if run.summary:
            members = variants.setdefault(json.dumps(essence(run.config), sort_keys=True), [])
            twin = next((other for other in members if other.seed == run.seed), None)
            if twin:
                run.error = f"the same config and seed as {twin.folder}: left out"
            else:
                members.append(run)
    groups: dict[str, list[EvaluationRun]] = {}
    for members in variants.values():
        label = members[0].label
        ambiguous = label in groups or sum(label == other[0].label for other in variants.values()) > 1
        groups[f"{label} ({members[0].folder.name})" if ambiguous else label] = members
    return groups


def essence(node: Any) -> Any:
    """Remove the incidental options, which do not change the result, from a config."""
    if isinstance(node, Mapping):
        return {key: essence(value) for key, value in node.items() if key not in INCIDENTAL}
    return [essence(value) for value in node] if isinstance(node, list) else node


def mean_over_seeds(runs: Sequence[EvaluationRun], metric: str) -> dict[str, float]:
    """Score of each file, averaged over runs, for files common to all runs."""
    tables = [table for run in runs if (table := run.scores.get(metric))]
    files = set.intersection(*map(set, tables)) if tables else set()
    return {name: float(np.mean([table[name] for table in tables])) for name in sorted(files)}


def metrics_of(runs: Sequence[EvaluationRun]) -> list[Metric]:
    """All metrics of the runs' scores, in the order of tables."""
    names = {name for run in runs for name in run.scores}
    return described(names, [vars(run.summary) for run in runs if run.summary])


def compare(
    variants: Mapping[str, Sequence[EvaluationRun]], metric: Metric, rivals: Sequence[str]
) -> dict[str, Comparison]:
    """Compare the variants that have finite scores.

    The uncorrected p is the larger one of the test over files and, if any variant has several seeds, of the
    test over seeds. Only `rivals` can be best; p is None for the best, for variants that are no rivals, and
    without common files.
    """
    tables = {name: mean_over_seeds(runs, metric.name) for name, runs in variants.items()}
    tables = {
        name: table for name, table in tables.items() if table and all(map(math.isfinite, table.values()))
    }
    seeds = {
        name: [
            float(np.mean([scores[file] for file in table]))
            for run in variants[name]
            if (scores := run.scores.get(metric.name))
        ]
        for name, table in tables.items()
    }
    means = {name: float(np.mean(list(table.values()))) for name, table in tables.items()}
    sign = 1 if metric.lower else -1
    best = min((name for name in rivals if name in means), key=lambda name: sign * means[name], default=None)
    p_values = {}
    for name in rivals:
        if best is None or name == best or name not in tables:
            continue
        common = sorted(tables[name].keys() & tables[best].keys())
        if len(common) > 1:
            rival_scores, best_scores = ([tables[n][file] for file in common] for n in (name, best))
            over_seeds = pooled_p_value(seeds[name], seeds[best], list(seeds.values()))
            # The larger p covers files and seeds; fmax ignores NaN, the p over seeds if all have one.
            p_values[name] = float(np.fmax(paired_p_value(rival_scores, best_scores), over_seeds))
    corrected = holm(p_values)
    spreads = {name: float(np.std(sample, ddof=1)) for name, sample in seeds.items() if len(sample) > 1}
    return {
        name: Comparison(
            means[name],
            *interval(list(table.values())),
            spread=spreads.get(name),
            best=name == best,
            p=corrected.get(name),
        )
        for name, table in tables.items()
    }
