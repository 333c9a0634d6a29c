"""Report of training steps that were skipped, and the end of a training that skips too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from codec.system.files import printable

log = logging.getLogger(__name__)


class TrainingFailed(RuntimeError):
    """Training cannot continue; the message contains the cause and a remedy."""


def report_skipped(
    step: int, losses: Mapping[str, Tensor], files: Iterable[str], in_a_row: int, most: int
) -> None:
    """Log the losses that were not finite and their files; TrainingFailed after `most` steps in a row."""
    names = ", ".join([name for name, loss in losses.items() if not torch.isfinite(loss)] or ["gradients"])
    paths = ", ".join(map(printable, sorted(set(files))[:8]))
    log.warning("step %d: skipped, %s not finite (%d in a row) on %s", step, names, in_a_row, paths)
    if in_a_row >= most:
        raise TrainingFailed(
            f"{most} steps in a row were not finite, last in {names}: lower optimizer.generator.lr, or "
            "trainer.precision=32-true, and go on with resume=auto"
        )
