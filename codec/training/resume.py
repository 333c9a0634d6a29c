"""Resuming: find a run folder's checkpoint, and check that it fits the config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codec.config import ConfigError
from codec.model.codec import CONFIG_FILE
from codec.model.saving import open_checkpoint
from codec.system.resuming import require_same
from codec.training.module import CodecTraining
from codec.training.stages import Stage, locate, plain


def is_finished(folder: Path, checkpoint: Path, evaluated: bool) -> bool:
    """True if the exported model, and the evaluation if `evaluated`, are newer than the checkpoint."""
    outputs = [folder / "model" / CONFIG_FILE]
    if evaluated:
        outputs.append(folder / "evaluation" / "summary.json")
    time = checkpoint.stat().st_mtime_ns
    return all(path.is_file() and path.stat().st_mtime_ns >= time for path in outputs)


def checkpoint_step(checkpoint: Path) -> int:
    """Number of training steps before a checkpoint."""
    return int(open_checkpoint(checkpoint)["global_step"])


def what_is_saved(checkpoint: Path) -> str:
    """Sentence on the checkpoint, and its step, that a resumed run starts from."""
    if not checkpoint.is_file():
        return "no checkpoint is saved"
    return f"{checkpoint.name} is of step {checkpoint_step(checkpoint)}: resume=auto goes on from it"


def check_same_model(checkpoint: Path, model: dict[str, Any]) -> None:
    """ConfigError that lists every model option that differs from the checkpoint's."""
    remedy = "use these, or another name= for a new run"
    require_same(checkpoint, open_checkpoint(checkpoint)["model"], model, remedy)


def check_same_training(checkpoint: Path, module: CodecTraining) -> None:
    """ConfigError unless a checkpoint has this run's weights and stages."""
    check_same_parts(checkpoint, module)
    check_same_stages(checkpoint, module.stages)


def check_same_parts(checkpoint: Path, module: CodecTraining) -> None:
    """ConfigError unless a checkpoint has all weights of this run, discriminator and loss included."""
    saved, current = open_checkpoint(checkpoint)["state_dict"], module.state_dict()
    # Channels of later stages may be added or removed; those of stages so far are compared as stages.
    saved_shapes, shapes = (
        {(k, v.shape) for k, v in state.items() if not k.startswith("stand_ins.")}
        for state in (saved, current)
    )
    if saved_shapes != shapes:
        first = ", ".join(sorted({key for key, _ in saved_shapes ^ shapes})[:3])
        raise ConfigError(
            f"{checkpoint} was made with another discriminator or loss, or an older version "
            f"({first} differ): use those, or another name="
        )


def check_same_stages(checkpoint: Path, stages: Sequence[Stage]) -> None:
    """ConfigError unless the stages that a checkpoint has begun are the same in this run.

    The steps of the last of them may change, but not below the number already done.
    """
    saved, configured = open_checkpoint(checkpoint).get("stages", []), plain(stages)
    number, last = locate([stage["steps"] for stage in saved], max(checkpoint_step(checkpoint) - 1, 0))
    old_stages, new_stages = saved[: number + 1], configured[: number + 1]
    if len(old_stages) == len(new_stages) == number + 1 and new_stages[-1]["steps"] > last:
        new_stages[-1]["steps"] = old_stages[-1]["steps"]
    old, new = (
        {f"training.stages[{i}]": stage for i, stage in enumerate(plain_stages)}
        for plain_stages in (old_stages, new_stages)
    )
    remedy = (
        "stages that have begun must stay; only the last of them may have other steps, no fewer than are "
        "done; later stages may change"
    )
    require_same(checkpoint, old, new, remedy)
