"""Compare codec-plan with the training itself: python scripts/benchmark_plan.py experiment=tiny OVERRIDES

Each part of the run is measured as codec-plan does, then the run is trained into a temporary folder, then
each part is measured again, so that other load disturbs both alike; and so on for `--runs` runs. Times are
those of steps, validations and checkpoints, without the start and the final evaluation. Give few steps, as

    python scripts/benchmark_plan.py experiment=tiny trainer.max_steps=300 training.adversarial_from=150
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from codec.commands.errors import report_errors
from codec.commands.train import quoted
from codec.config import CONFIG_DIR, ConfigError
from codec.training.forecast import GIB, forecast
from codec.training.planning import Part, Survey, parts_of
from codec.training.run import build_parts, resolve

MEMORY = "speed/peak_memory_gib"


def main() -> int:
    """Measure, train, measure, several times; print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="as for codec-train")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement; default: 10")
    parser.add_argument("--runs", type=int, default=3, help="trainings; default: 3")
    options = parser.parse_args()
    overrides = [quoted(override) for override in options.overrides]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = resolve(compose("train", ["name=plan", *overrides]))
    data, module = build_parts(config)
    data.prepare_data()
    parts = parts_of(module, config["trainer"]["max_steps"])
    plans = [planned(config, parts, options.seconds)]
    for number in range(1, options.runs + 1):
        real = taken(overrides)
        plans.append(planned(config, parts, options.seconds))
        mean = [sum(pair) / 2 for pair in zip(*plans[-2:], strict=True)]
        ratios = [plan / run for plan, run in zip(mean, real, strict=True)]
        print(
            f"run {number}: {mean[0]:.1f} s planned, {real[0]:.1f} s taken, ratio {ratios[0]:.3f}; "
            f"{mean[1]:.3f} GiB planned, {real[1]:.3f} GiB taken, ratio {ratios[1]:.3f}",
            flush=True,
        )
    return 0


def planned(config: dict[str, Any], parts: list[Part], seconds: float) -> tuple[float, float]:
    """Seconds and GiB of a run by measurements of its parts; ConfigError if it does not fit into memory."""
    survey = Survey(config, parts, seconds)
    rows = [survey.measure(part, config["data"]["batch_size"]) for part in parts]
    if not all(row.result["fits"] for row in rows):
        raise ConfigError("data.batch_size does not fit into memory: see codec-plan")
    heaviest = max((row.result for row in rows), key=lambda result: result["peak"])
    # On a CPU the telemetry of a run reports the memory of its own process alone.
    others = heaviest["loaders"] if heaviest["device"].endswith("threads") else 0
    return forecast(survey, 0.0, 0)["seconds_of_run"], (heaviest["peak"] - others) / GIB


def taken(overrides: list[str]) -> tuple[float, float]:
    """Seconds and GiB of a training into a temporary folder; ConfigError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        extra = [f"run_dir={quoted(folder)}", "evaluate=0", "logger=none"]
        command = [sys.executable, "-m", "codec", "train", *overrides, *extra]
        if status := subprocess.run(command).returncode:
            raise ConfigError(f"the training ended with status {status}: see above")
        # Written when the first step starts, and when the last one and its validation have ended.
        start, end = (Path(folder, name).stat().st_mtime for name in ("data.txt", "checkpoints/last.ckpt"))
        with Path(folder, "metrics.csv").open(newline="", encoding="utf-8") as file:
            return end - start, max(float(row[MEMORY]) for row in csv.DictReader(file) if row.get(MEMORY))


if __name__ == "__main__":
    sys.exit(report_errors(main))
