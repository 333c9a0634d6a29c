"""Systems under evaluation, from the words and options of `codec-evaluate`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from codec.audio.reading import read_info
from codec.bitstream.tables import load_tables
from codec.commands.compress import beside
from codec.config import ConfigError
from codec.evaluation.classical import Baseline
from codec.evaluation.huggingface import HuggingFaceCodec
from codec.evaluation.packet_loss import lossy_codecs, parse_percentages
from codec.evaluation.reading import Recordings
from codec.evaluation.systems import NeuralCodec, System
from codec.huggingface import convert
from codec.model.saving import load
from codec.system.device import default_device
from codec.system.files import printable


def build_systems(models: Sequence[str], files: Recordings, options: argparse.Namespace) -> list[System]:
    """Build models, then baselines at the first model's rate (without models: the first file's)."""
    device = options.device or default_device()
    systems: list[System] = []
    for model, name in zip(models, names(models), strict=True):
        try:
            systems += build_model(model, name, device, options)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
            raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if options.condition:
        check_condition(systems, options.condition)
    info = read_info(files[0])
    rate = options.sample_rate or (systems[0].sample_rate if systems else info.sample_rate)
    channels = systems[0].channels if systems else info.channels
    systems += [Baseline(name, rate, channels) for name in options.baselines.split(",") if name]
    if not systems:
        raise ConfigError("nothing to evaluate: name a model, or --baselines")
    return systems


def check_condition(systems: Sequence[System], condition: str) -> None:
    """Name the models without conditions; ConfigError if all are."""
    models = [system for system in systems if isinstance(system, NeuralCodec | HuggingFaceCodec)]
    without = [m.name for m in models if not isinstance(m, NeuralCodec) or not m.codec.conditioning.names]
    if len(without) == len(models):
        raise ConfigError(f"--condition {condition}: these models were trained without conditions")
    for name in without:
        print(f"{name}: evaluated without --condition, because it was trained without conditions")


def build_model(model: str, name: str, device: str, options: argparse.Namespace) -> list[System]:
    """Build a model, and the same model with each kind of packet loss."""
    depths, percentages = parse_depths(options.num_quantizers), parse_percentages(options.packet_loss)
    if not model.startswith("hf:"):
        codec = load(model, options.trust).to(device)
        if options.condition and codec.conditioning.names:
            codec.set_condition(options.condition)
        tables = beside(Path(model))
        entropy_tables = load_tables(tables) if tables.exists() else None
        own = NeuralCodec(codec, name, depths, entropy_tables, options.beam)
        return [own, *lossy_codecs(own, percentages)]
    path = Path(model.removeprefix("hf:"))
    peer = HuggingFaceCodec(path, name, depths, device)
    if not percentages:
        return [peer]
    try:
        own = NeuralCodec(convert.load(path).to(device), name, depths)
    except ConfigError as error:
        print(f"{name}: left out of --packet-loss: {error}")
        return [peer]
    return [peer, *lossy_codecs(own, percentages)]


def parse_depths(text: str) -> list[int] | None:
    """Parse numbers of stages, as `1,2,8` or `all`; None if empty."""
    if text == "all":
        return list(range(1, 1000))
    if not re.fullmatch(r"(\d+(,\d+)*)?", text):
        raise ConfigError(f"--num-quantizers {text}: expected numbers as 1,2,8, or all")
    return [int(word) for word in text.split(",")] if text else None


def names(models: Sequence[str]) -> list[str]:
    """Short unique names of the models: the last parts of their folders' paths."""
    paths = [Path(model.removeprefix("hf:")).resolve() for model in models]
    parts = [path.parent.parts if path.name in ("model", "checkpoints") else path.parts for path in paths]
    for length in range(1, 1 + max(map(len, parts), default=0)):
        short = ["/".join(part[-length:]) for part in parts]
        if len(set(short)) == len(short):
            return [printable(name) for name in short]
    if models:
        raise ConfigError("a model is named twice")
    return []
