"""Lightning's trainer: allowed options, launching of processes, and this project's callbacks and loggers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from codec.config import ConfigError, build, complete, fits
from codec.training.checkpoints import AtomicCheckpoints
from codec.training.loggers import build_logger, same_run
from codec.training.metrics_csv import MetricsCSV
from codec.training.resume import checkpoint_step
from codec.training.samples import Samples
from codec.training.signals import StopOnSignal
from codec.training.telemetry import Telemetry
from codec.training.validation import MissedValidation

# Codebooks and optimizers need float32 weights: Lightning's other precisions have none.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# The discriminator is not updated in every step, nor all of the codec in every stage.
SEVERAL = "ddp_find_unused_parameters_true"
# Options of Lightning that have no effect here, or another one, and their replacements.
LENGTH, VALIDATION = "trainer.max_steps", "trainer.val_check_interval, in steps"
REFUSED = {
    **dict.fromkeys(("max_epochs", "min_epochs", "min_steps", "fast_dev_run"), LENGTH),
    **dict.fromkeys(("limit_train_batches", "overfit_batches"), f"{LENGTH} and data.root"),
    **dict.fromkeys(("check_val_every_n_epoch", "num_sanity_val_steps"), VALIDATION),
    **dict.fromkeys(("limit_test_batches", "limit_predict_batches"), "evaluate, a number of held-out files"),
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), "optimizer.generator_clip"),
    **dict.fromkeys(("accumulate_grad_batches",), "training.accumulate"),
    **dict.fromkeys(("use_distributed_sampler",), "data.batch_size"),
    **dict.fromkeys(("reload_dataloaders_every_n_epochs",), "data.seed"),
    **dict.fromkeys(("default_root_dir",), "run_dir or name"),
    **dict.fromkeys(("logger",), "logger=tensorboard, wandb, mlflow or none"),
    **dict.fromkeys(("enable_model_summary", "barebones"), "enable_progress_bar and logger=none"),
    **dict.fromkeys(("enable_checkpointing",), "checkpoint.save_every and checkpoint.keep_every"),
    **dict.fromkeys(("plugins",), "trainer.precision and trainer.strategy"),
}


def check_options(options: Mapping[str, Any]) -> None:
    """ConfigError for trainer options that have no effect, another meaning, or an invalid value."""
    for name in ("max_steps", "val_check_interval", "log_every_n_steps"):
        if not fits(options[name], int) or (options[name] < 1 and (name, options[name]) != ("max_steps", -1)):
            raise ConfigError(f"trainer.{name}: expected a number of steps above 0, got {options[name]!r}")
    if str(options.get("precision")) not in PRECISIONS:
        choices = ", ".join(PRECISIONS)
        raise ConfigError(f"trainer.precision: expected one of {choices}, got {options.get('precision')!r}")
    refused = [name for name in options if name in REFUSED and options[name] is not None]
    if refused:
        raise ConfigError(
            "\n".join(f"trainer.{name}: cannot be set; use {REFUSED[name]}" for name in refused)
        )


def check_launch(options: Mapping[str, Any]) -> None:
    """ConfigError if torchrun has started several processes and the config has one device."""
    if not TorchElasticEnvironment.detect() or os.environ.get("WORLD_SIZE") == "1":
        return
    if options["strategy"] == "auto" and str(options["devices"]) == "1":
        local, nodes = os.environ.get("LOCAL_WORLD_SIZE", "auto"), os.environ.get("GROUP_WORLD_SIZE", "1")
        raise ConfigError(
            f"torchrun has started {os.environ['WORLD_SIZE']} processes, and each would train the same run "
            f"alone: add trainer=ddp trainer.devices={local} trainer.num_nodes={nodes}"
        )


def check_sweep(trainer: lightning.Trainer) -> None:
    """ConfigError for a sweep with several processes: each process would run the whole sweep."""
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.world_size > 1:
        raise ConfigError(
            f"-m (a sweep) and {trainer.world_size} processes a run: each process would run the whole sweep. "
            "Give one command a run instead, without -m, or trainer=default trainer.devices=1"
        )


def build_trainer(
    config: dict[str, Any], folder: Path, stop: StopOnSignal, checkpoint: Path | None
) -> lightning.Trainer:
    """Build Lightning's trainer with this project's checkpoints, logs and telemetry.

    Several processes with `strategy: auto` use that of `trainer=ddp`.
    """
    options = dict(config["trainer"])
    bar = bool(options.pop("enable_progress_bar", True))
    extra = build(options.pop("callbacks", None) or [], path="trainer.callbacks")
    table = MetricsCSV(folder / "metrics.csv")
    table.rewind(checkpoint_step(checkpoint) if checkpoint else 0)
    logger = build_logger(same_run(config["logger"], folder, checkpoint is not None))
    callbacks: list[Callback] = [
        *(extra if isinstance(extra, list) else [extra]),
        Telemetry(options["log_every_n_steps"], folder / "data.txt", bar),
        Samples(folder / "samples"),
        *complete(config, "checkpoint", folder / "checkpoints"),
        MissedValidation(table),
        stop,
    ]
    factory = build(options | {"_partial_": True}, path="trainer")

    def make(**strategy: str) -> lightning.Trainer:
        return factory(
            default_root_dir=folder,
            logger=[table, *([logger] if logger else [])],
            callbacks=[*callbacks],
            plugins=[AtomicCheckpoints(), *launcher()],
            max_epochs=-1,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **strategy,
        )

    try:
        trainer = make()
        is_distributed = trainer.world_size > 1 and options["strategy"] == "auto"
        return make(strategy=SEVERAL) if is_distributed else trainer
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}") from error


def launcher() -> list[LightningEnvironment]:
    """Lightning's own launcher for a Slurm job without srun, where Lightning would wait for other tasks."""
    single_process = "SLURM_NTASKS" in os.environ and "SLURM_STEP_ID" not in os.environ
    return [LightningEnvironment()] if single_process and not TorchElasticEnvironment.detect() else []
