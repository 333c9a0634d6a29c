"""Compare codec-plan with the training itself: python scripts/benchmark_plan.py experiment=tiny OVERRIDES

Each part of the run is measured as codec-plan does, then the run is trained into a temporary folder, then
each part is measured again, so that other load disturbs both alike. Steps per second of a run are those of
its `metrics.csv` without the first report of each part. Give few steps, as

    python scripts/benchmark_plan.py experiment=tiny trainer.max_steps=300 training.adversarial_from=150
"""

from __future__ import annotations

import argparse
import csv
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from codec.commands.errors import report_errors
from codec.commands.train import quoted
from codec.config import CONFIG_DIR, ConfigError
from codec.training.forecast import GIB, step_seconds
from codec.training.planning import Part, Row, Survey, parts_of
from codec.training.run import build_parts, resolve

SPEED, MEMORY = "speed/audio_seconds_per_second", "speed/peak_memory_gib"


def main() -> int:
    """Measure, train, measure; print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="as for codec-train")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement; default: 10")
    options = parser.parse_args()
    overrides = [quoted(override) for override in options.overrides]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = resolve(compose("train", ["name=plan", *overrides]))
    data, module = build_parts(config)
    data.prepare_data()
    survey = Survey(config, parts_of(module, config["trainer"]["max_steps"]), options.seconds)
    before = [survey.measure(part, data.batch_size) for part in survey.parts]
    with tempfile.TemporaryDirectory() as folder:
        train(overrides, folder)
        with Path(folder, "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get(SPEED)]
    after = [survey.measure(part, data.batch_size) for part in survey.parts]
    batch_seconds = data.batch_size * config["data"]["segment_seconds"]
    for pair in zip(before, after, strict=True):
        show_speed(pair, real_speed(rows, pair[0].part, batch_seconds), data.num_workers)
    planned = max(row.result["peak"] - row.result["loaders"] for row in before + after) / GIB
    real = max(float(row[MEMORY]) for row in rows)
    print(f"memory: {planned:.3f} GiB planned, {real:.3f} GiB taken, {planned / real - 1:+.1%}")
    return 0


def train(overrides: list[str], folder: str) -> None:
    """Train into a folder; ConfigError if it fails."""
    extra = [f"run_dir={quoted(folder)}", "evaluate=0", "logger=none"]
    command = [sys.executable, "-m", "codec", "train", *overrides, *extra]
    if status := subprocess.run(command).returncode:
        raise ConfigError(f"the training ended with status {status}: see above")


def real_speed(rows: list[dict[str, str]], part: Part, batch_seconds: float) -> float:
    """Steps per second of a part of a run, without its first report."""
    end = part.start + part.steps if part.steps else float("inf")
    inside = [row for row in rows if part.start < int(row["step"]) <= end]
    pairs = itertools.pairwise(inside)
    counted = [(int(row["step"]) - int(last["step"]), float(row[SPEED])) for last, row in pairs]
    if not counted:
        raise ConfigError(f"{part.name}: fewer than two reports; lower trainer.log_every_n_steps")
    seconds = sum(steps * batch_seconds / speed for steps, speed in counted)
    return sum(steps for steps, _ in counted) / seconds


def show_speed(pair: tuple[Row, Row], real: float, workers: int) -> None:
    """Print planned and real steps per second of a part."""
    each = [1 / step_seconds(row, workers) for row in pair]
    mean: Any = 2 / sum(1 / one for one in each)
    listed = " and ".join(f"{one:.3g}" for one in each)
    print(f"{pair[0].part.name}: {listed} steps/s planned, {real:.3g} taken, {mean / real - 1:+.1%}")


if __name__ == "__main__":
    sys.exit(report_errors(main))
