"""Whether a run folder holds a run to go on with, and whether it is this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codec.config import ConfigError
from codec.model import CONFIG_FILE, open_checkpoint
from codec.stages import Stage, locate, plain
from codec.training import CodecTraining


def is_finished(folder: Path, checkpoint: Path, evaluated: bool) -> bool:
    """Whether a run folder has all that is made of its last checkpoint, and made since."""
    made = [folder / "model" / CONFIG_FILE, *([folder / "evaluation" / "summary.json"] if evaluated else [])]
    written = checkpoint.stat().st_mtime_ns
    return all(path.is_file() and path.stat().st_mtime_ns >= written for path in made)


def find_checkpoint(folder: Path, resume: str | None) -> Path | None:
    """Checkpoint to go on from; ConfigError if the run folder is taken and nobody asked to resume."""
    last = folder / "checkpoints" / "last.ckpt"
    if resume == "auto":
        return last if last.is_file() else None
    if resume:
        if not Path(resume).is_file():
            raise ConfigError(f"resume: there is no checkpoint {resume}")
        return Path(resume)
    if last.is_file():
        raise ConfigError(
            f"{folder} holds a run already: go on with resume=auto, or choose another name=... "
        )
    return None


def checkpoint_step(checkpoint: Path) -> int:
    """Steps that a checkpoint has behind it."""
    return int(open_checkpoint(checkpoint)["global_step"])


def what_is_saved(checkpoint: Path) -> str:
    """Step of the checkpoint that a resumed run begins with, in words."""
    if not checkpoint.is_file():
        return "no checkpoint is saved"
    return f"{checkpoint.name} is of step {checkpoint_step(checkpoint)}: resume=auto goes on from it"


def check_same_model(checkpoint: Path, model: dict[str, Any]) -> None:
    """ConfigError that names every option in which the model differs from the checkpoint's."""
    saved, current = flatten(open_checkpoint(checkpoint)["model"]), flatten(model)
    changed = [
        f"{key.removeprefix('model.')}: {saved.get(key)} in the checkpoint, {current.get(key)} now"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key)
    ]
    if changed:
        raise ConfigError(f"{checkpoint} holds another model:\n" + "\n".join(changed))


def check_same_training(checkpoint: Path, module: CodecTraining) -> None:
    """ConfigError unless a checkpoint has the weights that this run needs, and began with its stages."""
    check_same_parts(checkpoint, module)
    check_same_stages(checkpoint, module.stages)


def check_same_parts(checkpoint: Path, module: CodecTraining) -> None:
    """ConfigError unless a checkpoint has the weights that discriminator and loss of this run need."""
    saved, current = open_checkpoint(checkpoint)["state_dict"], module.state_dict()
    # Channels of stages that have not begun come and go; those that have begun are compared as stages.
    shapes, wanted = (
        {(k, v.shape) for k, v in state.items() if not k.startswith("stand_ins.")}
        for state in (saved, current)
    )
    if shapes != wanted:
        first = ", ".join(sorted({key for key, _ in shapes ^ wanted})[:3])
        raise ConfigError(
            f"{checkpoint} was made with another discriminator or loss, or an older version "
            f"({first} differ): use those, or another name="
        )


def check_same_stages(checkpoint: Path, stages: Sequence[Stage]) -> None:
    """ConfigError unless the stages that a checkpoint has begun are those of this run.

    The last of them may become longer, or shorter down to the steps that it has behind it.
    """
    saved, now = open_checkpoint(checkpoint).get("stages", []), plain(stages)
    number, last = locate([stage["steps"] for stage in saved], max(checkpoint_step(checkpoint) - 1, 0))
    begun, given = saved[: number + 1], now[: number + 1]
    if len(begun) == len(given) == number + 1 and given[-1]["steps"] > last:
        given[-1]["steps"] = begun[-1]["steps"]
    if begun == given:
        return
    before, after = (flatten({f"stages[{i}]": one for i, one in enumerate(some)}) for some in (begun, given))
    changed = [
        f"{key}: {before.get(key)} in the checkpoint, {after.get(key)} now"
        for key in before | after
        if before.get(key) != after.get(key)
    ]
    raise ConfigError(
        f"{checkpoint} was made with other training.stages:\n" + "\n".join(changed) + "\nThose that have "
        "begun must stay; only the last of them may have other steps, no fewer than are done, and what "
        "follows it is free"
    )


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves of a nested config by their paths."""
    if not isinstance(node, dict):
        return {path: node}
    return {
        k: v for key, child in node.items() for k, v in flatten(child, f"{path}.{key}".lstrip(".")).items()
    }
