"""Time, memory, loading and disk of a whole training, from the measurements of a survey."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from codec.training.planning import RECOMPUTED, Row, Survey

GIB = 2**30
SPARE = 1.25  # speed of the loading processes, relative to that of the training


def forecast(survey: Survey, data_seconds: float, model_bytes: int) -> dict[str, Any]:
    """Forecast of everything that was measured; times in seconds, sizes in bytes."""
    config = survey.config
    bases = [row for part in survey.parts if (row := survey.base(part))]
    figures: dict[str, Any] = {
        "measurements": [measurement(row, config) for row in survey.rows],
        "largest_batch_size": survey.largest(),
        "options": {named(row): verdict(survey, row) for row in survey.trials()},
        "remedy": " ".join(overrides(survey.remedy)),
        "checkpointing": checkpointing(survey),
    }
    if len(bases) < len(survey.parts):
        return figures
    batch_seconds = bases[0].batch_size * config["data"]["segment_seconds"]
    steps = config["trainer"]["max_steps"]
    lengths = [1 if part.steps is None else part.steps for part in survey.parts]
    times = [step_seconds(row, config["data"]["num_workers"]) for row in bases]
    training = sum(length * time for length, time in zip(lengths, times, strict=True))
    last = bases[-1].result
    if steps > 0:
        figures["steps"], figures["seconds_of_steps"] = steps, training
        figures["seconds_of_validations"] = (
            steps // config["trainer"]["val_check_interval"] * last["validation"]
        )
        figures["seconds_of_checkpoints"] = steps // config["checkpoint"]["save_every"] * last["saving"]
        figures["seconds_of_run"] = sum(
            figures[f"seconds_of_{name}"] for name in ("steps", "validations", "checkpoints")
        )
        checkpoints = 2 + steps // (config["checkpoint"]["keep_every"] or steps + 1)
        figures["disk"] = checkpoints * last["checkpoint"] + model_bytes
    mean = training / sum(lengths) if steps > 0 else times[-1]
    figures["pass_steps"] = data_seconds / batch_seconds
    figures["pass_seconds"] = figures["pass_steps"] * mean
    figures["disk_free"] = free_space(Path(config["run_dir"]))
    figures["speedup"] = speedup(survey)
    fastest = min(times) / figures["speedup"]
    figures["loading_workers"] = max(1, -(-SPARE * max(row.result["loading"] for row in bases) // fastest))
    return figures


def checkpointing(survey: Survey) -> dict[str, float] | None:
    """Memory that checkpointing adds to a batch size that fits, and its relative time; None if unmeasured."""
    pairs = [(row, survey.compared(row)) for row in survey.rows if row.options == RECOMPUTED]
    for row, base in pairs:
        if base and row.result["fits"]:
            more = row.result["peak"] - base.result["peak"]
            return {"more_memory": more, "time": row.result["seconds"] / base.result["seconds"]}
    return None


def measurement(row: Row, config: Mapping[str, Any]) -> dict[str, Any]:
    """Measurement as plain numbers, with speeds."""
    figures = {"part": row.part.name, "batch_size": row.batch_size, "options": named(row), **row.result}
    if row.result["fits"]:
        figures["steps_per_second"] = 1 / row.result["seconds"]
        audio = row.batch_size * config["data"]["segment_seconds"]
        figures["audio_seconds_per_second"] = audio / row.result["seconds"]
    return figures


def named(row: Row) -> str:
    """Options of a measurement as overrides."""
    return " ".join(overrides(row.options))


def overrides(options: Mapping[str, Any]) -> list[str]:
    """Options as Hydra overrides."""
    return [f"{name.replace('_', '.', 1)}={str(value).lower()}" for name, value in options.items()]


def verdict(survey: Survey, row: Row) -> dict[str, Any]:
    """Speed of a measurement's last option relative to that without it, and True if it pays."""
    base = survey.compared(row)
    if base is None or not row.result["fits"]:
        return {"pays": False, "error": row.result.get("error", "does not fit into memory")}
    return {
        "pays": survey.pays(row),
        "speed": base.result["seconds"] / row.result["seconds"],
        "more_seconds_to_start": row.result["starting"] - base.result["starting"],
    }


