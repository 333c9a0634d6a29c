"""Training run: a folder with config, checkpoints, metrics, samples and the exported model."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import signal
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import lightning
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from codec.config import ConfigError, build, complete, fits, validate
from codec.data.index import DataError
from codec.data.loader import named_losses
from codec.data.module import AudioData
from codec.data.partition import read_record, say_changes, write_record
from codec.evaluation.evaluate import evaluate
from codec.evaluation.writing import print_summary
from codec.metrics.perceptual import PerceptualMetric, choose_metrics
from codec.model.codec import Codec, count_parameters
from codec.model.saving import build_codec
from codec.system.files import write_whole
from codec.training.checkpoints import is_healthy, only_writer
from codec.training.finetuning import adopt
from codec.training.loggers import close, logger_failure, remember_runs
from codec.training.metrics_csv import quiet_libraries
from codec.training.module import CodecTraining, TrainingFailed
from codec.training.resume import (
    check_same_model,
    check_same_training,
    checkpoint_step,
    find_checkpoint,
    is_finished,
    what_is_saved,
)
from codec.training.signals import StopOnSignal, StoppedWaiting
from codec.training.stages import label, settle
from codec.training.trainer import build_trainer, check_launch, check_options, check_sweep

log = logging.getLogger(__name__)
BUILT = (
    *("model", "discriminator", "loss", "optimizer", "data", "trainer", "logger", "training", "checkpoint"),
    *("sweep", "search"),
)


def train(composed: Any) -> int:
    """Run the training of a composed config; returns the exit status.

    130 and 143 after SIGINT and SIGTERM, 129 and 138 after SIGHUP and SIGUSR1, with everything saved.
    ConfigError for mistakes in the config.
    """
    composed, codec = adopt(composed)
    config = resolve(composed)
    check_launch(config["trainer"])
    quiet_libraries()
    folder = Path(config["run_dir"])
    first = not getattr(rank_zero_only, "rank", 0)
    with only_writer(folder) if first else nullcontext():
        return train_in(folder, config, first, codec)


def train_in(folder: Path, config: dict[str, Any], first: bool, codec: Codec | None = None) -> int:
    """Run the training of a resolved config in its folder; `first` marks the first of several processes."""
    checkpoint = find_checkpoint(folder, config["resume"])
    if checkpoint:
        check_same_model(checkpoint, config["model"])
        step, end = checkpoint_step(checkpoint), config["trainer"]["max_steps"]
        if step > end > 0 or (step == end and is_finished(folder, checkpoint, config["evaluate"] > 0)):
            print(f"{checkpoint} is at step {step} of {end} already; nothing to do")
            print(whereabouts(folder, config))
            return 0
    metrics = perceptual_metrics(config) if first else []
    lightning.seed_everything(config["seed"], workers=False, verbose=False)
    data, module = build_parts(config, codec)
    if checkpoint:
        check_same_training(checkpoint, module)
    record = read_record(checkpoint.parent.parent) if checkpoint else {}
    data.known = {name: row.get("part", "") for name, row in record.items()}
    if first:  # before anything is written: unusable data must leave no run folder
        data.prepare_data()
        data.setup()
    stop = StopOnSignal(folder / "checkpoints" / "last.ckpt")
    trainer = build_trainer(config, folder, stop, checkpoint)
    check_sweep(trainer)
    if trainer.is_global_zero:
        save_config(folder, config)
        print(describe(config, module, folder, checkpoint), flush=True)
        say_changes(record, [*itertools.chain(*data.trained), *data.valid])
        write_record(folder, data.trained, data.valid, record)
    fit(trainer, module, data, checkpoint)
    return finish(config, module, data, stop, trainer, metrics)


def fit(trainer: lightning.Trainer, module: CodecTraining, data: AudioData, checkpoint: Path | None) -> None:
    """Train; ConfigError and DataError with the step of the last checkpoint."""
    loggers, last = trainer.loggers, Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    try:
        if trainer.is_global_zero:
            remember_runs(Path(trainer.default_root_dir), loggers)
        with named_losses(), suppress(StoppedWaiting):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    except (TrainingFailed, MisconfigurationException) as error:
        saved = f"; {what_is_saved(last)}" if isinstance(error, TrainingFailed) else ""
        raise ConfigError(f"{error}{saved}") from error
    except ChildProcessError as error:
        raise DataError(f"{error}; {what_is_saved(last)}") from error
    except DataError as error:  # in a worker's traceback, if a worker raised it
        reason = str(error).rpartition("DataError: ")[2].strip()
        raise DataError(f"{reason}; {what_is_saved(last)}") from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns it into exit status 1
            raise error.__context__ from None
        raise
    except Exception as error:
        if isinstance(error, OSError | ConfigError) or logger_failure(error) is None:
            raise
        raise ConfigError(f"logger: {error}; or choose logger=tensorboard or logger=none") from error
    finally:
        for logger in loggers:
            close(logger)


def resolve(composed: Any) -> dict[str, Any]:
    """Plain, checked config of a composed one; with `sweep`, the quantizer has the sweep's bitrate."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{', '.join(missing)}: has no default; give it as {missing[0]}=...")
    config = to_plain(composed)
    validate({name: config[name] for name in BUILT})
    check_plain_options(config)
    if not config["sweep"]:
        return config
    composed = copy.deepcopy(composed)
    quantizer = complete(config, "sweep", config["model"])
    OmegaConf.update(composed, "quantizer", quantizer, merge=False, force_add=True)
    return to_plain(composed)


