"""Codec: an encoder, a quantizer and a decoder; audio to codes and back."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from codec.autoencoders.base import Autoencoder
from codec.config import ConfigError, build, locate, locate_own, validate
from codec.files import flush, written_whole
from codec.pretrained import require_model
from codec.quantizers.base import Quantized, Quantizer
from codec.streaming import Stream
from codec.untrusted import (
    APART,
    LARGEST,
    PlainDumper,
    bounded_building,
    check_plain,
    read_weights,
    read_yaml,
    size_of,
)

CONFIG_FILE, WEIGHTS_FILE = "config.yaml", "model.safetensors"
HIGHEST_RATE, LONGEST_FRAME = 2**20, 2**20  # Hz, samples


class Codec(nn.Module):
    """Audio `[B, C, T]` to codes `[B, K, F]` and back, `F = ceil(T / hop_length)` frames for any `T >= 1`."""

    def __init__(self, autoencoder: Autoencoder, quantizer: Quantizer, sample_rate: int):
        super().__init__()
        if not 1 <= sample_rate <= HIGHEST_RATE:
            raise ValueError(f"sample_rate must be at least 1 Hz, at most {HIGHEST_RATE}, got {sample_rate}")
        if quantizer.dim != autoencoder.latent_dim:
            raise ValueError(
                f"the quantizer's dim {quantizer.dim} is not latent_dim {autoencoder.latent_dim}"
            )
        if autoencoder.hop_length * quantizer.stride > LONGEST_FRAME:
            raise ValueError(f"a frame must be at most {LONGEST_FRAME} samples long: lower the strides")
        self.autoencoder = autoencoder
        self.quantizer = quantizer
        self.sample_rate = sample_rate
        self.config: dict[str, Any] | None = None

    @property
    def audio_channels(self) -> int:
        """Channels of the audio."""
        return self.autoencoder.audio_channels

    @property
    def hop_length(self) -> int:
        """Samples per frame of codes."""
        return self.autoencoder.hop_length * self.quantizer.stride

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.sample_rate / self.hop_length

    def bitrate(self, num_quantizers: int | None = None) -> float:
        """Nominal bit/s of the first `num_quantizers` stages."""
        return self.quantizer.bits_per_frame(num_quantizers) * self.frame_rate

    @property
    def dtype(self) -> torch.dtype:
        """Type of the autoencoder's parameters; the quantizer stays float32."""
        return next(self.autoencoder.parameters()).dtype

    def latents(self, audio: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encoder output `[B, D, F * stride]` of audio `[B, C, T]`, zero-padded to whole frames.

        With `lengths` `[B]`, whole frames in samples, the latents of each signal in a zero-padded batch equal
        those of the signal alone. ValueError for audio of another type or shape.
        """
        if not isinstance(audio, Tensor) or not audio.is_floating_point():
            kind = getattr(audio, "dtype", type(audio).__name__)
            raise ValueError(f"audio must be a tensor of float samples, nominally -1 to 1, got {kind}")
        if audio.ndim != 3 or audio.shape[1] != self.audio_channels or 0 in audio.shape:
            shape = f"[B >= 1, {self.audio_channels}, T >= 1]"
            raise ValueError(f"audio must be {shape}, got {list(audio.shape)}")
        padded = functional.pad(audio.to(self.dtype), (0, -audio.shape[-1] % self.hop_length))
        if lengths is None:
            return self.autoencoder.encode(padded)
        return self.autoencoder.encode_ragged(padded, lengths)

    def forward(
        self,
        audio: Tensor,
        num_quantizers: int | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Quantized]:
        """Reconstruction `[B, C, T]`, and the quantizer's output for the losses."""
        quantized = self.quantizer(self.latents(audio), num_quantizers, generator=generator)
        estimate = self.autoencoder.decode(quantized.latents.to(self.dtype))
        return estimate[..., : audio.shape[-1]], quantized

    def encode(self, audio: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Codes int64 `[B, num_quantizers, F]` of audio `[B, C, T]`; `beam` as in `Quantizer.encode`."""
        return self.quantizer.encode(self.latents(audio), num_quantizers, beam)

    def decode(self, codes: Tensor, length: int | None = None) -> Tensor:
        """Audio `[B, C, F * hop_length]` of codes `[B, k, F]`, of k <= K stages, cut to `length` samples."""
        latents = self.quantizer.decode(codes)
        samples = codes.shape[2] * self.hop_length
        if length is not None and not 1 <= length <= samples:
            raise ValueError(
                f"length must be 1 to {samples} samples, as {codes.shape[2]} frames give, got {length}"
            )
        return self.autoencoder.decode(latents.to(self.dtype))[..., :length]

    def streaming(self, batch: int = 1) -> Stream:
        """Streaming encoder and decoder for `batch` signals, with a copy of the autoencoder's weights.

        NotStreamable, a ConfigError, for an autoencoder without a streaming form.
        """
        return Stream(self.autoencoder, self.quantizer, self.sample_rate, batch)

    def codec_id(self) -> str:
        """Hexadecimal SHA-256 of config and weights, which identifies the meaning of codes."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.yaml` and `model.safetensors` into a directory, atomically.

        `dtype` is the type of floating-point weights in the file, such as float16 for half the size; `load`
        converts to float32. OSError with the directory's name if it cannot be written; existing files stay
        intact.
        """
        if self.config is None:
            raise ValueError("this codec has no config to save: make it with codec.build_codec(config)")
        directory = Path(directory)
        tensors = {
            name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else None).contiguous()
            for name, tensor in self.state_dict().items()
        }
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with (
                written_whole(directory / CONFIG_FILE, durable=True) as config,
                written_whole(directory / WEIGHTS_FILE, durable=True) as weights,
            ):
                save_file(tensors, weights)
                content = {"model": self.config, "sha256": sha256(weights)}
                config.write_text(yaml.dump(content, Dumper=PlainDumper, sort_keys=False))
                flush(config)  # both files are on disk before either replaces an older one
                shutil.copymode(config, weights)  # safetensors writes files without read access for others
        except (OSError, SafetensorError) as error:
            raise OSError(f"{directory}: the codec is NOT saved: {error}") from error


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


def load(path: str | Path) -> Codec:
    """Codec from a run folder, a directory of `Codec.save`, or a checkpoint (its averaged weights).

    `path` may also be the name of a pretrained model of this package (`codec.pretrained`).

    Executes nothing from the files: yaml is data, weights are tensors, classes are this package's own.
    Raises FileNotFoundError, or ConfigError for a damaged or foreign file.
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
    return assemble(config, weights, path)


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
            raise FileNotFoundError(f"{path}: holds no saved codec, {name} is missing")
    saved, weights = read_yaml(path / CONFIG_FILE), read_weights(path / WEIGHTS_FILE)
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict):
        raise ConfigError(f"{path / CONFIG_FILE}: not the config of a saved codec: it has no 'model'")
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


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count_parameters(codec: Codec) -> dict[str, int]:
    """Number of learned values of each part, including codebooks learned by moving averages."""
    parts = {**dict(codec.autoencoder.named_children()), "quantizer": codec.quantizer}
    return {
        name: sum(p.numel() for p in part.parameters())
        + sum(b.numel() for b in part.buffers() if b.is_floating_point() and b.ndim > 1)
        for name, part in parts.items()
    }
