"""Construction of the data and the training module from a resolved config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from codec.config import TARGET, ConfigError, build, complete
from codec.data.module import AudioDataModule
from codec.layers.recompute import check_divides
from codec.metrics.base import Metric
from codec.model.codec import Codec, count_parameters
from codec.model.saving import build_codec
from codec.training.inheritance import inherit
from codec.training.module import CodecTraining
from codec.training.signals import StopOnSignal


@dataclass(frozen=True)
class Run:
    """One training: its resolved config, folder and parts; `checkpoint` is the one to resume from, if any."""

    config: dict[str, Any]
    folder: Path
    checkpoint: Path | None
    data: AudioDataModule
    module: CodecTraining
    metrics: Sequence[Metric]
    stop: StopOnSignal
    trainer: lightning.Trainer

    @property
    def max_steps(self) -> int:
        """Steps of the whole training; -1 without an end."""
        return self.config["trainer"]["max_steps"]


def build_parts(config: dict[str, Any], source: Codec | None = None) -> tuple[AudioDataModule, CodecTraining]:
    """Build the data and the training module; its codec begins with the parts of `source`, if any."""
    data = build(config["data"], path="data")
    with torch.device("meta"):  # a model with impossible strides may not fit into memory
        hop_length = build_codec(config["model"]).hop_length
    if hop_length > data.segment_length:
        raise ConfigError(
            f"autoencoder.strides: a frame of {hop_length} samples is longer than the crops of "
            f"{data.segment_length}; lower the strides or raise data.segment_seconds"
        )
    codec = build_codec(config["model"])
    if source:
        inherit(source, codec)
    parts = [build(config[name], path=name) for name in ("discriminator", "loss", "optimizer")]
    module = complete(config, "training", codec, *parts)
    check_divides(data.batch_size, module.accumulate)
    check_conditions(codec, data)
    check_teacher(config["teacher"], codec)
    return data, module


def count_learned(module: CodecTraining) -> dict[str, int]:
    """Number of learned values of codec and discriminator."""
    return {
        "codec": sum(count_parameters(module.codec).values()),
        "discriminator": sum(p.numel() for p in module.discriminator.parameters()),
    }


def check_teacher(teacher: dict[str, Any], codec: Codec) -> None:
    """ConfigError for a teacher whose loss has no gradient in any part of the codec."""
    learned = (name for name, value in codec.named_parameters() if value.requires_grad)
    if TARGET in teacher and all(name.startswith("autoencoder.decoder.") for name in learned):
        raise ConfigError(
            "teacher: encoder and quantizer are frozen, and it would train a projection that is in no codec: "
            "leave out teacher, or train the encoder, too: leave out inherit and training.freeze"
        )


def check_conditions(codec: Codec, data: AudioDataModule) -> None:
    """ConfigError unless some targets are clean and some are not exactly if the codec learns conditions."""
    share, names = data.degradation.clean_target, codec.conditioning.names
    if names and (len(names) != 2 or names[1] != "clean"):
        raise ConfigError(f"conditioning.names={list(names)}: expected two, of which the second is clean")
    learned = any(parameter.requires_grad for parameter in codec.conditioning.parameters())
    if learned and not 0 < share < 1:
        raise ConfigError(
            f"data.degradation.clean_target={share:g}, but the codec has conditions ({', '.join(names)}): "
            "take 0.5 and a folder of noise (data.degradation.noise.root), or leave trained ones as they are "
            "(training.freeze=[conditioning])"
        )
    if 0 < share < 1 and not names:
        raise ConfigError(
            f"data.degradation.clean_target={share:g}: a codec that cleans some crops and not others needs a "
            "condition to choose by; add conditioning=clean, or take 0 or 1"
        )