def to_plain(composed: Any) -> dict[str, Any]:
    """Resolve a composed config; `training.stages` set `trainer.max_steps`, and schedules span a stage."""
    steps = composed.trainer.max_steps
    if composed.training.stages:
        composed = copy.deepcopy(composed)
        OmegaConf.update(composed, "trainer.max_steps", None)
    config = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    if config["training"]["stages"]:
        settle(config, steps)
    elif steps is None:
        raise ConfigError("trainer.max_steps=null is the sum of training.stages, and they are empty")
    return config


def check_plain_options(config: dict[str, Any]) -> None:
    """ConfigError for invalid options that no constructor checks."""
    if not fits(config["seed"], int) or not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed: expected a whole number from 0 to {2**32 - 1}, got {config['seed']!r}")
    check_options(config["trainer"])
    if not fits(config["evaluate"], int) or config["evaluate"] < 0:
        raise ConfigError(f"evaluate: expected a number of files, got {config['evaluate']!r}")
    if not fits(config["resume"], str | None):
        raise ConfigError(f"resume: expected auto, a checkpoint's path or null, got {config['resume']!r}")


def build_parts(config: dict[str, Any], codec: Codec | None = None) -> tuple[AudioData, CodecTraining]:
    """Build the data and the training module, with the given codec or a new one."""
    data = build(config["data"], path="data")
    with torch.device("meta"):  # a model with impossible strides may not fit into memory
        hop_length = (codec or build_codec(config["model"])).hop_length
    if hop_length > data.segment_length:
        raise ConfigError(
            f"autoencoder.strides: a frame of {hop_length} samples is longer than the crops of "
            f"{data.segment_length}; lower the strides or raise data.segment_seconds"
        )
    codec = codec or build_codec(config["model"])
    parts = [build(config[name], path=name) for name in ("discriminator", "loss", "optimizer")]
    return data, complete(config, "training", codec, *parts)


