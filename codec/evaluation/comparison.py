"""Comparison of several systems on the same files: tables, clips, page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from codec.evaluation.analysis import (
    Table,
    costs,
    curves,
    delta_rates,
    domains,
    is_classical,
    pairs,
    scores_of,
    stages,
    tokens,
    worst,
)
from codec.evaluation.clips import embed_clips
from codec.evaluation.complexity import cost
from codec.evaluation.reading import Recordings, first_clip, read_clips
from codec.evaluation.report import describe, notes, without_nan, write_page
from codec.evaluation.runs import Run, metrics_of, read_json
from codec.evaluation.stability import stage_energy, token_stability
from codec.evaluation.systems import OwnCodec
from codec.metrics.base import Metric
from codec.metrics.perceptual import PESQ_WB, VISQOL_AUDIO, VISQOL_SPEECH
from codec.metrics.signal import L1, MEL
from codec.system.files import write_whole

ANALYZED_CLIPS = 8  # number of clips for token stability

# Metrics that rank the worst files; the first measured one is used.
DECISIVE = (VISQOL_SPEECH, VISQOL_AUDIO, PESQ_WB, MEL)


def analyze(system: OwnCodec, files: Recordings, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure costs and token stability; cached in a file until the codec changes."""
    identity = system.codec.codec_id()
    if path.is_file() and not options.fresh:
        cache = read_json(path)
        if cache.get("codec") == identity:
            return cache
    device = next(system.codec.parameters()).device
    clips = [clip.to(device) for clip in read_clips(system, files[:ANALYZED_CLIPS], options.max_seconds)]
    analysis = {
        "codec": identity,
        "cost": cost(system.codec, first_clip(system, files, options.max_seconds)),
        "stability": token_stability(system.codec, clips),
        "energy_left": stage_energy(system.codec, clips),
    }
    write_whole(path, json.dumps(analysis, indent=2) + "\n")
    return analysis


def write_comparison(
    runs: Mapping[str, Run],
    analyses: Mapping[str, Mapping[str, Any]],
    output: Path,
    stems: Mapping[str, str],
    anchor: str,
    clips: int,
    origin: Sequence[tuple[str, str]],
) -> None:
    """Write the page, and each of its tables as csv."""
    failures = [{"name": name, "error": run.error} for name, run in runs.items() if run.error]
    runs = {name: run for name, run in runs.items() if run.summary}
    variants = {name: [run] for name, run in runs.items()}
    metrics = metrics_of(list(runs.values()))
    models = [name for name, run in runs.items() if not is_classical(run)]
    tables = comparison_tables(runs, analyses, metrics, anchor)
    for table in tables:
        write_whole(output / f"{table.name}.csv", table.to_csv())
    folders = {name: run.folder for name, run in runs.items() if name != "original" or len(runs) == 1}
    descriptions = describe(variants, models if len(models) > 1 else [])
    page = {
        "title": output.resolve().name,
        "what": "codecs" if len(runs) > 1 else "codec",
        "metrics": [{"key": metric.name, **metric.stated()} for metric in metrics],
        "variants": descriptions,
        "failed": failures,
        "clips": embed_clips(folders, heard(folders.values(), stems, clips), 5.0),
        "worst": worst_files(runs[(models or list(runs))[0]], stems),
        "tables": [vars(table) for table in tables],
        "notes": [*notes(variants, descriptions, seeds=False), *empty_cells(runs)],
        "made": origin,
    }
    write_page(without_nan(page), output)


def heard(folders: Collection[Path], stems: Mapping[str, str], clips: int) -> dict[str, str]:
    """Stems and names of the first `clips` files with audio, sorted by the number of their folders."""
    holders = {
        file: sum((folder / f"{stem}.original.wav").is_file() for folder in folders)
        for file, stem in stems.items()
    }
    files = sorted((file for file in stems if holders[file]), key=lambda file: -holders[file])
    return {stems[file]: file for file in files[:clips]}


def worst_files(run: Run, stems: Mapping[str, str]) -> dict[str, Any]:
    """Clips with a run's worst scores, by the first decisive metric it has."""
    decisive = next(metric for metric in DECISIVE if metric.name in (run.scores or {}))
    scores, title = scores_of(run, decisive), decisive.title
    titles = {stems[file]: f"{file}: {title} {scores[file]:.3g}" for file in worst(run, decisive)}
    note = f"Worst {title} of {run.label}, of {len(scores)} files; the worst first."
    return {"note": note, "clips": embed_clips({run.label: run.folder}, titles, 5.0)}


def comparison_tables(
    runs: Mapping[str, Run], analyses: Mapping[str, Mapping[str, Any]], metrics: Sequence[Metric], anchor: str
) -> list[Table]:
    """Build the tables of a comparison, except for its first one."""
    families = curves(runs)
    perceived = [metric for metric in metrics if metric != L1]
    tables = [
        delta_rates(runs, perceived, anchor) if len(families) > 1 and anchor in families else None,
        domains(runs, metrics),
        pairs(runs, metrics) if len(runs) > 1 else None,
        stages(runs, analyses),
        tokens(analyses),
        costs(analyses),
    ]
    return [table for table in tables if table and table.rows]


def empty_cells(runs: Mapping[str, Run]) -> list[str]:
    """Notes about missing scores."""
    return [
        f"{name}: {(run.summary or {})['empty_cells']} scores are missing; its failures.csv says why."
        for name, run in runs.items()
        if (run.summary or {}).get("empty_cells")
    ]
