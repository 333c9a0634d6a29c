"""Measurement of a few training steps, in a process of its own.

`python -m codec.training.probe PARENT < request` ends with the process of the number `PARENT`. A request is
`config` (resolved), `start` and `steps` of a part of the run, `seconds` to measure and `folder` for all
that the run writes. The measurement is written into `folder` as `result.json`.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from codec.config import ConfigError
from codec.data.index import DataError
from codec.data.loader import end_with
from codec.data.module import AudioDataModule
from codec.system.device import device_name
from codec.system.files import FileError
from codec.system.memory import available_memory, peak_memory, private_memory, refuse_above
from codec.training.build import Run, build_parts
from codec.training.metrics_csv import quiet_libraries
from codec.training.module import CodecTraining
from codec.training.run import fit
from codec.training.signals import StopOnSignal
from codec.training.trainer import build_trainer

RESULT = "result.json"
WARM_STEPS, WARM_SECONDS = 3, 20.0  # before measuring, whichever ends first
FEW, ENOUGH = 2, 8  # steps: at least, and to wait for both kinds of steps
NEVER = 2**31  # steps between checkpoints and validations, which are measured by themselves


class Meter(Callback):
    """Starts the run at step `start`, times its steps, a validation and a checkpoint, then ends the run.

    `times` has the seconds of each step, as `clocks` does, and True for an update of the discriminator.
    """

    def __init__(self, start: int, steps: int | None, seconds: float):
        self.start, self.limit, self.seconds = start, steps, seconds
        self.warm, self.done = WARM_STEPS if steps is None else min(WARM_STEPS, steps // 2), 0
        self.times: list[tuple[np.ndarray, bool]] = []
        self.share, self.began, self.ended = 1.0, 0.0, np.zeros(2)
        self.starting = self.validation = self.saving = 0.0
        self.checkpoint = self.loaders = 0

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Set the step of the run."""
        loop: Any = trainer.fit_loop.epoch_loop
        loop.manual_optimization.optim_step_progress.total.completed = self.start
        self.began = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Find the probability of a discriminator update, 1 if each step or none has one; start the clock."""
        assert isinstance(pl_module, CodecTraining)
        stage = pl_module.stages[
            pl_module.locate(self.start)[0]
        ]  # which the module enters after its callbacks
        fooling = stage.adversarial and self.start >= pl_module.adversarial_from
        self.share = pl_module.optimization.discriminator_update_probability if fooling else 1.0
        self.ended = clocks()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Time a step; end the run after enough of them."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock = clocks()
        self.done += 1
        if self.warm:
            self.starting = float(clock[0]) - self.began
            self.warm = 0 if self.starting > WARM_SECONDS else self.warm - 1
        else:
            self.times.append((clock - self.ended, "discriminator" in outputs["step"].losses))
        enough = len(self.times) >= FEW and sum(step[0] for step, _ in self.times) >= self.seconds
        mixed = self.share < 1 and len({updated for _, updated in self.times}) < 2
        if self.done == self.limit or (enough and not (mixed and len(self.times) < ENOUGH)):
            self.loaders = sum(private_memory(child.pid or 0) for child in multiprocessing.active_children())
            trainer.should_stop = True  # Lightning validates first
        self.ended = clocks()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock of the validation."""
        self.ended = clocks()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Time the validation, with its samples and checkpoints, and one checkpoint."""
        self.validation = float((clocks() - self.ended)[0])
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        start = time.monotonic()
        trainer.save_checkpoint(path)
        self.saving = time.monotonic() - start
        with suppress(OSError):
            self.checkpoint = path.stat().st_size

    def step_seconds(self) -> np.ndarray:
        """Mean seconds of a step, as `clocks`, with the share of discriminator updates of a long run."""
        kinds = {flag: [one for one, updated in self.times if updated == flag] for flag in (True, False)}
        if not all(kinds.values()):
            return np.mean([step for step, _ in self.times], axis=0)
        with_update, without = (np.mean(kinds[flag], axis=0) for flag in (True, False))
        return self.share * with_update + (1 - self.share) * without


def clocks() -> np.ndarray:
    """Seconds of the wall clock, and CPU seconds of this process, which other load does not stretch."""
    return np.array([time.monotonic(), time.process_time()])


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Train a few steps of the request's config; times in seconds, memory in bytes, and `fits`."""
    config, folder = request["config"], Path(request["folder"])
    quiet_libraries()
    lightning.seed_everything(config["seed"], workers=False, verbose=False)
    limit = available_memory()
    try:
        data, module = build_parts(config)
        stop = StopOnSignal(folder / "checkpoints" / "last.ckpt")
        trainer = build_trainer(config, folder, stop, None)
        device = trainer.strategy.root_device
        if device.type == "cuda":
            limit = torch.cuda.mem_get_info(device)[0]
        elif limit:
            refuse_above(limit)
        meter = Meter(request["start"], request["steps"], request["seconds"])
        cast(Any, trainer).callbacks.append(meter)
        fit(Run(config, folder, None, data, module, [], stop, trainer))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return {"fits": False, "limit": limit}
    seconds, cpu_seconds = map(float, meter.step_seconds())
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if cuda else peak_memory() + meter.loaders
    return {
        "fits": True,
        "device": device_name(device) + f", {torch.get_num_threads()} threads" * (device.type == "cpu"),
        "limit": limit,
        "peak": peak,
        "measured_steps": len(meter.times),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "loading": loading_seconds(data),
        **{
            name: getattr(meter, name)
            for name in ("starting", "validation", "saving", "checkpoint", "loaders")
        },
    }


def out_of_memory(error: BaseException) -> bool:
    """True for an allocation that failed, on a GPU or on the host."""
    words = str(error).lower()
    messages = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
    messages += ("could not create a primitive", "could not execute a primitive")  # of oneDNN
    return any(message in words for message in messages) or isinstance(
        error, torch.OutOfMemoryError | MemoryError
    )


def loading_seconds(data: AudioDataModule) -> float:
    """Seconds in which one process loads a batch."""
    torch.set_num_threads(1)
    start = time.monotonic()
    data.crops(0, data.batch_size)
    return time.monotonic() - start


def main() -> None:
    """Measure the request on standard input; a user's mistake becomes the result's `error`."""
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    request = json.load(sys.stdin)
    try:
        result = measure(request)
    except (ConfigError, DataError, FileError, OSError) as error:
        result = {"error": str(error)}
    Path(request["folder"], RESULT).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
