"""End of a run: save the codec, evaluate it, name the outputs."""

from __future__ import annotations

import logging
import math
import signal
from pathlib import Path
from typing import Any

from codec.config import ConfigError, fits
from codec.data.index import DataError
from codec.evaluation.evaluate import evaluate
from codec.evaluation.writing import print_summary
from codec.metrics.base import Metric
from codec.metrics.registry import choose_metrics
from codec.training.build import Run
from codec.training.checkpoints import is_healthy
from codec.training.resume import (
    what_is_saved,
)

log = logging.getLogger(__name__)


def finish(run: Run) -> int:
    """Save the averaged codec, evaluate it, print the paths of all outputs; returns the exit status."""
    module, trainer, stop, folder = run.module, run.trainer, run.stop, run.folder
    if not stop.received and is_healthy(module):
        trainer.save_checkpoint(stop.checkpoint)
    if not trainer.is_global_zero:
        return 0
    try:
        module.average.save(folder / "model")
    except OSError as error:
        raise OSError(
            f"{error}\nThe checkpoints in {stop.checkpoint.parent} are whole: free some space, then the same "
            "command with resume=auto saves the codec and evaluates it"
        ) from error
    if stop.received:
        name = signal.Signals(stop.received).name
        saved = "" if is_healthy(module) else f", which was not finite; {what_is_saved(stop.checkpoint)}"
        print(
            f"stopped by {name} at step {trainer.global_step}{saved}; "
            "go on with the same command and resume=auto"
        )
        return 128 + stop.received
    if trainer.global_step < (trainer.max_steps if trainer.max_steps > 0 else math.inf):
        limit = run.config["trainer"].get("max_time")
        print(
            f"training was ended at step {trainer.global_step} of {run.max_steps} by a callback or "
            f"trainer.max_time={limit}, which counts from the first step: go on with the same "
            "command, resume=auto and more time"
        )
    files = [file.located() for file in run.data.valid][: run.config["evaluate"]]
    if files:
        output, codec = folder / "evaluation", module.average.to(trainer.strategy.root_device)
        try:
            print_summary(evaluate(codec, files, output, metrics=run.metrics), output)
        except DataError as error:
            raise DataError(
                f"{error}: see the warnings above.\nThe training is finished and {folder}/model saved: when "
                "the files can be read, the same command with resume=auto evaluates it"
            ) from error
    print(whereabouts(folder, run.config))
    return 0


def perceptual_metrics(config: dict[str, Any]) -> list[Metric]:
    """Perceptual metrics of the final evaluation; ConfigError, before training, for a missing one."""
    names = config["metrics"] if config["evaluate"] else None
    if not fits(names, str | list | None):
        raise ConfigError(f"metrics: expected speech, music, all or names of metrics, got {names!r}")
    listed = names.split(",") if isinstance(names, str) else names or []
    try:
        chosen, left_out = choose_metrics(list(map(str, listed)))
    except ConfigError as error:
        raise ConfigError(f"metrics: {str(error).removeprefix('--metrics: ')}") from error
    for reason in left_out:
        log.warning("not scored: %s", reason)
    return chosen


def whereabouts(folder: Path, config: dict[str, Any]) -> str:
    """Paths of a run's outputs, and the next command."""
    board = "TensorBoard" in (config["logger"] or {}).get("_target_", "")
    outputs = {
        "model": "model",
        "evaluation": "originals, reconstructions, spectrograms of held-out files",
        "samples": "samples while it trained",
        "metrics.csv": "numbers",
    }
    lines = [f"{title}: {folder}/{name}" for name, title in outputs.items() if (folder / name).exists()]
    lines += [f"curves: tensorboard --logdir {folder}"] if board else []
    if config["data"].get("generate"):
        lines.append("next, on your own recordings: codec-train data.root=/path/to/wavs name=mine")
    else:
        lines.append(f"next, on other recordings: codec-evaluate {folder} /path/to/wavs")
    return "\n".join(lines)
