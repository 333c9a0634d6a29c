"""Saved codecs: building from configs, loading from directories and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.config import ConfigError, build, locate, locate_own, trusting, validate
from codec.model.codec import CONFIG_FILE, VERSION, WEIGHTS_FILE, Codec
from codec.model.untrusted import (
    APART,
    LARGEST,
    bounded_building,
    check_plain,
    read_weights,
    read_yaml,
    size_of,
)
from codec.pretrained import require_model
from codec.system.files import sha256


def build_codec(config: Mapping[str, Any], trusted: bool = True) -> Codec:
    """Build a codec from the plain `model` part of a config; ConfigError lists all errors in it.

    Untrusted configs, such as those of downloaded weights, may name only this package's classes.
    """
    find = locate if trusted else locate_own
    validate(config, find, "model")
    codec = build(config, find, "model")
    if not isinstance(codec, Codec):
        raise ConfigError(f"model: expected a codec, got {type(codec).__name__}")
    codec.config = dict(config)
    return codec


def load(path: str | Path, trust: Iterable[str] = (), condition: str | None = None) -> Codec:
    """Codec from a run folder, a directory of `Codec.save`, or a checkpoint (its averaged weights).

    `path` may also be the name of a pretrained model of this package (`codec.pretrained`). `condition` is
    used where a call of the codec names none.

    Executes nothing from the files: yaml is data, weights are tensors, classes are this package's own, or of
    installed packages that registered parts of codecs, or of the packages in `trust`.
    Raises FileNotFoundError, or ConfigError for a damaged or foreign file or an unknown condition.
    """
    path = require_model(path)
    if path.is_dir():
        # A finished run has its model in model/, a run in progress only checkpoints.
        finished, last = path / "model", path / "checkpoints" / "last.ckpt"
        if (finished / WEIGHTS_FILE).is_file():
            config, weights = read_directory(finished)
        elif last.is_file():
            config, weights = read_checkpoint(last)
        else:
            config, weights = read_directory(path)
    else:
        config, weights = read_checkpoint(path)
    with trusting(trust):
        codec = assemble(config, weights, path)
    if condition is not None:
        codec.set_condition(condition)
    return codec


def assemble(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str | Path) -> Codec:
    """Codec of an untrusted config and its weights, in eval mode; ConfigError if they do not match.

    The only path from a file to a model: classes are this package's own, and the weights bound its size.
    """
    # Compared before any allocation, because a config can describe a model larger than the memory.
    expected = build_empty(config, weights).state_dict()
    mismatched = {
        name
        for name in expected.keys() | weights.keys()
        if name not in expected or name not in weights or expected[name].shape != weights[name].shape
    }
    if mismatched:
        raise ConfigError(f"{source}: {APART}: {', '.join(sorted(mismatched)[:5])}")
    codec = build_codec(config, trusted=False)
    codec.load_state_dict(weights)
    names = [name for name, tensor in codec.state_dict().items() if not tensor.isfinite().all()]
    if names:
        raise ConfigError(
            f"{source}: NaN or infinite weights in {', '.join(names[:3])}: its training diverged, or "
            "the file is damaged; take an earlier checkpoint"
        )
    return codec.eval()


def build_empty(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Codec:
    """Codec of an untrusted config on the meta device; ConfigError for one far larger than its weights."""
    check_plain(config, largest=max(LARGEST, size_of(weights)))
    try:
        with torch.device("meta"), bounded_building(len(weights)):
            codec = build_codec(config, trusted=False)
    except RuntimeError as error:
        raise ConfigError(f"model: {str(error).splitlines()[0]}") from error
    if sum(buffer.numel() for buffer in codec.buffers()) > max(LARGEST, 2 * size_of(weights)):
        raise ConfigError(f"model: its buffers are larger than its weights: {APART}")
    return codec


def read_directory(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a saved codec; FileNotFoundError, or ConfigError for damaged or changed files."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            foreign = (path / "config.json").is_file()
            remedy = f": make one of this model of transformers by codec-export {path} --to codec -o NAME"
            reason = f"{path}: holds no saved codec, {name} is missing"
            raise FileNotFoundError(reason + (remedy if foreign else ""))
    saved, weights = read_yaml(path / CONFIG_FILE), read_weights(path / WEIGHTS_FILE)
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict):
        raise ConfigError(f"{path / CONFIG_FILE}: not the config of a saved codec: it has no 'model'")
    if saved.get("version", VERSION) != VERSION:
        raise ConfigError(
            f"{path / CONFIG_FILE}: version {saved['version']!r} of saved codecs, not {VERSION}: "
            "load it with the release of neural-audio-codec that saved it"
        )
    if sha256(path / WEIGHTS_FILE) != saved.get("sha256"):
        raise ConfigError(
            f"{path}: {WEIGHTS_FILE} is not the file that {CONFIG_FILE} was written for (sha256)"
        )
    return saved["model"], weights


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Full training checkpoint with memory-mapped tensors; ConfigError for a damaged file."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # torch raises errors of many types on foreign bytes, and recommends to unpickle them.
        problem = "not a checkpoint of codec-train, or damaged"
        raise ConfigError(f"{path}: {problem} ({type(error).__name__}); nothing was unpickled") from error
    expected = {"model": dict, "state_dict": dict, "global_step": int}
    content = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [name for name, kind in expected.items() if not isinstance(content.get(name), kind)]
    if missing or not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
        requirement = ", ".join(missing) or "only tensors in its state_dict"
        raise ConfigError(f"{path}: not a checkpoint of codec-train: it has no {requirement}")
    for name in ("model", "stages"):
        check_plain(content.get(name), f"{path}: {name}")
    return checkpoint


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Model config and averaged weights of a training checkpoint, without unpickling any object."""
    checkpoint, prefix = open_checkpoint(path), "average."
    return dict(checkpoint["model"]), {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
