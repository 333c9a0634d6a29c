"""Checkpoints that are whole or absent, and stopping on a signal without losing a step."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from codec.distributed import all_reduce_sum

log = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, flushes it to the disk, then renames it.

    A kill or a full disk leaves the previous checkpoint as it was. When one cannot be written, training
    goes on and the failure is logged: the next one may succeed, and nothing was lost that was saved.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save `checkpoint` as `path`."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        # torch reports a failed write as RuntimeError, the file system as OSError.
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            log.error("%s NOT saved: %s. The previous checkpoint is intact; free some space.", path, error)


def checkpoint_callbacks(
    directory: Path, save_every: int = 1000, keep_every: int | None = None
) -> list[ModelCheckpoint]:
    """Callbacks that keep `last.ckpt`, `best.ckpt` (lowest mel distance) and one every `keep_every` steps."""
    if save_every < 1 or (keep_every is not None and keep_every < 1):
        raise ValueError(f"save_every and keep_every must be at least 1 step, got {save_every}, {keep_every}")
    common: dict[str, Any] = {
        "dirpath": directory,
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
        "save_on_train_epoch_end": False,
    }
    for leftover in directory.glob(".*.ckpt.*"):
        leftover.unlink(missing_ok=True)  # of a process that was killed while it saved
    callbacks = [
        ModelCheckpoint(filename="best", monitor="valid/mel", save_top_k=1, **common),
        LastCheckpoint(filename="last", every_n_train_steps=save_every, **common),
    ]
    if keep_every:
        callbacks.append(
            ModelCheckpoint(
                filename="step-{step:07d}", every_n_train_steps=keep_every, save_top_k=-1, **common
            )
        )
    return callbacks


class LastCheckpoint(ModelCheckpoint):
    """Saves after each validation too: a resumed run has to know the best score so far."""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save `last.ckpt`; this callback stands behind the one that keeps the best."""
        trainer.save_checkpoint(Path(str(self.dirpath)) / f"{self.filename}.ckpt")


class StopOnSignal(Callback):
    """On SIGINT or SIGTERM finish the step, save `last.ckpt` and stop, on all processes together.

    A second SIGINT interrupts at once. `received` is the signal that stopped the run, if one did.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over both signals as soon as Lightning has set its own handlers."""
        # No hook lies between that and the start of the workers, which may take a second; Lightning's handler
        # would end the training without saving it, and without the other processes.
        connector: Any = trainer._signal_connector
        register = connector.register_signal_handlers
        connector.register_signal_handlers = lambda: (register(), self.take_over())

    def take_over(self) -> None:
        """Answer both signals from now on."""
        self.previous = {
            number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def receive(self, number: int, frame: Any) -> None:
        """Remember the signal until the step is done."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop if any process got a signal: the others would wait for it for ever."""
        flag = torch.tensor(int(self.received is not None), device=pl_module.device)
        if int(all_reduce_sum([flag])[0]):
            self.received = self.received or signal.SIGTERM
            trainer.save_checkpoint(self.checkpoint)
            trainer.should_stop = True
            # Lightning would validate before it stops; whoever sent the signal may not wait that long.
            trainer.limit_val_batches = 0

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the signals back."""
        self.restore()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: Any
    ) -> None:
        """Give the signals back."""
        self.restore()

    def restore(self) -> None:
        """Put back the handlers from before training."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
