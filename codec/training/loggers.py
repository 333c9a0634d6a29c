"""TensorBoard, wandb and MLflow: resuming their runs, sending clips, and handling their failures."""

from __future__ import annotations

import importlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from codec.config import ConfigError, build
from codec.evaluation.pictures import read_picture
from codec.system.files import write_whole

log = logging.getLogger(__name__)
LIBRARIES = "wandb>=0.22", "mlflow>=3.5"  # as in pyproject.toml
RUN_ID = {"WandbLogger": "id", "MLFlowLogger": "run_id"}  # arguments for the id of a run to resume
IDS_FILE = "logger_runs.json"


class Clip(NamedTuple):
    """Validation clip at a step: its sounds `[C, T]` by name, their wav files, and their spectrograms."""

    name: str
    step: int
    sounds: Mapping[str, Tensor]
    files: Mapping[str, Path]
    picture: Path
    sample_rate: int


def build_logger(node: Mapping[str, Any] | None) -> Logger | None:
    """Build the logger of a config; ConfigError with the package to install if its library is missing."""
    try:
        return build(node, path="logger") if node else None
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"logger: {error}\nlogger=wandb and logger=mlflow need another package: "
            + " or ".join(f'pip install "{library}"' for library in LIBRARIES)
        ) from error


def same_run(node: Mapping[str, Any] | None, folder: Path, resumed: bool) -> Mapping[str, Any] | None:
    """Logger config with the id of the run folder's run if it is resumed, else of a new run."""
    name = (node or {}).get("_target_", "").rpartition(".")[2]
    key = RUN_ID.get(name, "")
    if not node or not key or node.get(key):
        return node
    run_id = read_ids(folder).get(name) if resumed else None
    if run_id is None and name == "WandbLogger":  # MLflow chooses its ids itself
        run_id = secrets.token_hex(4)
    return {**node, key: run_id} if run_id else node


def remember_runs(folder: Path, loggers: Iterable[Logger]) -> None:
    """Store the loggers' run ids in the run folder."""
    by_name = {type(logger).__name__: logger for logger in loggers}
    ids = {name: by_name[name].version for name in RUN_ID.keys() & by_name.keys()}
    if ids:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / IDS_FILE, json.dumps(read_ids(folder) | ids) + "\n")


def read_ids(folder: Path) -> dict[str, str]:
    """Run ids by logger; empty if the file is missing or damaged, which starts a new run on the server."""
    try:
        ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def logger_failure(error: BaseException) -> BaseException | None:
    """Cause of an error from the system or a logger's library; None for any other error."""
    # Lightning's TensorBoard logger wraps errors of its writer thread in a ValueError.
    cause = error.__cause__ if isinstance(error, ValueError) else error
    foreign = type(cause).__module__.partition(".")[0] in ("wandb", "mlflow")
    return cause if foreign or isinstance(cause, OSError) else None


def to_loggers(trainer: lightning.Trainer, send: Callable[[Logger], None]) -> None:
    """Call `send` for every logger; a logger that fails is logged and removed."""
    for logger in list(trainer.loggers):
        try:
            send(logger)
        except Exception as error:
            cause = logger_failure(error)
            if cause is None:
                raise
            log.error("%s stops here, training goes on: %s", type(logger).__name__, cause)
            trainer.loggers = [other for other in trainer.loggers if other is not logger]


def send_clip(logger: Logger, clip: Clip) -> None:
    """Send a clip's audio and spectrograms to a logger that accepts them."""
    if isinstance(logger, TensorBoardLogger):
        board: Any = logger.experiment
        for name, audio in clip.sounds.items():
            board.add_audio(f"{clip.name}/{name}", audio.mean(0, keepdim=True), clip.step, clip.sample_rate)
        board.add_image(clip.name, read_picture(clip.picture), clip.step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        files = [str(file) for file in clip.files.values()]
        logger.log_audio(f"{clip.name}/audio", files, clip.step, caption=list(clip.files))
        logger.log_image(f"{clip.name}/spectrograms", [str(clip.picture)], clip.step)
    elif isinstance(logger, MLFlowLogger):
        for file in (*clip.files.values(), clip.picture):
            logger.experiment.log_artifact(logger.run_id, str(file), "samples")


def close(logger: Logger) -> None:
    """End a logger's run; wandb would otherwise log the next run of this process, as in a sweep, into it."""
    if isinstance(logger, WandbLogger):
        importlib.import_module("wandb").finish()
