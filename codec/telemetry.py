"""Training telemetry: metrics, a progress bar, audio samples, and warnings of failing runs."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from codec.audio import write_wav
from codec.crops import Batch
from codec.distributed import all_gather_rows, all_reduce_sum, rank, world_size
from codec.files import mark_output
from codec.loggers import Clip, send_clip, to_loggers
from codec.metrics import codebook_usage
from codec.pictures import save_spectrogram_pair
from codec.quantizers.base import Quantizer
from codec.stages import label
from codec.training import CodecTraining, Step

log = logging.getLogger(__name__)
SETTLED = 500  # steps; earlier statistics are of an encoder that is hardly trained


def residual_energy(quantizer: Quantizer, latents: Tensor) -> list[float]:
    """Energy of the residual after each quantizer, in dB relative to the latents' energy."""
    codes = quantizer.encode(latents)
    energy = latents.float().square().sum()
    shares = [
        (latents - quantizer.decode(codes[:, : k + 1])).square().sum() / energy for k in range(codes.shape[1])
    ]
    return [10 * float(torch.log10(share.clamp(min=1e-10))) for share in shares]


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
        self.say_new_rate(trainer, pl_module)

    def say_new_rate(self, trainer: lightning.Trainer, module: CodecTraining) -> None:
        """Warn if a resumed run's learning rate differs from that of its last step."""
        optimizer, step = trainer.optimizers[0], trainer.global_step
        number, place = module.locate(max(step - 1, 0))
        base = module.stages[number].lr
        base = optimizer.defaults["lr"] if base is None else base
        old, new = optimizer.param_groups[0]["lr"], base * module.schedules[number].factor(place)
        if step and abs(new - old) > 0.01 * old:
            self.say(
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
        waited = all_gather_rows(torch.tensor([self.waited], device=module.device)).max().item()
        seconds = batch.audio.shape[0] * batch.audio.shape[-1] / module.codec.sample_rate
        codebook = codebook_health(module.quantizer, self.steps)
        losses = average_losses(self.steps)
        speed = {
            "speed/audio_seconds_per_second": seconds * world_size() * len(self.steps) / elapsed,
            "speed/data_wait": waited / elapsed,
        }
        if module.device.type == "cuda":
            speed["speed/peak_memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
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
            self.say(trainer, f"{words}, {self.clock(trainer)}")
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
                    self.say(trainer, warning)
        self.steps, self.waited = [], 0.0
        self.began = time.monotonic()

    def clock(self, trainer: lightning.Trainer) -> str:
        """Elapsed time, and estimated time left."""
        elapsed, done = time.monotonic() - self.started, trainer.global_step - self.first
        words = f"elapsed {tqdm.format_interval(elapsed)}"
        if trainer.max_steps < 0 or not done:
            return words
        remaining = (trainer.max_steps - trainer.global_step) * elapsed / done
        return f"{words}, left {tqdm.format_interval(remaining)}"

    def say(self, trainer: lightning.Trainer, text: str) -> None:
        """Print a line above the bar, on the first process."""
        if rank() == 0:
            where = f"step {trainer.global_step}/{trainer.max_steps}"
            with suppress(OSError):  # of a closed terminal; only a signal stops training
                tqdm.write(", ".join(filter(None, [where, self.label])) + f": {text}", file=sys.stderr)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print and log the validation scores; restart the clock, so that validation is no waiting time."""
        scores = {
            name.removeprefix("valid/"): float(score)
            for name, score in trainer.callback_metrics.items()
            if name.startswith("valid/")
        }
        self.say(trainer, "validation " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
        metrics = {f"valid/{name}": score for name, score in scores.items()}
        to_loggers(trainer, lambda logger: logger.log_metrics(metrics, trainer.global_step))
        self.began = time.monotonic()
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


def codebook_health(quantizer: Quantizer, steps: list[Step]) -> dict[str, float]:
    """Usage, perplexity, normalized entropy, replaced codes and residual energy in dB of each quantizer.

    Computed from the codes and latents of all processes.
    """
    if not quantizer.codebook_sizes:
        return {}
    codes = all_gather_rows(torch.cat([step.codes for step in steps]))
    health: dict[str, Any] = dict(codebook_usage(codes.cpu(), quantizer.codebook_sizes))
    replaced = [step.replaced for step in steps if step.replaced is not None]
    if replaced:
        health["replaced"] = torch.stack(replaced).sum(0)
    latents = steps[-1].latents
    # Hundreds of codes per frame (channelwise VQ) would take long; NaN latents are logged as skipped steps.
    if latents is not None and quantizer.num_quantizers <= 64:
        latents = all_gather_rows(latents)
        if bool(torch.isfinite(latents).all()):
            with torch.no_grad():
                health["residual_db"] = residual_energy(quantizer, latents)
    return {
        f"codebook/{name}_{k + 1}": float(v) for name, values in health.items() for k, v in enumerate(values)
    }


def short_summary(
    losses: Mapping[str, float], codebook: Mapping[str, float], speed: Mapping[str, float]
) -> dict:
    """Losses, codebook usage and speed, for the progress bar."""
    shown = {name: f"{value:.3g}" for name, value in losses.items() if name != "commitment"}
    usage = [value for name, value in codebook.items() if "/usage_" in name]
    if usage:
        shown["codes used"] = f"{sum(usage) / len(usage):.0%}"
    shown["x real time"] = f"{speed['speed/audio_seconds_per_second']:.3g}"
    return shown


def diverging(losses: Mapping[str, float], best: dict[str, float]) -> list[str]:
    """Warnings of losses above twice their lowest value; `best` holds the lowest values and is updated."""
    for name, value in losses.items():
        best[name] = min(value, best.get(name, value))
    return [
        f"{name} is {value:.3g} after {best[name]:.3g}: training diverges. Lower the learning rates and "
        "resume from best.ckpt, or raise training.adversarial_from"
        for name, value in losses.items()
        if value > 2 * best[name]
    ]


def warnings_in_words(
    losses: Mapping[str, float], codebook: Mapping[str, float], speed: Mapping[str, float], num_workers: int
) -> list[str]:
    """Warnings of codebook collapse, a dominant discriminator and slow data, each with a remedy."""
    warnings = []
    collapsed = [
        name.rpartition("_")[2] for name, value in codebook.items() if "/entropy_" in name and value < 0.2
    ]
    if collapsed:
        warnings.append(
            f"codebook {', '.join(collapsed)} is collapsing: its codes carry less than 20 % of their bits. "
            "Lower the learning rate, raise quantizer.codebook.dead_threshold, or use a smaller codebook"
        )
    if losses.get("discriminator", 1.0) < 0.02:
        warnings.append(
            "the discriminator tells every example apart: the generator learns little from it. Lower "
            "optimizer.discriminator.lr or raise training.adversarial_from"
        )
    if speed["speed/data_wait"] > 0.3:
        advice = (
            f"raise data.num_workers ({num_workers} now), or store the corpus as wav at sample_rate"
            if num_workers < (os.cpu_count() or 1)
            else "its cores are busy, or the files slow to read (flac, mp3, another rate, a network); store "
            "the corpus as wav at sample_rate on a local disk"
        )
        warnings.append(f"{speed['speed/data_wait']:.0%} of the time is spent waiting for data: {advice}")
    return warnings


class Samples(Callback):
    """Writes the first `count` validation clips, original and reconstruction, as wav and spectrogram."""

    def __init__(self, directory: Path, count: int = 4):
        self.directory = directory
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the clips of this batch with numbers below `count`."""
        assert isinstance(pl_module, CodecTraining)
        rate = pl_module.codec.sample_rate
        for number, original, estimate in zip(batch.numbers.tolist(), batch.audio, outputs, strict=True):
            if number >= self.count or not torch.isfinite(estimate).all():
                continue
            original, estimate = original.cpu().float(), estimate.detach().cpu().clamp(-1, 1)
            try:
                clip = self.write(number, trainer.global_step, original, estimate, rate)
            except OSError as error:
                log.error("samples of step %d are missing: %s", trainer.global_step, error)
            else:
                to_loggers(trainer, partial(send_clip, clip=clip))

    def write(self, number: int, step: int, original: Tensor, estimate: Tensor, rate: int) -> Clip:
        """Write wav files and spectrograms of one clip."""
        self.directory.mkdir(parents=True, exist_ok=True)
        mark_output(self.directory)
        stem = f"clip-{number}-step-{step:07d}"
        sounds = {"original": original, "reconstruction": estimate}
        files = {
            "original": self.directory / f"clip-{number}-original.wav",
            "reconstruction": self.directory / f"{stem}.wav",
        }
        for name, file in files.items():
            if name != "original" or not file.exists():
                write_wav(file, sounds[name].numpy(), rate)
        picture = self.directory / f"{stem}.png"
        save_spectrogram_pair(picture, original, estimate, rate, stem)
        return Clip(f"clip {number}", step, sounds, files, picture, rate)