def speedup(survey: Survey) -> float:
    """Speed with all options that pay, relative to that of the config."""
    row = next((row for row in survey.trials() if row.options == survey.best()), None)
    own = row and (row.part, row.batch_size, survey.remedy)
    base = next((one for one in survey.rows if one[:3] == own), None)
    return base.result["seconds"] / row.result["seconds"] if row and base else 1.0


def step_seconds(row: Row, workers: int) -> float:
    """Seconds of a step in a long run, whose loading processes have no batches in reserve."""
    return max(row.result["seconds"], row.result["loading"] / workers if workers else 0.0)


def free_space(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(
        next(path for path in (folder, *folder.absolute().parents) if path.exists())
    ).free


def cores() -> int:
    """Number of cores of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(survey: Survey, given: Sequence[str], workers: float) -> str:
    """Command that trains with the recommended options: those given, and those that fit and pay."""
    data, chosen = survey.config["data"], overrides(survey.best())
    fitting, largest = survey.base(survey.parts[0]), survey.largest() or 0
    if fitting and fitting.batch_size < data["batch_size"]:
        chosen.append(f"data.batch_size={max(largest, fitting.batch_size)}")
    if data["num_workers"] < (wanted := min(int(workers), max(1, cores() - 1))) and cores() > 1:
        chosen.append(f"data.num_workers={wanted}")
    replaced = tuple(f"{one.partition('=')[0]}=" for one in chosen)
    options = [one for one in given if not one.lstrip("+").startswith(replaced or "\0")]
    return shlex.join(["codec-train", *options, *chosen])


def line(row: Row, config: Mapping[str, Any]) -> str:
    """Row of the table: part and options, batch size, speed, memory."""
    figures = measurement(row, config)
    start = f"{' '.join([row.part.name, named(row)]).strip():<48}{row.batch_size:>6}"
    if not row.result["fits"]:
        return f"{start}  {row.result.get('error', 'does not fit into memory')}"
    return (
        f"{start}{figures['steps_per_second']:>10.3g}{figures['audio_seconds_per_second']:>10.3g}"
        f"{figures['peak'] / GIB:>8.2f} GiB"
    )


def in_words(figures: Mapping[str, Any], workers: int) -> str:
    """Forecast as text."""
    lines = []
    if "steps" in figures:
        extra = figures["seconds_of_validations"] + figures["seconds_of_checkpoints"]
        lines.append(
            f"{figures['steps']} steps: {clock(figures['seconds_of_run'])}, {clock(extra)} of them "
            "validations and checkpoints; the start and the final evaluation come on top"
        )
        lines.append(
            f"disk for checkpoints and model: {figures['disk'] / GIB:.2f} GiB, "
            f"{figures['disk_free'] / GIB:.0f} GiB are free"
        )
    if "pass_steps" in figures:
        lines.append(
            f"one pass of the data: {figures['pass_steps']:.0f} steps, {clock(figures['pass_seconds'])}"
        )
        lines.append(f"loading processes that keep up: {figures['loading_workers']:.0f} ({workers} now)")
    if figures["largest_batch_size"]:
        lines.append(f"largest data.batch_size in the free memory: about {figures['largest_batch_size']}")
    if figures["remedy"]:
        lines.append(f"fastest option by which the config's batch size fits: {figures['remedy']}")
    if costs := figures["checkpointing"]:
        lines.append(
            f"{' '.join(overrides(RECOMPUTED))}: {costs['more_memory'] / GIB:+.2f} GiB, "
            f"{costs['time']:.2f} times the time of a step"
        )
    for name, one in figures["options"].items():
        words = one.get("error") or (
            f"{one['speed']:.2f} times as fast, {one['more_seconds_to_start']:+.0f} s to start"
        )
        lines.append(f"{name}: {words}; {'pays' if one['pays'] else 'does not pay'}")
    if figures.get("speedup", 1.0) > 1:
        lines.append(f"with the options that pay: {figures['speedup']:.2f} times as fast")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as `3:20:00`."""
    return tqdm.format_interval(seconds)
