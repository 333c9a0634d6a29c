"""`codec-evaluate MODEL ... data.root=FOLDER`: compare codecs on one folder of recordings."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from codec.commands.parsers import parse
from codec.commands.paths import recordings
from codec.commands.systems import build_systems, parse_depths
from codec.config import ConfigError
from codec.data.partition import held_out
from codec.data.scan import scan
from codec.evaluation.analysis import analyze
from codec.evaluation.comparison import heard, write_comparison
from codec.evaluation.context import add_context
from codec.evaluation.evaluate import Options, evaluate_system
from codec.evaluation.huggingface import HuggingFaceCodec
from codec.evaluation.listening import write_listening
from codec.evaluation.packet_loss import LossyCodec
from codec.evaluation.page import origin_of_page
from codec.evaluation.reading import Recordings, shown
from codec.evaluation.runs import EvaluationRun, read_scores
from codec.evaluation.systems import NeuralCodec, System
from codec.evaluation.writing import scores_line, stem_of
from codec.metrics.base import Metric
from codec.metrics.process import MetricProcess
from codec.metrics.registry import choose_metrics
from codec.system.device import default_device


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; ConfigError for user errors."""
    options = parse("evaluate", argv)
    check_numbers(options)
    models, folder = places(options.what)
    metrics, reasons = choose_metrics([m for m in options.metrics.split(",") if m], options.metric)
    for reason in reasons:
        print(f"left out: {reason}")
    index = scan(folder).require_usable()
    if index.problems:
        print(f"{len(index.problems)} files cannot be used: codec-doctor {folder} says why")
    usable = index.usable
    usable = held_out(index, options.held_out, models) if options.held_out else usable
    files = [file.located(index.root) for file in usable][: options.max_files]
    systems = build_systems(models, files, options)
    anchor = anchor_of(systems, options.bd_rate_against)
    output = options.output or default_output(models, folder)
    if output.is_dir() and any(output.iterdir()) and not any(output.rglob("records.jsonl")):
        raise ConfigError(f"{output} is not empty: name another folder with --output, or remove it")
    root = Path(index.root)
    runs = evaluate_all(systems, files, root, output, metrics, options)
    seconds, fresh = options.max_seconds, options.fresh
    analyses = {
        system.name: analyze(system, files, runs[system.name].folder / "analysis.json", seconds, fresh)
        for system in systems
        if isinstance(system, NeuralCodec) and runs[system.name].summary
    }
    stems = {shown(file, root): stem_of(number, file) for number, file in enumerate(files, start=1)}
    models_of_codes = [system for system in systems if isinstance(system, NeuralCodec | HuggingFaceCodec)]
    for system in models_of_codes if options.token_model else ():
        if runs[system.name].summary:
            device = options.device or default_device()
            add_context(system, runs[system.name], stems, options.token_model, device, fresh)
    command = shlex.join(["codec-evaluate", *(sys.argv[1:] if argv is None else argv)])
    origin = origin_of_page(command, "recordings", [folder])
    write_comparison(runs, analyses, output, stems, anchor, options.clips, origin)
    print(f"tables, curves, audio side by side: {output}/index.html")
    if options.listening:
        names = {system.name for system in systems if not isinstance(system, LossyCodec)} - {"original"}
        folders = {name: run.folder for name, run in runs.items() if run.summary and name in names}
        clips = heard(folders.values(), stems, options.clips)
        print(write_listening(options.listening, folders, clips, output))
    return 0 if all(run.summary for run in runs.values()) else 1


def evaluate_all(
    systems: Sequence[System],
    files: Recordings,
    root: Path,
    output: Path,
    metrics: Sequence[Metric],
    options: argparse.Namespace,
) -> dict[str, EvaluationRun]:
    """Evaluate system by system; failures are recorded in the runs; ConfigError if all fail."""
    processes = [MetricProcess(options.metric_timeout) for _ in range(max(1, options.workers))]
    rate, channels = options.sample_rate or systems[0].sample_rate, systems[0].channels
    settings = Options(rate, channels, root, options.max_seconds, metrics=metrics, processes=processes)
    runs: dict[str, EvaluationRun] = {}
    try:
        for system in systems:
            place = output / slug(system.name) if len(systems) > 1 else output
            runs[system.name] = evaluate_one(system, files, place, settings, options.fresh)
    finally:
        for process in processes:
            process.close()
    if not any(run.summary for run in runs.values()):
        raise ConfigError("\n".join(f"{name}: {run.error}" for name, run in runs.items()))
    return runs


def evaluate_one(
    system: System, files: Recordings, place: Path, settings: Options, fresh: bool
) -> EvaluationRun:
    """Evaluate one system and print its scores or its error."""
    run = EvaluationRun(place, {}, system.name)
    try:
        run.summary = evaluate_system(system, files, place, settings, resume=not fresh)
    except ConfigError:
        raise
    except ValueError as error:
        run.error = f"{error}; the reasons are above"
        print(f"{system.name}: {run.error}")
        return run
    run.scores = read_scores(place / "files.csv")
    print(f"{system.name}: {scores_line(run.summary)}")
    return run


def anchor_of(systems: Sequence[System], asked: str | None) -> str:
    """Name of the anchor curve for BD-rates: the requested one, else Opus's, else the first."""
    curves = [system.describe().family or system.name for system in systems]
    if asked is not None and asked not in curves:
        raise ConfigError(f"--bd-rate-against {asked}: there are {', '.join(dict.fromkeys(curves))}")
    return asked or next((name for name in curves if name.startswith("opus")), curves[0])


def check_numbers(options: argparse.Namespace) -> None:
    """Raise ConfigError for numbers out of range."""
    bounds = {"max_files": 1, "beam": 1, "workers": 1, "clips": 0, "sample_rate": 1}
    for name, bound in bounds.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ConfigError(f"--{name.replace('_', '-')}: expected {bound} or more, got {value}")
    for name, unit in (("max_seconds", "seconds"), ("metric_timeout", "seconds"), ("token_model", "minutes")):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')}: expected {unit}, got {value}")
    if options.held_out is not None and not 0 < options.held_out < 1:
        raise ConfigError(f"--held-out: expected a share between 0 and 1, got {options.held_out}")
    if 0 in (parse_depths(options.num_quantizers) or []):
        raise ConfigError("--num-quantizers: expected 1 or more")


def places(words: Sequence[str]) -> tuple[list[str], str | Path]:
    """Split the arguments into models and the folder of recordings."""
    roots = [word.partition("=")[2] for word in words if word.startswith("data.root=")]
    models = [word for word in words if not word.startswith("data.root=")]
    if len(roots) > 1:
        raise ConfigError("data.root is given twice: give one folder")
    if not roots and len(models) < 2:
        raise ConfigError(f"which recordings? codec-evaluate {models[0]} data.root=/folder")
    return models, recordings(roots[0] if roots else models.pop())


def slug(name: str) -> str:
    """Convert a name to a valid folder name."""
    return re.sub(r"[^\w.=,+-]+", "_", name).strip(".") or "model"


def default_output(models: Sequence[str], folder: str | Path) -> Path:
    """Default output: `evaluation-FOLDER` beside the first model, or in the working directory."""
    name = Path(f"evaluation-{Path(folder).name or 'root'}")
    if not models or models[0].startswith("hf:"):
        return name
    model = Path(models[0])
    return (model if model.is_dir() else model.parent) / name
