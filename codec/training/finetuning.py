"""`weights=PATH`: fine-tune a saved codec, with its architecture and weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from codec.config import ConfigError, build, trusting
from codec.huggingface.convert import load_any
from codec.model.codec import Codec
from codec.model.saving import load
from codec.training.resume import find_checkpoint

MODEL_OPTIONS = ("autoencoder", "quantizer", "model", "sample_rate", "channels")


def adopt(composed: Any) -> tuple[Any, Codec | None]:
    """Composed config with the model of its `weights`, and that codec; `composed` and None without weights.

    A codec without conditioning gets the one of the option, if any.
    A resumed run loads the codec of its own checkpoint instead; the path is not read. ConfigError for
    options that the saved model determines.
    """
    path = composed.get("weights")
    if path is None:
        return composed, None
    if not isinstance(path, str):
        raise ConfigError(f"weights: expected a run, a saved codec or a transformers directory, got {path!r}")
    tasks = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = [override.partition("=")[0].lstrip("+~") for override in tasks]
    conflicting = [key for key in keys if key.split(".")[0] in MODEL_OPTIONS]
    if conflicting or composed.get("sweep"):
        options = ", ".join(conflicting) or "sweep"
        raise ConfigError(
            f"weights={path} brings its architecture: leave out {options}, or leave out weights"
        )
    checkpoint = find_checkpoint(Path(composed.run_dir), composed.resume)
    with trusting(composed.get("trust") or ()):
        codec = load(checkpoint) if checkpoint else load_any(Path(path))
    assert codec.config is not None
    if codec.conditioning.names and any(key.split(".")[0] == "conditioning" for key in keys):
        raise ConfigError(f"weights={path} has conditions: leave out conditioning, or leave out weights")
    composed = with_model(composed, codec)
    if not codec.conditioning.names:  # a new one starts as the identity
        node = OmegaConf.to_container(composed.conditioning, resolve=True)
        codec.conditioning = build(node, path="conditioning")
        codec.config["conditioning"] = node
    return composed, codec.train()


def with_model(composed: Any, codec: Codec) -> Any:
    """Copy of a composed config with the model of a codec; the conditioning stays if the codec has none."""
    config, model = copy.deepcopy(composed), codec.config or {}
    parts = {name: model[name] for name in ("autoencoder", "quantizer", "sample_rate")}
    parts |= {"channels": model["autoencoder"].get("audio_channels", 1)}
    parts |= {"conditioning": model["conditioning"]} if codec.conditioning.names else {}
    parts |= {"model": model | {"conditioning": "${conditioning}"}}
    for name, value in parts.items():
        OmegaConf.update(config, name, value, merge=False, force_add=True)
    return config
