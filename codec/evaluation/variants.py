"""Results of variants, averaged over their seeds, as a page and its tables show them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from codec.evaluation.records import Means, Summary
from codec.evaluation.runs import Comparison, EvaluationRun, compare, metrics_of
from codec.evaluation.statistics import mean

POINTS = 240  # most points of a training curve


class Variant:
    """Results of a variant: scores by metric, bitrates in kbit/s, lists over stages, the curves of trainings.

    Variants of a `family` have one color. A `reference` is a ceiling: nothing is quantized.
    """

    def __init__(self, name: str, runs: Sequence[EvaluationRun], scores: Mapping[str, Comparison]):
        evaluations = summaries(runs)
        first, points = evaluations[0], [summary.means for summary in evaluations]
        self.name = name
        self.folders = [str(run.folder) for run in runs]
        self.seeds = [run.seed for run in runs]
        self.family = first.family or name
        self.reference = bool(first.ceiling)
        self.files = first.files
        self.scores = scores
        self.nominal = mean(point["kbit/s"] for point in points)
        self.entropy = mean(point.get("kbit/s_entropy") for point in points)
        self.file = mean(point.get("kbit/s_file") for point in points)
        contexts = [summary.context for summary in evaluations if summary.context]
        self.context = mean(sum(row[-1] for row in context) / 1000 for context in contexts)
        self.sizes = first.codebook_sizes
        self.usage = stage_means([summary.codebook_usage for summary in evaluations])
        self.perplexity = stage_means([summary.codebook_perplexity for summary in evaluations])
        self.parameters = first.parameters or {}
        self.encode_ms = mean(summary.encode_ms for summary in evaluations)
        self.decode_ms = mean(summary.decode_ms for summary in evaluations)
        self.curve = curve(evaluations)
        self.training = [training_curves(run.folder / "metrics.csv") for run in runs]


def describe(
    variants: Mapping[str, Sequence[EvaluationRun]], rivals: Sequence[str] | None = None
) -> list[Variant]:
    """Results of each variant; the best is one of the `rivals`, by default all with a bitrate."""
    if rivals is None:
        rivals = [n for n, runs in variants.items() if summaries(runs)[0].means["kbit/s"] is not None]
    metrics = metrics_of([run for runs in variants.values() for run in runs])
    comparisons = {metric.name: compare(variants, metric, rivals) for metric in metrics}
    return [
        Variant(name, runs, {key: table[name] for key, table in comparisons.items() if name in table})
        for name, runs in variants.items()
    ]


def summaries(runs: Sequence[EvaluationRun]) -> list[Summary]:
    """Summaries of the evaluations."""
    return [run.summary for run in runs if run.summary]


def stage_means(lists: Sequence[Sequence[float]]) -> list[float]:
    """Mean over seeds of one number per stage; empty if the numbers of stages differ."""
    return np.mean(lists, axis=0).tolist() if len(set(map(len, lists))) == 1 and lists[0] else []


def curve(evaluations: Sequence[Summary]) -> list[Means]:
    """Rate–distortion points, averaged over seeds, with the values that all seeds have."""
    return [
        {
            key: mean(values)
            for key in sorted(points[0])
            if None not in (values := [p.get(key) for p in points])
        }
        for points in zip(*(summary.rate_distortion for summary in evaluations), strict=False)
    ]


def training_curves(path: Path) -> dict[str, list[list[float]]]:
    """Thinned `[step, value]` points of losses and validation scores in metrics.csv, without damaged rows."""
    if not path.is_file():
        return {}
    curves: dict[str, list[list[float]]] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                is_curve = name and name.startswith(("train/", "valid/")) and value
                if is_curve and not name.endswith(("learning_rate", "skipped")):
                    with suppress(KeyError, TypeError, ValueError):  # row truncated by a kill
                        point = [float(row["step"]), float(value)]
                        curves.setdefault(name, []).append(point)
    return {name: thinned(points) for name, points in sorted(curves.items())}


def thinned(points: Sequence[list[float]]) -> list[list[float]]:
    """Subsample points evenly, including the last."""
    return [*points[: -1 : max(1, len(points) // POINTS)], points[-1]]
