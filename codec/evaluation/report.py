"""Comparison of finished runs as one self-contained HTML page, a CSV and a Markdown table."""

from __future__ import annotations

import csv
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from codec import __version__
from codec.config import PACKAGE, ConfigError
from codec.evaluation.clips import common_stems, embed_clips
from codec.evaluation.runs import Run, compare, find_runs, group, metrics_of
from codec.evaluation.statistics import SIGNIFICANT, least_p, smallest_p
from codec.evaluation.tables import to_csv, to_markdown
from codec.system.address import absolute
from codec.system.files import printable, write_whole

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
    failures = [{"name": str(run.folder), "error": run.error} for run in runs if run.error]
    if not variants:
        reasons = "\n".join(f"{run['name']}: {run['error']}" for run in failures)
        raise ConfigError(f"nothing to compare, no run is finished:\n{reasons}")
    places = {name: members[0].folder / evaluation for name, members in variants.items()}
    descriptions, stems = describe(variants), common_stems(places)[:clips]
    data = {
        "title": title_of([folder.resolve() for folder in folders]),
        "what": "runs",
        "metrics": [{"key": metric.name, **metric.stated()} for metric in metrics_of(runs)],
        "variants": descriptions,
        "failed": failures,
        "clips": embed_clips(places, {stem: stem for stem in stems}, seconds),
        "notes": notes(variants, descriptions),
        "made": origin_of_page(command, "runs", folders),
    }
    write_page(data, output)
    number = sum(map(len, variants.values()))
    numbers_of_runs = f"{counted(number, 'run')} of {counted(len(variants), 'variant')}"
    return f"{numbers_of_runs}, {len(failures)} without result: {output / 'index.html'}"


def counted(number: int, what: str) -> str:
    """Format a number with its noun, as `1 run` or `2 runs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def origin_of_page(command: str, what: str, folders: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Origin of a page, as pairs of name and value: command, version, date, folders."""
    lines = [("command", printable(command))] if command else []
    return [
        *lines,
        ("version", f"neural-audio-codec {__version__}"),
        ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        (what, ", ".join(printable(absolute(folder)) for folder in folders)),
    ]


def title_of(folders: Sequence[Path]) -> str:
    """Names of the folders; for more than three, their number and common parent."""
    if len(folders) <= 3:
        return ", ".join(folder.name for folder in folders)
    return f"{len(folders)} folders of {Path(os.path.commonpath(folders)).name or os.sep}"


def write_page(data: Mapping[str, Any], output: Path) -> None:
    """Write the three files of a comparison."""
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "table.csv", to_csv(data))
    write_whole(output / "table.md", to_markdown(data))
    write_whole(output / "index.html", to_html(data))