def save_config(folder: Path, config: dict[str, Any]) -> None:
    """Write `config.yaml`, the resolved config of this run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def describe(config: dict[str, Any], module: CodecTraining, folder: Path, checkpoint: Path | None) -> str:
    """Summary of the run for the terminal: start and end, rates, bitrate, parameters, stages."""
    codec = module.codec
    millions = {
        "codec": sum(count_parameters(codec).values()) / 1e6,
        "discriminator": sum(p.numel() for p in module.discriminator.parameters()) / 1e6,
    }
    start = f"resumes {checkpoint} at step {checkpoint_step(checkpoint)}" if checkpoint else "starts"
    rate = f"{codec.bitrate() / 1000:.4g} kbit/s" if codec.quantizer.codebook_sizes else "no codes"
    return (
        f"{folder}: {start}, to step {config['trainer']['max_steps']}\n"
        f"  {codec.sample_rate} Hz, {codec.hop_length} samples a frame, {codec.frame_rate:.4g} frames/s, "
        f"{rate}, parameters: codec {millions['codec']:.3f} M, "
        f"discriminator {millions['discriminator']:.3f} M"
        + "".join(f"\n  {label(module.stages, i)}: {one}" for i, one in enumerate(module.stages) if one.name)
    )


def finish(
    config: dict[str, Any],
    module: CodecTraining,
    data: AudioData,
    stop: StopOnSignal,
    trainer: lightning.Trainer,
    metrics: Sequence[PerceptualMetric],
) -> int:
    """Save the averaged codec, evaluate it, print the paths of all outputs; returns the exit status."""
    folder = Path(trainer.default_root_dir)
    if not stop.received and is_healthy(module):
        trainer.save_checkpoint(stop.checkpoint)
    if not trainer.is_global_zero:
        return 0
    try:
        module.average.save(folder / "model")
    except OSError as error:
        raise OSError(
            f"{error}\nThe checkpoints in {stop.checkpoint.parent} are whole: free some space, then the same "
            "command with resume=auto saves the codec and evaluates it"
        ) from error
    if stop.received:
        name = signal.Signals(stop.received).name
        saved = "" if is_healthy(module) else f", which was not finite; {what_is_saved(stop.checkpoint)}"
        print(
            f"stopped by {name} at step {trainer.global_step}{saved}; "
            "go on with the same command and resume=auto"
        )
        return 128 + stop.received
    if trainer.global_step < (trainer.max_steps if trainer.max_steps > 0 else math.inf):
        print(
            f"training was ended at step {trainer.global_step} of {config['trainer']['max_steps']} by a "
            f"callback or trainer.max_time={config['trainer'].get('max_time')}, which counts from the first "
            "step: go on with the same command, resume=auto and more time"
        )
    files = [file.located() for file in data.valid][: config["evaluate"]]
    if files:
        output, codec = folder / "evaluation", module.average.to(trainer.strategy.root_device)
        try:
            print_summary(evaluate(codec, files, output, metrics=metrics), output)
        except DataError as error:
            raise DataError(
                f"{error}: see the warnings above.\nThe training is finished and {folder}/model saved: when "
                "the files can be read, the same command with resume=auto evaluates it"
            ) from error
    print(whereabouts(folder, config))
    return 0


def perceptual_metrics(config: dict[str, Any]) -> list[PerceptualMetric]:
    """Perceptual metrics of the final evaluation; ConfigError, before training, for a missing one."""
    names = config["metrics"] if config["evaluate"] else None
    if not fits(names, str | list | None):
        raise ConfigError(f"metrics: expected speech, music, all or names of metrics, got {names!r}")
    listed = names.split(",") if isinstance(names, str) else names or []
    try:
        chosen, left_out = choose_metrics(list(map(str, listed)))
    except ConfigError as error:
        raise ConfigError(f"metrics: {str(error).removeprefix('--metrics: ')}") from error
    for reason in left_out:
        log.warning("not scored: %s", reason)
    return chosen


def whereabouts(folder: Path, config: dict[str, Any]) -> str:
    """Paths of a run's outputs, and the next command."""
    board = "TensorBoard" in (config["logger"] or {}).get("_target_", "")
    outputs = {
        "model": "model",
        "evaluation": "originals, reconstructions, spectrograms of held-out files",
        "samples": "samples while it trained",
        "metrics.csv": "numbers",
    }
    lines = [f"{title}: {folder}/{name}" for name, title in outputs.items() if (folder / name).exists()]
    lines += [f"curves: tensorboard --logdir {folder}"] if board else []
    if config["data"].get("generate"):
        lines.append("next, on your own recordings: codec-train data.root=/path/to/wavs name=mine")
    else:
        lines.append(f"next, on other recordings: codec-evaluate {folder} /path/to/wavs")
    return "\n".join(lines)
