"""Training telemetry: metrics, a progress bar, audio samples, and warnings of failing runs."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from codec.data.crops import Batch
from codec.system.distributed import all_gather_rows, all_reduce_sum, rank, world_size
from codec.system.memory import peak_memory
from codec.training.health import SETTLED, codebook_health, diverging, warnings_in_words
from codec.training.loggers import to_loggers
from codec.training.module import CodecTraining
from codec.training.stages import label
from codec.training.step import Step

log = logging.getLogger(__name__)


class Telemetry(Callback):
    """Sends losses, codebook health and speed to all loggers and the progress bar, every `every` steps.

    The contents of the data folders, with the reason for each skipped file, are written to `report` at the
    start. Without a terminal, or with `bar=False`, each report is printed as a line.
    """

    def __init__(self, every: int, report: Path, bar: bool = True):
        self.every, self.wants_bar = every, bar
        self.data_report = report
        self.steps: list[Step] = []
        self.best: dict[str, float] = {}
        self.warned: set[str] = set()
        self.waited = 0.0
        self.place, self.label = 0, ""  # step within its stage, and the stage's label

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock and, on the first process, the bar."""
        assert isinstance(pl_module, CodecTraining)
        if rank() == 0:
            folders = "\n".join(index.report() for index in pl_module.audio_data.indexes)
            self.data_report.write_text(folders, encoding="utf-8")
        self.began = self.started = time.monotonic()
        self.first = trainer.global_step
        # In a file or a job's log a bar would be one endless line.
        self.terminal = self.wants_bar and sys.stderr.isatty()
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=rank() > 0 or not self.terminal,
        )
        self.warn_of_new_rate(trainer, pl_module)

    def warn_of_new_rate(self, trainer: lightning.Trainer, module: CodecTraining) -> None:
        """Warn if a resumed run's learning rate differs from that of its last step."""
        optimizer, step = trainer.optimizers[0], trainer.global_step
        number, place = module.locate(max(step - 1, 0))
        base = module.stages[number].lr
        base = optimizer.defaults["lr"] if base is None else base
        old, new = optimizer.param_groups[0]["lr"], base * module.schedules[number].factor(place)
        if step and abs(new - old) > 0.01 * old:
            self.print_line(
                trainer,
                f"the learning rate goes from {old:.3g} to {new:.3g}, because its options are others than "
                "before. A cosine spans trainer.max_steps unless optimizer.schedule.total_steps is given",
            )

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last step as waiting for data; show the current stage."""
        assert isinstance(pl_module, CodecTraining)
        self.waited += time.monotonic() - pl_module.step_ended
        number, self.place = pl_module.locate(trainer.global_step)
        self.label = label(pl_module.stages, number)
        self.bar.set_description(self.label, refresh=False)
        if self.place == 0:  # the losses of two stages are not comparable
            self.best.clear()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Collect a step; report every `every` steps and at the end of a stage."""
        assert isinstance(pl_module, CodecTraining)
        if self.steps:  # latents are large, and only those of the last step are used
            self.steps[-1] = self.steps[-1]._replace(latents=None)
        self.steps.append(outputs["step"])
        self.bar.update()
        stage_ends = pl_module.locate(trainer.global_step)[1] == 0
        if trainer.global_step % self.every == 0 or stage_ends:
            self.report(trainer, pl_module, batch)

    def report(self, trainer: lightning.Trainer, module: CodecTraining, batch: Batch) -> None:
        """Send the metrics since the last report to loggers, bar and terminal."""
        elapsed = time.monotonic() - self.began
        wait = all_gather_rows(torch.tensor([self.waited], device=module.device)).max().item()
        seconds = batch.audio.shape[0] * batch.audio.shape[-1] / module.codec.sample_rate
        codebook = codebook_health(module.quantizer, self.steps)
        losses = average_losses(self.steps)
        speed = {
            "speed/audio_seconds_per_second": seconds * world_size() * len(self.steps) / elapsed,
            "speed/data_wait": wait / elapsed,
        }
        cuda = module.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(module.device) if cuda else peak_memory()
        speed["speed/peak_memory_gib"] = peak / 2**30
        data = module.audio_data
        speed["speed/audio_hours"] = data.seen * data.segment_length / data.sample_rate / 3600
        optimizer = trainer.optimizers[0]
        metrics = {f"train/{name}": value for name, value in losses.items()} | codebook | speed
        metrics |= {f"gradient_norm/{name}": norm for name, norm in module.gradient_norms.items()}
        metrics |= {
            "train/learning_rate": optimizer.param_groups[0]["lr"],
            "train/skipped": float(module.skipped),
        }
        to_loggers(trainer, lambda logger: logger.log_metrics(metrics, trainer.global_step))
        summary = short_summary(losses, codebook, speed)
        self.bar.set_postfix(summary, refresh=True)
        if not self.terminal:
            words = ", ".join(f"{name} {value}" for name, value in summary.items())
            self.print_line(trainer, f"{words}, {self.clock(trainer)}")
        if self.place + 1 >= SETTLED:
            reconstruction = {
                name: losses[name] for name in module.objective.reconstruction if name in losses
            }
            for warning in [
                *diverging(reconstruction, self.best),
                *warnings_in_words(losses, codebook, speed, module.audio_data.num_workers),
            ]:
                kind = re.sub(r"[\d.,]+", "", warning)
                if kind not in self.warned:
                    self.warned.add(kind)
                    self.print_line(trainer, warning)
        self.steps, self.waited = [], 0.0
        self.began = time.monotonic()

    def clock(self, trainer: lightning.Trainer) -> str:
        """Elapsed time, and estimated time left."""
        elapsed, steps = time.monotonic() - self.started, trainer.global_step - self.first
        words = f"elapsed {tqdm.format_interval(elapsed)}"
        if trainer.max_steps < 0 or not steps:
            return words
        remaining = (trainer.max_steps - trainer.global_step) * elapsed / steps
        return f"{words}, left {tqdm.format_interval(remaining)}"

    def print_line(self, trainer: lightning.Trainer, text: str) -> None:
        """Print a line above the bar, on the first process."""
        if rank() == 0:
            position = f"step {trainer.global_step}/{trainer.max_steps}"
            with suppress(OSError):  # of a closed terminal; only a signal stops training
                tqdm.write(", ".join(filter(None, [position, self.label])) + f": {text}", file=sys.stderr)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print and log the validation scores; restart the clock, so that validation is no waiting time."""
        scores = {
            name.removeprefix("valid/"): float(score)
            for name, score in trainer.callback_metrics.items()
            if name.startswith("valid/")
        }
        self.print_line(
            trainer, "validation " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        )
        metrics = {f"valid/{name}": score for name, score in scores.items()}
        to_loggers(trainer, lambda logger: logger.log_metrics(metrics, trainer.global_step))
        assert isinstance(pl_module, CodecTraining)
        self.began = pl_module.step_ended = time.monotonic()
        self.steps, self.waited = [], 0.0

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the bar."""
        self.bar.close()


def average_losses(steps: list[Step]) -> dict[str, float]:
    """Mean of each loss over all processes and the steps that computed it, without skipped steps."""
    names = {name: None for step in steps for name in step.losses}
    values = {
        name: [step.losses[name] for step in steps if step.finite and name in step.losses] for name in names
    }
    means = [torch.stack(v).mean() for v in values.values() if v]
    return {
        name: float(total) / world_size()
        for name, total in zip((n for n, v in values.items() if v), all_reduce_sum(means), strict=True)
    }


def short_summary(
    losses: Mapping[str, float], codebook: Mapping[str, float], speed: Mapping[str, float]
) -> dict:
    """Losses, codebook usage, speed, audio trained on and peak memory, for the progress bar."""
    values = {name: f"{value:.3g}" for name, value in losses.items() if name != "commitment"}
    usage = [value for name, value in codebook.items() if "/usage_" in name]
    if usage:
        values["codes used"] = f"{sum(usage) / len(usage):.0%}"
    values["x real time"] = f"{speed['speed/audio_seconds_per_second']:.3g}"
    values["audio"] = f"{speed['speed/audio_hours']:.3g} h"
    values["memory"] = f"{speed['speed/peak_memory_gib']:.2f} GiB"
    return values
