"""Time, memory, loading and disk of a whole training, from the measurements of a survey."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from codec.training.planning import Row, Survey

GIB = 2**30
SPARE = 1.25  # speed of the loading processes, relative to that of the training


def forecast(survey: Survey, data_seconds: float, model_bytes: int) -> dict[str, Any]:
    """Forecast of everything that was measured; times in seconds, sizes in bytes."""
    config = survey.config
    bases = [row for part in survey.parts if (row := survey.base(part))]
    found: dict[str, Any] = {
        "measurements": [measurement(row, config) for row in survey.rows],
        "largest_batch_size": survey.largest(),
        "options": {named(row): verdict(survey, row) for row in survey.rows if row.options},
    }
    if len(bases) < len(survey.parts):
        return found
    batch_seconds = bases[0].batch_size * config["data"]["segment_seconds"]
    steps = config["trainer"]["max_steps"]
    lengths = [1 if part.steps is None else part.steps for part in survey.parts]
    times = [step_seconds(row, config["data"]["num_workers"]) for row in bases]
    training = sum(length * time for length, time in zip(lengths, times, strict=True))
    last = bases[-1].found
    if steps > 0:
        found["steps"], found["seconds_of_steps"] = steps, training
        found["seconds_of_validations"] = (
            steps // config["trainer"]["val_check_interval"] * last["validation"]
        )
        found["seconds_of_checkpoints"] = steps // config["checkpoint"]["save_every"] * last["saving"]
        kept = steps // (config["checkpoint"]["keep_every"] or steps + 1)
        found["disk"] = (2 + kept) * last["checkpoint"] + model_bytes
    mean = training / sum(lengths) if steps > 0 else times[-1]
    found["pass_steps"] = data_seconds / batch_seconds
    found["pass_seconds"] = found["pass_steps"] * mean
    found["disk_free"] = free_space(Path(config["run_dir"]))
    found["speedup"] = speedup(survey)
    fastest = min(times) / found["speedup"]
    found["loading_workers"] = max(1, -(-SPARE * max(row.found["loading"] for row in bases) // fastest))
    return found


def measurement(row: Row, config: Mapping[str, Any]) -> dict[str, Any]:
    """Measurement as plain numbers, with speeds."""
    found = {"part": row.part.name, "batch_size": row.batch_size, "options": named(row), **row.found}
    if row.found["fits"]:
        found["steps_per_second"] = 1 / row.found["seconds"]
        audio = row.batch_size * config["data"]["segment_seconds"]
        found["audio_seconds_per_second"] = audio / row.found["seconds"]
    return found


def named(row: Row) -> str:
    """Options of a measurement as overrides."""
    return " ".join(overrides(row.options))


def overrides(options: Mapping[str, Any]) -> list[str]:
    """Options as Hydra overrides."""
    return [f"{name.replace('_', '.', 1)}={str(value).lower()}" for name, value in options.items()]


def verdict(survey: Survey, row: Row) -> dict[str, Any]:
    """Speed of a measurement's last option relative to that without it, and True if it pays."""
    base = survey.compared(row)
    if base is None or not row.found["fits"]:
        return {"pays": False, "error": row.found.get("error", "does not fit into memory")}
    return {
        "pays": survey.pays(row),
        "speed": base.found["seconds"] / row.found["seconds"],
        "more_seconds_to_start": row.found["starting"] - base.found["starting"],
    }


def speedup(survey: Survey) -> float:
    """Speed with all options that pay, relative to that of the config."""
    row = next((row for row in survey.rows if row.options and row.options == survey.best()), None)
    base = row and next((one for one in survey.rows if one[:3] == (row.part, row.batch_size, {})), None)
    return base.found["seconds"] / row.found["seconds"] if row and base else 1.0


def step_seconds(row: Row, workers: int) -> float:
    """Seconds of a step in a long run, whose loading processes have no batches in reserve."""
    return max(row.found["seconds"], row.found["loading"] / workers if workers else 0.0)


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
    kept = [one for one in given if not one.lstrip("+").startswith(replaced or "\0")]
    return shlex.join(["codec-train", *kept, *chosen])


def line(row: Row, config: Mapping[str, Any]) -> str:
    """Row of the table: part and options, batch size, speed, memory."""
    found = measurement(row, config)
    start = f"{' '.join([row.part.name, named(row)]).strip():<48}{row.batch_size:>6}"
    if not row.found["fits"]:
        return f"{start}  {row.found.get('error', 'does not fit into memory')}"
    return (
        f"{start}{found['steps_per_second']:>10.3g}{found['audio_seconds_per_second']:>10.3g}"
        f"{found['peak'] / GIB:>8.2f} GiB"
    )


def in_words(found: Mapping[str, Any], workers: int) -> str:
    """Forecast as text."""
    lines = []
    if "steps" in found:
        extra = found["seconds_of_validations"] + found["seconds_of_checkpoints"]
        whole = found["seconds_of_steps"] + extra
        lines.append(
            f"{found['steps']} steps: {clock(whole)}, {clock(extra)} of them validations and checkpoints; "
            "the start and the final evaluation come on top"
        )
        lines.append(
            f"disk for checkpoints and model: {found['disk'] / GIB:.2f} GiB, "
            f"{found['disk_free'] / GIB:.0f} GiB are free"
        )
    if "pass_steps" in found:
        lines.append(f"one pass of the data: {found['pass_steps']:.0f} steps, {clock(found['pass_seconds'])}")
        lines.append(f"loading processes that keep up: {found['loading_workers']:.0f} ({workers} now)")
    if found["largest_batch_size"]:
        lines.append(f"largest data.batch_size in the free memory: about {found['largest_batch_size']}")
    for name, one in found["options"].items():
        words = one.get("error") or (
            f"{one['speed']:.2f} times as fast, {one['more_seconds_to_start']:+.0f} s to start"
        )
        lines.append(f"{name}: {words}; {'pays' if one['pays'] else 'does not pay'}")
    if found.get("speedup", 1.0) > 1:
        lines.append(f"with the options that pay: {found['speedup']:.2f} times as fast")
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as `3:20:00`."""
    return tqdm.format_interval(seconds)
