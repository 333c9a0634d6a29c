"""Path of the checkpoint that a run starts from, found without importing torch."""

from __future__ import annotations

from pathlib import Path

from codec.config import ConfigError


def find_checkpoint(folder: Path, resume: str | None) -> Path | None:
    """Checkpoint to resume from; ConfigError if the folder holds a run and `resume` is null."""
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
