"""Atomic checkpoints, and callbacks that stop on a signal without losing a step."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from codec.system.files import remove_leftovers, written_whole

log = logging.getLogger(__name__)


def reason_in_words(error: BaseException, folder: Path) -> str:
    """Reason for a failed write to a folder; torch replaces the error of a full disk by its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left on the disk of {folder}"
        cause = cause.__cause__ or cause.__context__
    full = folder.is_dir() and shutil.disk_usage(folder).free < 2**20
    return f"no space left on the disk of {folder}" if full else str(error)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, flushes it to the disk, then renames it.

    A kill or a full disk leaves the previous checkpoint intact. A failed write is logged and training
    continues.
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
        """Load a checkpoint without unpickling arbitrary objects (`weights_only`)."""
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
    callbacks: list[ModelCheckpoint] = [
        HealthyCheckpoint(filename="best", monitor="valid/mel", save_top_k=1, **common),
        LastCheckpoint(save_every, filename="last", every_n_train_steps=save_every, **common),
    ]
    if keep_every:
        callbacks.append(
            HealthyCheckpoint(
                filename="step-{step:07d}", every_n_train_steps=keep_every, save_top_k=-1, **common
            )
        )
    return callbacks


def forget_best(callbacks: Iterable[Callback]) -> None:
    """Discard the best score, so that the next one replaces `best.ckpt`: stages are not comparable."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models.clear()


def is_healthy(module: Any) -> bool:
    """True after a finite step. After any other, the weights may contain NaN and are not saved."""
    return not getattr(module, "skipped_in_a_row", 0)


class HealthyCheckpoint(ModelCheckpoint):
    """Saves only after finite steps and for finite scores; its state holds no absolute paths."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        """Save when a save is due, unless the step was skipped."""
        if is_healthy(pl_module):
            super().on_train_batch_end(trainer, pl_module, *arguments)

    def check_monitor_top_k(self, trainer: lightning.Trainer, current: Tensor | None = None) -> bool:
        """True for a finite score among the best, after a finite step."""
        finite = current is not None and bool(torch.isfinite(current))
        return (
            finite and is_healthy(trainer.lightning_module) and super().check_monitor_top_k(trainer, current)
        )

    @property
    def state_key(self) -> str:
        """Key of `ModelCheckpoint`, for compatibility with earlier checkpoints."""
        return super().state_key.replace(HealthyCheckpoint.__name__, ModelCheckpoint.__name__)

    def state_dict(self) -> dict[str, Any]:
        """State with file names instead of paths, so that the run folder can be moved."""
        return placed(super().state_dict(), "")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score if its file is in this run's folder."""
        state = placed(state_dict, str(self.dirpath))
        state["best_k_models"] = {k: v for k, v in state["best_k_models"].items() if os.path.exists(k)}
        super().load_state_dict(state)


def placed(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """State of a `ModelCheckpoint` with all paths moved to another folder."""

    def place(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path else path

    paths = {key: place(path) for key, path in state.items() if key.endswith("_path")}
    best = {place(path): score for path, score in state["best_k_models"].items()}
    return state | paths | {"dirpath": folder, "best_k_models": best}


class LastCheckpoint(HealthyCheckpoint):
    """Saves `last.ckpt` every `save_every` steps, after each validation, and before an error ends the run.

    The save after a validation stores the best score for a resumed run. A save due at a step that is not
    finite is postponed to the next finite step.
    """

    def __init__(self, save_every: int, **options: Any) -> None:
        super().__init__(**options)
        self.save_every = save_every
        self.due = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        """Save if a save is due, or was postponed by a skipped step."""
        self.due = self.due or trainer.global_step % self.save_every == 0
        if self.due:
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save `last.ckpt`, after the callback of `best.ckpt` has updated its score."""
        self.due = True
        self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Replace `last.ckpt` if the last step was finite."""
        if is_healthy(trainer.lightning_module):
            trainer.save_checkpoint(self.path)
            self.due = False

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save after an error between two steps, such as missing data."""
        progress = trainer.fit_loop.epoch_loop.batch_progress.total
        between_steps = progress.ready == progress.completed > 0
        if isinstance(exception, Exception) and between_steps and is_healthy(pl_module):
            # `trainer.save_checkpoint` would wait for the other processes.
            state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.checkpoint_io.save_checkpoint(state, self.path)

    @property
    def path(self) -> Path:
        """Path of `last.ckpt`."""
        return Path(str(self.dirpath)) / f"{self.filename}.ckpt"
