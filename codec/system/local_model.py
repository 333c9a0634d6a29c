"""Models of `transformers` in local folders. torch is imported with the first model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codec.config import ConfigError

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
LONGEST = 2**22  # bytes of an index; one of 2^14 tensors has about 2^21


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
        weight_files(folder)
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


def weight_files(folder: str | Path) -> list[Path]:
    """Safetensors files of a model's weights: `model.safetensors`, or the shards that its index names.

    FileNotFoundError without them, with the name of a missing shard; ConfigError for a damaged index, and for
    one with names of other than safetensors files of the folder.
    """
    weights, index = Path(folder) / WEIGHTS_FILE, Path(folder) / INDEX_FILE
    if weights.is_file():
        return [weights]
    if not index.is_file():
        raise FileNotFoundError(
            f"{weights} is missing, or {INDEX_FILE} with shards: a model of transformers is read from them "
            "(pickled weights are not read: save them with save_pretrained of a recent transformers)"
        )
    try:
        with index.open("rb") as file:
            names = sorted(set(json.loads(file.read(LONGEST))["weight_map"].values()))
        strange = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{index}: damaged: {error}") from error
    if strange:
        raise ConfigError(f"{index}: {strange[0][:200]!r} is refused: shards are safetensors files beside it")
    for name in names:
        if not (index.parent / name).is_file():
            raise FileNotFoundError(
                f"{index.parent / name} is missing, a shard in {INDEX_FILE}: copy it again"
            )
    return [index.parent / name for name in names]
