"""`weights=PATH`: train a saved codec further, its architecture and weights taken from there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from codec.config import ConfigError
from codec.export.huggingface import load_any
from codec.model import Codec, load
from codec.resume import find_checkpoint

BROUGHT = ("autoencoder", "quantizer", "model", "sample_rate", "channels")


def adopt(composed: Any) -> tuple[Any, Codec | None]:
    """A composed config with the model of its `weights`, and that codec; itself and None without any.

    A run that is resumed goes on from its own checkpoint: then the codec is of that, and the path is not
    read. ConfigError for options that the model brings itself.
    """
    path = composed.get("weights")
    if path is None:
        return composed, None
    if not isinstance(path, str):
        raise ConfigError(f"weights: expected a run, a saved codec or a transformers directory, got {path!r}")
    tasks = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = [override.partition("=")[0].lstrip("+~") for override in tasks]
    given = [key for key in keys if key.split(".")[0] in BROUGHT]
    if given or composed.get("sweep"):
        too_much = ", ".join(given) or "sweep"
        raise ConfigError(
            f"weights={path} brings its architecture: leave out {too_much}, or leave out weights"
        )
    checkpoint = find_checkpoint(Path(composed.run_dir), composed.resume)
    codec = load(checkpoint) if checkpoint else load_any(Path(path))
    assert codec.config is not None
    return with_model(composed, codec.config), codec.train()


def with_model(composed: Any, model: dict[str, Any]) -> Any:
    """A composed config whose model is this one."""
    changed = copy.deepcopy(composed)
    parts = {name: model[name] for name in ("autoencoder", "quantizer", "sample_rate")}
    parts |= {"channels": model["autoencoder"].get("audio_channels", 1), "model": model}
    for name, value in parts.items():
        OmegaConf.update(changed, name, value, merge=False, force_add=True)
    return changed
