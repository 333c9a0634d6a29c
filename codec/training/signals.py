"""Stopping on a signal: save, then leave with its exit status."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from codec.data.loader import STOPPING
from codec.system.distributed import all_reduce_sum, world_size
from codec.training.checkpoints import is_healthy

PATIENCE = 10  # seconds from a signal to the start of the next step, at most


class StoppedWaiting(Exception):
    """No step started within `PATIENCE` seconds of a signal that was received while waiting for data."""


class StopOnSignal(Callback):
    """On SIGINT, SIGTERM, SIGHUP or SIGUSR1, finishes the step, saves `last.ckpt` and stops all processes.

    SIGHUP is sent by a closing terminal and is ignored under nohup; SIGUSR1 by a scheduler before the time
    limit. After a step that is not finite, the previous `last.ckpt` stays. If the next step does not start
    for lack of data, StoppedWaiting ends the training.

    A second SIGINT interrupts at once. `received` is the signal that stopped the run, None without one.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.received: int | None = None
        self.previous: dict[int, Any] = {}
        self.waiting = True

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Install the signal handlers as soon as Lightning has set its own."""
        # Lightning has no hook between its handlers and the start of the workers, which may take a second;
        # its handler would end this process alone, without a checkpoint.
        connector: Any = trainer._signal_connector
        register = connector.register_signal_handlers
        connector.register_signal_handlers = lambda: (register(), self.take_over())

    def take_over(self) -> None:
        """Install the signal handlers."""
        handlers = {number: self.receive for number in STOPPING}
        if hasattr(signal, "SIGHUP"):
            if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
                del handlers[signal.SIGHUP]
            handlers[signal.SIGALRM] = self.give_up
        self.previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def receive(self, number: int, frame: Any) -> None:
        """Store the signal until the step is done."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if signal.Signals(number).name == "SIGHUP":
            leave_terminal()
        if self.waiting and hasattr(signal, "alarm"):
            signal.alarm(PATIENCE)

    def give_up(self, number: int, frame: Any) -> None:
        """Raise StoppedWaiting if no step has started."""
        if self.waiting:
            raise StoppedWaiting

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        """Mark the data as received."""
        self.waiting = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        """Stop all processes if one received a signal; otherwise the others would wait for it forever."""
        stops = self.received is not None
        if world_size() > 1:
            stops = bool(all_reduce_sum([torch.tensor(int(stops), device=pl_module.device)])[0])
        if stops:
            self.received = self.received or signal.SIGTERM
            if is_healthy(pl_module):
                trainer.save_checkpoint(self.checkpoint)
            trainer.should_stop = True
            # Lightning would validate before it stops; a scheduler may kill the job before that ends.
            trainer.limit_val_batches = 0
        else:
            self.waiting = True

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Mark the data as received: validation clips are in memory."""
        self.waiting = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Mark the next batch as awaited."""
        self.waiting = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restore the previous signal handlers."""
        self.restore()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: Any
    ) -> None:
        """Restore the previous signal handlers."""
        self.restore()

    def restore(self) -> None:
        """Restore the handlers from before training."""
        self.waiting = False
        if self.received and hasattr(signal, "alarm"):
            signal.alarm(0)
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def leave_terminal() -> None:
    """Redirect stdout and stderr to null unless they are files: writing to a closed terminal would fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor)
    os.close(null)
