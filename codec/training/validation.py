"""Repetition of an interrupted validation when a run is resumed."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from codec.training.metrics_csv import MetricsCSV


class MissedValidation(Callback):
    """Validates first if a run is resumed from a checkpoint whose step has no scores yet.

    `last.ckpt` may be written just before the validation of its step, and the run killed during it. Scores
    of that step in `table` are replaced.
    """

    def __init__(self, table: MetricsCSV) -> None:
        self.table = table
        self.due = False

    def state_dict(self) -> dict[str, Any]:
        """Flag of a step without scores, for its checkpoint."""
        return {"due": self.due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the flag."""
        self.due = bool(state_dict["due"])

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate as soon as the state is restored; Lightning calls no hook then if all steps are done."""
        loop: Any = trainer.fit_loop
        set_up = loop.setup_data

        def set_up_and_validate() -> None:
            set_up()
            loop.setup_data = set_up
            if self.due:
                self.make_up(trainer)

        loop.setup_data = set_up_and_validate

    def make_up(self, trainer: lightning.Trainer) -> None:
        """Validate now, outside the training loop."""
        self.table.rewind(trainer.global_step, scored=False)
        trainer.validating = True
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        loop.run()
        trainer.training = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        """Set the flag if a validation follows, before a checkpoint is saved."""
        self.due = trainer.global_step % int(trainer.val_check_interval) == 0

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Clear the flag, before a checkpoint is saved."""
        self.due = False
