"""Resolution and checks of a composed config."""

from __future__ import annotations

import copy
from typing import Any, cast

from omegaconf import OmegaConf

from codec.config import TARGET, ConfigError, complete, fits, validate
from codec.training.stages import settle
from codec.training.trainer import check_options

BUILT = (
    *("model", "discriminator", "loss", "optimizer", "data", "trainer", "logger", "training", "checkpoint"),
    *("sweep", "search", "conditioning", "teacher"),
)


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
    if TARGET not in config["teacher"] and config["teacher"]["path"] is not None:
        raise ConfigError(
            f"teacher.path={config['teacher']['path']}: without effect under teacher=none; add "
            "teacher=transformers for the folder of a model, teacher=features for one of codec-features"
        )
    check_options(config["trainer"])
    if not fits(config["evaluate"], int) or config["evaluate"] < 0:
        raise ConfigError(f"evaluate: expected a number of files, got {config['evaluate']!r}")
    if not fits(config["resume"], str | None):
        raise ConfigError(f"resume: expected auto, a checkpoint's path or null, got {config['resume']!r}")
