"""Models of `transformers` in local folders. torch is imported with the first model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codec.config import ConfigError


def load_local_model(folder: str | Path, choose: Callable[[Any], str]) -> tuple[Any, Any]:
    """Load a model, in eval mode and float32, and its feature extractor; nothing is downloaded or unpickled.

    `choose` returns the class of `transformers` for a config, or raises ConfigError. ConfigError for a folder
    without such a model, and for missing weights. ImportError without `transformers`.
    """
    require_local_model(folder)
    import torch
    import transformers  # pyright: ignore[reportMissingImports]

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        loader = getattr(transformers, choose(config))
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model, report = loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{folder}: {str(error).splitlines()[0]} (a folder has config.json, preprocessor_config.json and "
            "model.safetensors; save_pretrained of model and feature extractor writes them)"
        ) from error
    missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
    if missing:
        raise ConfigError(f"{folder}: {len(missing)} weights are missing, as {missing[0]}")
    return model.eval(), extractor


def require_local_model(folder: str | Path) -> None:
    """Raise ConfigError for a missing folder, with the download command for a name of the hub."""
    if (Path(folder) / "config.json").is_file():
        return
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) and not Path(folder).exists():
        name = Path(folder).name
        remedy = f"hf download {folder} --local-dir {name}, then name the folder {name}"
        raise ConfigError(
            f"{folder}: no such folder, and nothing is downloaded; if it is of the hub: {remedy}"
        )
    raise ConfigError(f"{folder}: no folder of a model of transformers (config.json)")
