"""Measure a training's quality, checkpoint by checkpoint, beside classical codecs.

    python scripts/learning_curve.py runs/mine /held-out -o curve.csv --fit /training --cores 2

adds a row for each checkpoint of the run and each bitrate to curve.csv, measures classical codecs on the same
files into baselines.csv beside it, and draws both as curve.png. Rows of the tables are not measured
again: repeat the command while the training goes on. `checkpoint.keep_every=STEPS` keeps checkpoints.
Of a saved or pretrained codec, or a single checkpoint, it measures that one, at the cost that --before names.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from curve_picture import draw
from curve_scores import UNQUANTIZED, Listener, Row, classical, depths_at, fitted, quantized

from codec.commands.errors import report_errors
from codec.config import ConfigError
from codec.data.scan import scan
from codec.evaluation.classical import Baseline
from codec.evaluation.tables import write_table
from codec.metrics.registry import choose_metrics
from codec.model.codec import Codec
from codec.model.saving import load
from codec.model.untrusted import read_yaml
from codec.training.metrics_csv import MetricsCSV
from codec.training.resume import checkpoint_step

BASELINES = "opus_6,opus_8,opus_9,opus_10,opus_11,opus_12,opus_14,opus_16,codec2_3.2,"
BASELINES += "amr-wb_6.6,amr-wb_8.85,amr-wb_12.65,amr-wb_15.85"
RATES = ["payload_kbps", "fitted_kbps", "file_kbps"]
PROGRESS = ["step", "audio_hours", "cpu_hours", "stages", "beam", "kbps"]
SPEED = "speed/audio_seconds_per_second"


class Table:
    """Rows in a csv file, whole after each `add`; ConfigError for one of other columns or recordings."""

    def __init__(self, path: Path, columns: Sequence[str], listener: Listener):
        self.path, self.columns = path, [*columns, *listener.names, "files", "seconds"]
        self.rows: list[Row] = []
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.rows = list(reader)
        if reader.fieldnames != self.columns:
            raise ConfigError(f"{path} has other columns than {','.join(self.columns)}: name another file")
        for row in self.rows:
            if (row["files"], row["seconds"]) != (str(len(listener.files)), f"{listener.seconds:.1f}"):
                raise ConfigError(
                    f"{path} is of {row['files']} files of {row['seconds']} s, not {len(listener.files)} of "
                    f"{listener.seconds:.1f} s: name another table, or the same recordings"
                )

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self.rows += rows
        write_table(self.path, self.columns, [list(map(row.get, self.columns)) for row in self.rows])


class Run:
    """A run folder: its checkpoints and their cost; ConfigError for a folder that is none."""

    def __init__(self, folder: Path, cores: float, before: Sequence[float] = (0.0, 0.0)):
        self.folder, self.cores = folder, cores
        self.audio_hours, self.cpu_hours = before
        try:
            self.config = read_yaml(folder / "config.yaml")
            data = self.config["data"]
            self.step_seconds = float(data["batch_size"]) * float(data["segment_seconds"])
            self.sample_rate, self.channels = self.config["sample_rate"], self.config["channels"]
        except (OSError, ConfigError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{folder}: not the folder of a codec-train run: {problem}") from error

    def checkpoints(self) -> list[Path]:
        """Files of the checkpoints, the last one at the end."""
        folder = self.folder / "checkpoints"
        return [*sorted(folder.glob("step-*.ckpt")), *folder.glob("last.ckpt")]

    def spent(self, step: int) -> Row:
        """Hours of audio until a step, and of cores if the speed was logged; those `before` are added."""
        hours, before, pace = 0.0, 0, None
        path = self.folder / "metrics.csv"
        for row in MetricsCSV(path).read() if path.is_file() else []:
            if row.get(SPEED) and before < step:
                pace, logged = self.step_seconds / float(row[SPEED]) / 3600, int(row["step"])
                hours, before = hours + pace * (logged - before), logged
        cpu = "" if pace is None else f"{self.cpu_hours + self.cores * (hours + pace * (step - before)):.5f}"
        return {"audio_hours": f"{self.audio_hours + step * self.step_seconds / 3600:.4f}", "cpu_hours": cpu}


class Saved:
    """A codec that `codec.load` accepts, in place of a run; FileNotFoundError or ConfigError for another."""

    def __init__(self, path: Path, before: Sequence[float]):
        codec = load(path)
        self.path, self.before = path, before
        self.sample_rate, self.channels = codec.sample_rate, codec.audio_channels

    def checkpoints(self) -> list[Path]:
        """The codec alone."""
        return [self.path]

    def spent(self, step: int) -> Row:
        """Hours of `before`."""
        audio, cpu = self.before
        return {"audio_hours": f"{audio:.4f}", "cpu_hours": f"{cpu:.5f}"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the checkpoints without rows in the tables; exit status 1 when a checkpoint cannot be read."""
    asked = build_parser().parse_args(argv)
    is_run = (asked.run / "checkpoints").is_dir()
    run = Run(asked.run, asked.cores, asked.before) if is_run else Saved(asked.run, asked.before)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    metrics, left_out = choose_metrics(words(asked.metrics))
    for reason in left_out:
        print(f"left out: {reason}")
    files = recordings(asked.folder, asked.files)
    listener = Listener(files, run.sample_rate, run.channels, metrics, asked.workers)
    try:
        table = Table(asked.output, [*PROGRESS, *RATES], listener)
        place = asked.baseline_table or asked.output.with_name("baselines.csv")
        baselines = Table(place, ["codec", "version", "payload_kbps", "file_kbps"], listener)
        measure_baselines(baselines, words(asked.baselines), listener)
        damaged = [path for path in run.checkpoints() if not measured(run, path, table, listener, asked)]
    finally:
        listener.close()
    if table.rows:
        draw(asked.output.with_suffix(".png"), table.rows, baselines.rows, listener.names)
    print(f"{asked.output}: {len(table.rows)} rows; {listener.missing} scores of files are missing")
    return 1 if damaged else 0


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="folder of a training, finished or not, or any codec that codec.load takes")
    add("folder", type=Path, help="recordings that it was not trained on")
    add("-o", "--output", type=Path, required=True, metavar="CSV", help="the picture lies beside it")
    add("--files", type=positive, help="evenly spaced among those of the folder; default: all")
    add("--rates", type=numbers, default="1.5,3,4.5,6", help="kbit/s, nominal; default: %(default)s")
    add("--unquantized", action="store_true", help="and the encoder's latents as they are, decoded")
    add("--beam", type=positive, default=1, help="paths of the codebook search; default: %(default)s")
    add("--metrics", default="speech", help="as codec-evaluate takes them; default: %(default)s")
    add(
        "--fit",
        type=Path,
        metavar="FOLDER",
        help="training data, to fit entropy tables of each checkpoint to",
    )
    add("--fit-hours", type=float, default=0.5, help="of it, at most; default: %(default)s")
    add("--cores", type=float, default=1, help="that the training has; default: %(default)s")
    add(
        "--before",
        type=hours,
        default=(0.0, 0.0),
        metavar="AUDIO,CPU",
        help="hours that the weights it started from had cost; default: 0,0",
    )
    add("--workers", type=positive, default=1, help="files at a time; default: %(default)s")
    add("--baselines", default=BASELINES, help="default: %(default)s")
    add("--baseline-table", type=Path, metavar="CSV", help="default: baselines.csv beside the output")
    return parser


