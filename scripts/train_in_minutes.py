"""Train the stages of an experiment in a given time: all of them, shortened by one factor.

    python scripts/train_in_minutes.py 10 experiment=speech_16khz data.root=FOLDER data.batch_size=256

A probe of a few steps per stage measures speed and fixed costs: start, k-means, saving. The same command
then trains as many steps per stage as fit. `pace.json` in the run's folder holds the steps per second of each
stage, hours of audio, minutes, and the peak of memory. Ctrl-C saves the run; the printed command with
`resume=auto` continues it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from codec.commands.errors import report_errors
from codec.commands.train import quoted
from codec.config import CONFIG_DIR, ConfigError
from codec.system.files import write_whole

REPORTS = 3  # of each stage of the probe; the last counts, when caches and clocks have settled
SPEED, MEMORY = "speed/audio_seconds_per_second", "speed/peak_memory_gib"
MARGIN = 0.95  # of the time; validations are not in the probe
Stages = list[dict[str, Any]]


def main() -> int:
    """Probe, then train the steps that fit; the exit status of the training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float)
    parser.add_argument("overrides", nargs="+", help="as for codec-train")
    parser.add_argument("--probe", type=int, default=60, metavar="STEPS", help="of each stage (default: 60)")
    options = parser.parse_args()
    if not options.minutes > 0 or options.probe < REPORTS:
        raise ConfigError(f"MINUTES must be above 0 and --probe at least {REPORTS}")
    began = time.monotonic()
    overrides = [quoted(override) for override in options.overrides]
    config = read_config(overrides)
    batch_seconds = config.data.batch_size * config.data.segment_seconds
    stages: Stages = yaml.safe_load(OmegaConf.to_yaml(config.training.stages))
    if not stages:
        raise ConfigError("training.stages is empty: name an experiment with stages, or give them")
    rates, overhead = probe(overrides, stages, options.probe, batch_seconds)
    left = MARGIN * (60 * options.minutes - (time.monotonic() - began)) - overhead
    fitting = shortened(stages, rates, left)
    command = training(overrides, fitting)
    print(shlex.join(command), flush=True)
    status = subprocess.run(command).returncode
    if status == 0:
        minutes = (time.monotonic() - began) / 60
        write_pace(Path(config.run_dir), fitting, rates, batch_seconds, minutes)
    return status


def read_config(overrides: Sequence[str]) -> Any:
    """Config that the overrides compose."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = compose("train", list(overrides), return_hydra_config=True)
    OmegaConf.resolve(composed.data)
    composed.run_dir = str(OmegaConf.select(composed, "run_dir"))
    return composed


def training(overrides: Sequence[str], stages: Stages) -> list[str]:
    """Command that trains these stages."""
    flow = yaml.safe_dump(stages, default_flow_style=True, width=sys.maxsize).strip()
    chosen = [*overrides, f"training.stages={flow}", "trainer.max_steps=null"]
    return [sys.executable, "-m", "codec", "train", *chosen]


def probe(
    overrides: Sequence[str], stages: Stages, steps: int, batch_seconds: float
) -> tuple[list[float], float]:
    """Steps per second of each stage, and the seconds of a run outside its steps."""
    short = [{**stage, "steps": steps} for stage in stages]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        extra = [f"run_dir={quoted(folder)}", f"trainer.log_every_n_steps={steps // REPORTS}"]
        status = subprocess.run(training([*overrides, *extra], short)).returncode
        if status:
            raise ConfigError(f"the probe ended with status {status}: see above")
        rows = [row for row in read_metrics(Path(folder)) if row.get(SPEED)]
    ends = [steps * (number + 1) for number in range(len(stages))]
    speeds = {int(row["step"]): float(row[SPEED]) for row in rows}
    rates = [speeds[end] / batch_seconds for end in ends]
    return rates, time.monotonic() - began - sum(steps / rate for rate in rates)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's table."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shortened(stages: Stages, rates: Sequence[float], seconds: float) -> Stages:
    """Stages whose steps, all by one factor fewer or more, take so many seconds at these steps per second.

    ConfigError if a stage would have no step.
    """
    whole = sum(stage["steps"] / rate for stage, rate in zip(stages, rates, strict=True))
    fitting = [{**stage, "steps": int(stage["steps"] * seconds / whole)} for stage in stages]
    if any(stage["steps"] < 1 for stage in fitting):
        raise ConfigError(f"{max(seconds, 0):.0f} s are left, too few for {len(stages)} stages: more minutes")
    return fitting


def write_pace(
    folder: Path, stages: Stages, rates: Sequence[float], batch_seconds: float, minutes: float
) -> None:
    """Write `pace.json` beside the run's model, and print it."""
    rows = read_metrics(folder)
    speeds = [float(row[SPEED]) for row in rows if row.get(SPEED)]
    peaks = [float(row[MEMORY]) for row in rows if row.get(MEMORY)]
    pace = {
        "steps": {stage["name"]: stage["steps"] for stage in stages},
        "steps_per_second_of_probe": {s["name"]: round(r, 2) for s, r in zip(stages, rates, strict=True)},
        "times_real_time": round(sorted(speeds)[len(speeds) // 2], 1),
        "audio_hours": round(sum(stage["steps"] for stage in stages) * batch_seconds / 3600, 2),
        "minutes": round(minutes, 2),
        "peak_memory_gib": max(peaks, default=None),
    }
    write_whole(folder / "pace.json", json.dumps(pace, indent=1) + "\n")
    print(json.dumps(pace))


if __name__ == "__main__":
    sys.exit(report_errors(main))