def describe(
    variants: Mapping[str, Sequence[Run]], rivals: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Data of each variant for the page, averaged over its seeds.

    The best is one of the `rivals`, by default all with a bitrate.
    """
    coded = [name for name, runs in variants.items() if summaries(runs)[0]["kbit/s"] is not None]
    rivals = coded if rivals is None else rivals
    metrics = metrics_of([run for runs in variants.values() for run in runs])
    comparisons = {metric.name: compare(variants, metric, rivals) for metric in metrics}
    return [
        {
            "name": name,
            "folders": [str(run.folder) for run in runs],
            "seeds": [run.seed for run in runs],
            "family": summaries(runs)[0].get("family", name),
            "reference": name not in coded,
            "files": summaries(runs)[0]["files"],
            "scores": {key: table[name] for key, table in comparisons.items() if name in table},
            "nominal": mean(runs, "kbit/s"),
            "entropy": mean(runs, "kbit/s_entropy"),
            "file": mean(runs, "kbit/s_file"),
            "sizes": summaries(runs)[0].get("codebook_sizes", []),
            "usage": stage_means(runs, "codebook_usage"),
            "perplexity": stage_means(runs, "codebook_perplexity"),
            "parameters": summaries(runs)[0].get("parameters", {}),
            "encode_ms": mean(runs, "encode_ms"),
            "decode_ms": mean(runs, "decode_ms"),
            "curve": curve(runs),
            "training": [training_curves(run.folder / "metrics.csv") for run in runs],
        }
        for name, runs in variants.items()
    ]


def summaries(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Summaries of the evaluations."""
    return [run.summary for run in runs if run.summary]


def mean(runs: Sequence[Run], key: str) -> float | None:
    """Mean of an entry of the summaries; None if one lacks it."""
    values = [summary.get(key) for summary in summaries(runs)]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return float(np.mean(numbers)) if len(numbers) == len(values) else None


def stage_means(runs: Sequence[Run], key: str) -> list[float]:
    """Mean over seeds of an entry with one number per stage."""
    lists = [summary.get(key, []) for summary in summaries(runs)]
    return np.mean(lists, axis=0).tolist() if len(set(map(len, lists))) == 1 and lists[0] else []


def curve(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rate–distortion points, averaged over seeds."""
    curves = [summary["rate_distortion"] for summary in summaries(runs)]
    averaged = []
    for points in zip(*curves, strict=False):
        keys = [{key for key, value in p.items() if isinstance(value, int | float)} for p in points]
        shared = sorted(set.intersection(*keys))
        averaged.append({key: float(np.mean([point[key] for point in points])) for key in shared})
    return averaged


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
    variants: Mapping[str, Sequence[Run]], described: Sequence[Mapping[str, Any]], seeds: bool = True
) -> list[str]:
    """Notes about the scores, as sentences; with `seeds`, also about the variation over seeds."""
    all_summaries = [summary for runs in variants.values() for summary in summaries(runs)]
    sentences = []
    files = [
        frozenset(table)
        for runs in variants.values()
        for run in runs
        for table in (run.scores or {}).values()
    ]
    if len(set(files)) > 1:
        sentences.append(
            "The runs were not scored on the same files: scores are comparable only where files are shared."
        )
    if seeds and min(map(len, variants.values())) == 1:
        sentences.append(
            "Some variants have one seed. The intervals are over files and do not know how much another seed "
            "would change: train close pairs with three seeds or more before you believe their order."
        )
    sentences += few_files(described)
    frames = [
        s["frames"] / max(s["codebook_sizes"])
        for s in all_summaries
        if s.get("frames") and s.get("codebook_sizes")
    ]
    if frames and min(frames) < 16:
        sentences.append(
            f"There are few frames per code ({min(frames):.1f} in the worst run), so entropy, usage and "
            "perplexity come out too low: evaluate more files."
        )
    machines = sorted({s["timed_on"] for s in all_summaries if s.get("timed_on")})
    if machines:
        sentences.append(
            f"Coding times are of {'; '.join(machines)}, at the end of each run, whatever else ran there."
        )
    return sentences


def few_files(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """Note for comparisons with too few files for a significant difference; otherwise empty."""
    tested: dict[str, int] = {}
    for variant in described:
        for key, score in variant["scores"].items():
            tested[key] = tested.get(key, 0) + (score["p"] is not None)
    comparisons, files = max(tested.values(), default=0), max(variant["files"] for variant in described)
    if not comparisons or least_p(files, comparisons) < SIGNIFICANT:
        return []
    return [f"≈ means nothing here. {smallest_p(files, comparisons)}"]


def to_html(data: Mapping[str, Any], name: str = "report.html") -> str:
    """Insert the style and the data into the template of a page."""
    template, style = (
        (PACKAGE / "evaluation" / file).read_text(encoding="utf-8") for file in (name, "page.css")
    )
    # In a script element, only "<" can end it or start a comment.
    payload = json.dumps(without_nan(data), ensure_ascii=False).replace("<", "\\u003c")
    page = template.replace("@style@\n", style).replace("@title@", html.escape(str(data["title"])))
    return page.replace("@data@", payload)


def without_nan(node: Any) -> Any:
    """Replace NaN and infinite numbers, which JSON lacks, by None."""
    if isinstance(node, Mapping):
        return {key: without_nan(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [without_nan(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