def words(text: str) -> list[str]:
    """Words between commas."""
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[float]:
    """Numbers between commas."""
    return [float(word) for word in words(text)]


def hours(text: str) -> tuple[float, float]:
    """Two numbers, or ValueError, which argparse puts into words."""
    audio, cpu = numbers(text)
    return audio, cpu


def positive(text: str) -> int:
    """A whole number above zero, or ValueError, which argparse puts into words."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def recordings(folder: Path, count: int | None) -> list[str]:
    """Usable files of a folder, all or `count` of them, evenly spaced."""
    usable = scan(folder).require_usable().usable
    number = min(count or len(usable), len(usable))
    places = np.linspace(0, len(usable) - 1, number).round().astype(int)
    return [os.path.join(folder, usable[place].path) for place in places]


def measure_baselines(table: Table, names: Sequence[str], listener: Listener) -> None:
    """Add classical codecs that the table lacks; print which cannot be had here, and why."""
    reasons = {}
    for name in names:
        if name in (row["codec"] for row in table.rows):
            continue
        try:
            baseline = Baseline(name, listener.options.sample_rate, listener.options.channels)
        except ConfigError as error:
            reasons.setdefault(str(error), []).append(name)
            continue
        began = time.monotonic()
        version = " ".join(map(str, list(baseline.identity().items())[-1]))
        table.add([{"codec": name, "version": version, **listener.judge(classical(baseline))[name]}])
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    for reason, those in reasons.items():
        print(f"left out: {', '.join(those)}: {reason}")
    if names:
        print("left out: evs, which FFmpeg does not encode")


def measured(
    run: Run | Saved, path: Path, table: Table, listener: Listener, asked: argparse.Namespace
) -> bool:
    """Add the rates of a checkpoint that the table lacks; False, and a line, for one that is damaged."""
    try:
        step, codec = load_at(path)
    except ConfigError as error:
        print(f"skipped: {error}", flush=True)
        return False
    depths = depths_at(codec, asked.rates)
    at = {"step": str(step), "beam": str(asked.beam)}
    done = {row["stages"] for row in table.rows if at.items() <= row.items()}
    todo = [depth for depth in depths if str(depth) not in done]
    unquantized = (asked.unquantized or not depths) and UNQUANTIZED not in done
    if not todo and not unquantized:
        return True
    began = time.monotonic()
    tables = fitted(codec, asked.fit, asked.fit_hours, max(todo)) if asked.fit and todo else None
    between = time.monotonic()
    found = listener.judge(quantized(codec, todo, tables, unquantized, asked.beam))
    nominal = {str(depth): f"{codec.bitrate(depth) / 1000:g}" for depth in todo}
    spent = at | run.spent(step)
    table.add(
        [{**spent, "stages": rate, "kbps": nominal.get(rate, ""), **row} for rate, row in found.items()]
    )
    parts = f"fitted in {between - began:.0f} s, scored in {time.monotonic() - between:.0f} s"
    print(f"step {step}: {len(found)} rates, {parts}", flush=True)
    return True


def load_at(path: Path) -> tuple[int, Codec]:
    """Step and codec of a checkpoint, which a training may replace meanwhile; step 0 for a saved codec."""
    while path.is_file():
        step, codec = checkpoint_step(path), load(path)
        if checkpoint_step(path) == step:
            return step, codec
    return 0, load(path)


if __name__ == "__main__":
    sys.exit(report_errors(main))
