"""Comparison of several systems on the same files: tables, clips, page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from codec.evaluation.analysis import Analysis
from codec.evaluation.clips import embed_clips
from codec.evaluation.comparison_tables import comparison_tables, is_classical, worst
from codec.evaluation.page import Page
from codec.evaluation.report import notes
from codec.evaluation.runs import EvaluationRun, metrics_of
from codec.evaluation.tables import write_table
from codec.evaluation.variants import describe
from codec.metrics.perceptual import PESQ_WB, VISQOL_AUDIO, VISQOL_SPEECH
from codec.metrics.signal import MEL

# Metrics that rank the worst files; the first measured one is used.
DECISIVE = (VISQOL_SPEECH, VISQOL_AUDIO, PESQ_WB, MEL)


def write_comparison(
    runs: Mapping[str, EvaluationRun],
    analyses: Mapping[str, Analysis],
    output: Path,
    stems: Mapping[str, str],
    anchor: str,
    clips: int,
    origin: Sequence[tuple[str, str]],
) -> None:
    """Write the page, and each of its tables as csv."""
    failed = {name: run.error for name, run in runs.items() if run.error}
    runs = {name: run for name, run in runs.items() if run.summary}
    variants = {name: [run] for name, run in runs.items()}
    metrics = metrics_of(list(runs.values()))
    models = [name for name, run in runs.items() if not is_classical(run)]
    tables = comparison_tables(runs, analyses, metrics, anchor)
    for table in tables:
        write_table(output / f"{table.name}.csv", table.head, table.rows)
    folders = {name: run.folder for name, run in runs.items() if name != "original" or len(runs) == 1}
    descriptions = describe(variants, models if len(models) > 1 else [])
    Page(
        title=output.resolve().name,
        what="codecs" if len(runs) > 1 else "codec",
        metrics=metrics,
        variants=descriptions,
        failed=failed,
        clips=embed_clips(folders, heard(folders.values(), stems, clips), 5.0),
        worst=worst_files(runs[(models or list(runs))[0]], stems),
        tables=tables,
        notes=[*notes(variants, descriptions, seeds=False), *empty_cells(runs)],
        made=origin,
    ).write(output)


def heard(folders: Collection[Path], stems: Mapping[str, str], clips: int) -> dict[str, str]:
    """Stems and names of the first `clips` files with audio, sorted by the number of their folders."""
    holders = {
        file: sum((folder / f"{stem}.original.wav").is_file() for folder in folders)
        for file, stem in stems.items()
    }
    files = sorted((file for file in stems if holders[file]), key=lambda file: -holders[file])
    return {stems[file]: file for file in files[:clips]}


def worst_files(run: EvaluationRun, stems: Mapping[str, str]) -> dict[str, Any]:
    """Clips with a run's worst scores, by the first decisive metric it has."""
    decisive = next(metric for metric in DECISIVE if metric.name in run.scores)
    scores, title = run.scores[decisive.name], decisive.title
    titles = {stems[file]: f"{file}: {title} {scores[file]:.3g}" for file in worst(run, decisive)}
    note = f"Worst {title} of {run.label}, of {len(scores)} files; the worst first."
    return {"note": note, "clips": embed_clips({run.label: run.folder}, titles, 5.0)}


def empty_cells(runs: Mapping[str, EvaluationRun]) -> list[str]:
    """Notes about missing scores."""
    return [
        f"{name}: {run.summary.empty_cells} scores are missing; its failures.csv says why."
        for name, run in runs.items()
        if run.summary and run.summary.empty_cells
    ]
