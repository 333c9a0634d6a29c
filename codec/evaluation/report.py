"""Comparison of finished runs as one self-contained HTML page, a CSV and a Markdown table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from codec.config import ConfigError
from codec.evaluation.clips import common_stems, embed_clips
from codec.evaluation.page import Page, origin_of_page
from codec.evaluation.runs import EvaluationRun, find_runs, group, metrics_of
from codec.evaluation.statistics import SIGNIFICANT, least_p, smallest_p
from codec.evaluation.variants import Variant, describe, summaries


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
            "Some variants have one seed. Their intervals leave out the variance over seeds: "
            "train close pairs with three seeds or more."
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
