"""Training run: a folder with config, checkpoints, metrics, samples and the exported model."""

from __future__ import annotations

import itertools
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import lightning
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from codec.config import ConfigError
from codec.data.index import DataError
from codec.data.loader import named_losses
from codec.data.partition import read_record, warn_of_changes, write_record
from codec.model.codec import Codec
from codec.system.files import mark_output, only_writer, write_whole
from codec.training.build import Run, build_parts, count_learned
from codec.training.checkpoint_path import find_checkpoint
from codec.training.finetuning import adopt
from codec.training.finish import finish, perceptual_metrics, whereabouts
from codec.training.inheritance import inherit_discriminator
from codec.training.loggers import close, logger_failure, remember_runs
from codec.training.metrics_csv import quiet_libraries
from codec.training.resolve import resolve
from codec.training.resume import (
    check_same_model,
    check_same_training,
    checkpoint_step,
    is_finished,
    what_is_saved,
)
from codec.training.signals import StopOnSignal, StoppedWaiting
from codec.training.skipped import TrainingFailed
from codec.training.stages import label
from codec.training.trainer import build_trainer, check_launch, check_sweep


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
    is_first = not getattr(rank_zero_only, "rank", 0)
    with only_writer(folder) if is_first else nullcontext():
        if is_first:
            mark_output(folder)
        checkpoint = find_checkpoint(folder, config["resume"])
        if checkpoint and is_complete(config, folder, checkpoint):
            print(whereabouts(folder, config))
            return 0
        run = prepare(config, folder, checkpoint, codec, is_first)
        fit(run)
        return finish(run)


def is_complete(config: dict[str, Any], folder: Path, checkpoint: Path) -> bool:
    """True, and a message, for a checkpoint of a finished run; ConfigError for one of another model."""
    check_same_model(checkpoint, config["model"])
    step, end = checkpoint_step(checkpoint), config["trainer"]["max_steps"]
    complete = step > end > 0 or (step == end and is_finished(folder, checkpoint, config["evaluate"] > 0))
    if complete:
        print(f"{checkpoint} is at step {step} of {end} already; nothing to do")
    return complete


def prepare(
    config: dict[str, Any], folder: Path, checkpoint: Path | None, codec: Codec | None, is_first: bool
) -> Run:
    """Build all parts, index the data, then write config and record of the recordings into the run folder.

    `is_first` marks the first of several processes. Unusable data leave no run folder.
    """
    metrics = perceptual_metrics(config) if is_first else []
    lightning.seed_everything(config["seed"], workers=False, verbose=False)
    data, module = build_parts(config, codec)
    inherited: list[Callback] = []
    if checkpoint:
        check_same_training(checkpoint, module)
    elif "discriminator" in config["inherit"]:
        inherited.append(inherit_discriminator(config["weights"], module))
    record = read_record(checkpoint.parent.parent) if checkpoint else {}
    data.known = {name: row.get("part", "") for name, row in record.items()}
    if is_first:
        data.prepare_data()
        data.setup()
    stop = StopOnSignal(folder / "checkpoints" / "last.ckpt")
    trainer = build_trainer(config, folder, stop, checkpoint)
    cast(Any, trainer).callbacks += inherited
    check_sweep(trainer)
    run = Run(config, folder, checkpoint, data, module, metrics, stop, trainer)
    if trainer.is_global_zero:
        save_config(folder, config)
        print(describe(run), flush=True)
        warn_of_changes(record, [*itertools.chain(*data.trained), *data.valid])
        write_record(folder, data.trained, data.valid, record)
    return run


def fit(run: Run) -> None:
    """Train; ConfigError and DataError with the step of the last checkpoint."""
    trainer, last = run.trainer, run.stop.checkpoint
    loggers = trainer.loggers
    try:
        if trainer.is_global_zero:
            remember_runs(run.folder, loggers)
        with named_losses(), suppress(StoppedWaiting):
            trainer.fit(run.module, datamodule=run.data, ckpt_path=run.checkpoint)
    except (TrainingFailed, MisconfigurationException) as error:
        saved = f"; {what_is_saved(last)}" if isinstance(error, TrainingFailed) else ""
        if saved and (best := last.with_name("best.ckpt")).is_file():  # the last one may be ruined already
            saved += f", or resume={best} from step {checkpoint_step(best)}"
        elif saved:
            saved += ", or begin again under another name"
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


def save_config(folder: Path, config: dict[str, Any]) -> None:
    """Write `config.yaml`, the resolved config of this run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def describe(run: Run) -> str:
    """Summary of the run for the terminal: start and end, rates, bitrate, parameters, stages."""
    codec, stages = run.module.codec, run.module.stages
    millions = {name: count / 1e6 for name, count in count_learned(run.module).items()}
    resumed = run.checkpoint
    start = f"resumes {resumed} at step {checkpoint_step(resumed)}" if resumed else "starts"
    rate = f"{codec.bitrate() / 1000:.4g} kbit/s" if codec.quantizer.codebook_sizes else "no codes"
    return (
        f"{run.folder}: {start}, to step {run.max_steps}\n"
        f"  {codec.sample_rate} Hz, {codec.hop_length} samples a frame, {codec.frame_rate:.4g} frames/s, "
        f"{rate}, parameters: codec {millions['codec']:.3f} M, "
        f"discriminator {millions['discriminator']:.3f} M"
        + "".join(f"\n  {label(stages, i)}: {one}" for i, one in enumerate(stages) if one.name)
    )
