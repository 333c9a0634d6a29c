"""Comparison of finished runs as one self-contained HTML page, a CSV and a Markdown table."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from codec.config import ConfigError
from codec.evaluation.clips import common_stems, embed_clips
from codec.evaluation.page import Page, Variant, origin_of_page
from codec.evaluation.records import Means, Summary
from codec.evaluation.runs import EvaluationRun, compare, find_runs, group, metrics_of
from codec.evaluation.statistics import SIGNIFICANT, least_p, mean, smallest_p

POINTS = 240  # most points of a training curve


def report(
    folders: Sequence[Path],
    output: Path,
    *,
    clips: int = 3,
    seconds: float = 5.0,
    evaluation: str = "evaluation",
    command: str = "",
) -> str:
    """Write `index.html`, `table.csv` and `table.md`; returns a summary of the comparison as text.

    The page contains the `command` and `clips` embedded clips of at most `seconds`. ConfigError if no run in
    the folders has been evaluated.
    """
    if clips < 0 or not seconds > 0:
        raise ConfigError(f"--clips must be 0 or more and --seconds above 0, got {clips} and {seconds:g}")
    runs = find_runs(folders, evaluation)
    variants = group(runs)
    failed = {str(run.folder): run.error for run in runs if run.error}
    if not variants:
        reasons = "\n".join(f"{name}: {error}" for name, error in failed.items())
        raise ConfigError(f"nothing to compare, no run is finished:\n{reasons}")
    places = {name: members[0].folder / evaluation for name, members in variants.items()}
    descriptions, stems = describe(variants), common_stems(places)[:clips]
    Page(
        title=title_of([folder.resolve() for folder in folders]),
        what="runs",
        metrics=metrics_of(runs),
        variants=descriptions,
        failed=failed,
        clips=embed_clips(places, {stem: stem for stem in stems}, seconds),
        notes=notes(variants, descriptions),
        made=origin_of_page(command, "runs", folders),
    ).write(output)
    number = sum(map(len, variants.values()))
    numbers_of_runs = f"{counted(number, 'run')} of {counted(len(variants), 'variant')}"
    return f"{numbers_of_runs}, {len(failed)} without result: {output / 'index.html'}"


def counted(number: int, what: str) -> str:
    """Format a number with its noun, as `1 run` or `2 runs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def title_of(folders: Sequence[Path]) -> str:
    """Names of the folders; for more than three, their number and common parent."""
    if len(folders) <= 3:
        return ", ".join(folder.name for folder in folders)
    return f"{len(folders)} folders of {Path(os.path.commonpath(folders)).name or os.sep}"


def describe(
    variants: Mapping[str, Sequence[EvaluationRun]], rivals: Sequence[str] | None = None
) -> list[Variant]:
    """Results of each variant, averaged over its seeds.

    The best is one of the `rivals`, by default all with a bitrate.
    """
    coded = [name for name, runs in variants.items() if summaries(runs)[0].means["kbit/s"] is not None]
    rivals = coded if rivals is None else rivals
    metrics = metrics_of([run for runs in variants.values() for run in runs])
    comparisons = {metric.name: compare(variants, metric, rivals) for metric in metrics}
    described = []
    for name, runs in variants.items():
        evaluations = summaries(runs)
        first, points = evaluations[0], [summary.means for summary in evaluations]
        variant = Variant(
            name=name,
            folders=[str(run.folder) for run in runs],
            seeds=[run.seed for run in runs],
            family=first.family or name,
            reference=name not in coded,
            files=first.files,
            scores={key: table[name] for key, table in comparisons.items() if name in table},
            nominal=mean(point["kbit/s"] for point in points),
            entropy=mean(point.get("kbit/s_entropy") for point in points),
            file=mean(point.get("kbit/s_file") for point in points),
            sizes=first.codebook_sizes,
            usage=stage_means([summary.codebook_usage for summary in evaluations]),
            perplexity=stage_means([summary.codebook_perplexity for summary in evaluations]),
            parameters=first.parameters or {},
            encode_ms=mean(summary.encode_ms for summary in evaluations),
            decode_ms=mean(summary.decode_ms for summary in evaluations),
            curve=curve(evaluations),
            training=[training_curves(run.folder / "metrics.csv") for run in runs],
        )
        described.append(variant)
    return described


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


def notes(
    variants: Mapping[str, Sequence[EvaluationRun]], described: Sequence[Variant], seeds: bool = True
) -> list[str]:
    """Notes about the scores, as sentences; with `seeds`, also about the variation over seeds."""
    all_summaries = [summary for runs in variants.values() for summary in summaries(runs)]
    sentences = []
    files = {frozenset(table) for runs in variants.values() for run in runs for table in run.scores.values()}
    if len(files) > 1:
        sentences.append(
            "The runs were not scored on the same files: scores are comparable only where files are shared."
        )
    if seeds and min(map(len, variants.values())) == 1:
        sentences.append(
            "Some variants have one seed. The intervals are over files and do not know how much another seed "
            "would change: train close pairs with three seeds or more before you believe their order."
        )
    sentences += few_files(described)
    frames = [s.frames / max(s.codebook_sizes) for s in all_summaries if s.frames and s.codebook_sizes]
    if frames and min(frames) < 16:
        sentences.append(
            f"There are few frames per code ({min(frames):.1f} in the worst run), so entropy, usage and "
            "perplexity come out too low: evaluate more files."
        )
    machines = sorted({s.timed_on for s in all_summaries if s.timed_on})
    if machines:
        sentences.append(
            f"Coding times are of {'; '.join(machines)}, at the end of each run, whatever else ran there."
        )
    return sentences


def few_files(described: Sequence[Variant]) -> list[str]:
    """Note for comparisons with too few files for a significant difference; otherwise empty."""
    tested: dict[str, int] = {}
    for variant in described:
        for key, score in variant.scores.items():
            tested[key] = tested.get(key, 0) + (score.p is not None)
    comparisons, files = max(tested.values(), default=0), max(variant.files for variant in described)
    if not comparisons or least_p(files, comparisons) < SIGNIFICANT:
        return []
    return [f"≈ means nothing here. {smallest_p(files, comparisons)}"]
