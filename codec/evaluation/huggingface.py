"""Published codecs for comparison: EnCodec, DAC and Mimi of `transformers`, from a local folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from codec.config import ConfigError
from codec.evaluation.records import Summary
from codec.evaluation.systems import Reconstruction, depths_of
from codec.model.identity import state_hash
from codec.system.local_model import weight_files

KINDS = ("encodec", "dac", "mimi")


class HuggingFaceCodec:
    """Model saved by `save_pretrained`, with several numbers of quantizers; audio is padded to whole frames.

    ConfigError if the folder holds no model of `KINDS`, or `transformers` is not installed. Nothing is
    downloaded, and weights are read from safetensors only.
    """

    def __init__(
        self, path: Path, name: str, depths: Sequence[int] | None = None, device: str | torch.device = "cpu"
    ):
        self.name, self.path = name, path
        self.kind = kind_of(path)
        try:
            from transformers import AutoModel  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(f"hf:{path} needs transformers: pip install transformers ({error})") from error
        try:
            weight_files(path)
            self.model: Any = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"hf:{path}: {str(error).splitlines()[0]}") from error
        self.model.eval().to(device)
        config = self.model.config
        self.sample_rate = int(config.sampling_rate)
        self.channels = int(getattr(config, "audio_channels", None) or 1)
        self.frame_rate = float(
            config.sampling_rate / config.hop_length if self.kind == "dac" else config.frame_rate
        )
        self.hop_length = round(self.sample_rate / self.frame_rate)
        with torch.inference_mode():
            second = torch.zeros(1, self.channels, self.sample_rate, device=device)
            stages = self.encode(second).audio_codes.shape[-2]
        self.codebook_sizes: Sequence[int] = (int(config.codebook_size),) * stages
        self.depths = depths_of(len(self.codebook_sizes), depths)

    def identity(self) -> dict[str, Any]:
        """Hash of the weights, and the depths."""
        weights = state_hash("", self.model.state_dict())
        return {"peer": self.kind, "weights": weights, "depths": self.depths}

    def describe(self) -> Summary:
        """Frame rate, token rate and number of parameters by part."""
        parts: dict[str, int] = {}
        for name, part in self.model.named_children():
            key = name if name in ("encoder", "decoder", "quantizer") else "other"
            parts[key] = parts.get(key, 0) + sum(p.numel() for p in part.parameters())
        tokens = self.frame_rate * len(self.codebook_sizes)
        return Summary(frame_rate=self.frame_rate, tokens_per_second=tokens, parameters=parts)

    def bitrate(self, num_quantizers: int) -> float:
        """Nominal bitrate in bit/s."""
        return sum(map(math.log2, self.codebook_sizes[:num_quantizers])) * self.frame_rate

    def encode(self, audio: Tensor) -> Any:
        """Encode audio `[1, C, T]` with all quantizers; EnCodec's codes are split into chunks."""
        if self.kind == "encodec":
            return self.model.encode(audio, bandwidth=max(self.model.config.target_bandwidths))
        return self.model.encode(audio)

    def code(self, audio: Tensor) -> tuple[Tensor | None, Iterator[Reconstruction]]:
        """Encode once and decode with each number of quantizers."""
        length = audio.shape[-1]
        audio = functional.pad(audio.to(self.model.device), (0, -length % self.hop_length))
        encoded = self.encode(audio)
        codes = encoded.audio_codes
        if self.kind == "encodec":  # [chunks, 1, K, F]
            codes = codes.permute(1, 2, 0, 3).flatten(2)
        return codes, self.points(encoded, codes.shape[2], length)

    def points(self, encoded: Any, frames: int, length: int) -> Iterator[Reconstruction]:
        """Yield the reconstructions from the first quantizers."""
        for depth in self.depths:
            if self.kind == "encodec":
                padding = {"last_frame_pad_length": getattr(encoded, "last_frame_pad_length", 0)}
                codes = encoded.audio_codes[:, :, :depth]
                decoded = self.model.decode(codes, encoded.audio_scales, **padding)
            else:
                decoded = self.model.decode(audio_codes=encoded.audio_codes[:, :depth])
            estimate = decoded.audio_values
            estimate = (estimate[:, None] if estimate.ndim == 2 else estimate)[..., :length]
            bits = round(sum(map(math.log2, self.codebook_sizes[:depth])) * frames)
            yield Reconstruction(depth, functional.pad(estimate, (0, length - estimate.shape[-1])), bits)


def kind_of(path: Path) -> str:
    """Read `model_type` of a folder's config.json; ConfigError unless it is one of `KINDS`."""
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"hf:{path}: no model of transformers (config.json): {error}") from error
    if kind not in KINDS:
        raise ConfigError(f"hf:{path}: a model of type {kind!r}; codecs are {', '.join(KINDS)}")
    return kind
