"""Checkpoints that are whole or absent, and stopping on a signal without losing a step."""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from codec.config import ConfigError
from codec.distributed import all_reduce_sum
from codec.files import remove_leftovers, take, written_whole

log = logging.getLogger(__name__)
LOCK = ".lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process; ConfigError that names the process which has it already.

    The system gives the folder back however the process ends. A folder that stayed empty is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            take(file)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ConfigError(
                    f"{folder}: {file.read() or 'another process'} trains into it: wait for that, stop it, "
                    "or choose another name=..."
                ) from error
            log.warning("%s is not locked against a second run: %s", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            if os.listdir(folder) == [LOCK]:
                with suppress(OSError):  # Windows removes no file that is open
                    (folder / LOCK).unlink()
                    folder.rmdir()


def reason_in_words(error: BaseException, folder: Path) -> str:
    """Why nothing could be written to a folder: torch hides a full disk behind a message of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left on the disk of {folder}"
        cause = cause.__cause__ or cause.__context__
    full = folder.is_dir() and shutil.disk_usage(folder).free < 2**20
    return f"no space left on the disk of {folder}" if full else str(error)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, flushes it to the disk, then renames it.

    A kill or a full disk leaves the previous checkpoint as it was. When one cannot be written, training
    goes on and the failure is logged: the next one may succeed, and nothing was lost that was saved.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save `checkpoint` as `path`."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path, durable=True) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        # torch reports a failed write as RuntimeError, the file system as OSError.
        except (OSError, RuntimeError) as error:
            reason = reason_in_words(error, path.parent)
            previous = "The previous checkpoint is intact" if path.exists() else "There is none before it"
            log.error("%s NOT saved: %s. %s; training goes on.", path, reason, previous)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", *_: Any, **__: Any) -> dict[str, Any]:
        """Load what `save_checkpoint` saved, without unpickling any object."""
        return torch.load(path, map_location=map_location, weights_only=True)


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
    remove_leftovers(directory)
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


def forget_best(callbacks: Iterable[Callback]) -> None:
    """Let `best.ckpt` be replaced by the next score, whatever it is: scores before it mean something else."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models.clear()


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
