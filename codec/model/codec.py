"""Codec: an encoder, a bottleneck and a decoder; audio to codes or continuous latents, and back."""

from __future__ import annotations

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
from codec.config import TARGET, ConfigError
from codec.layers.film import Condition, FiLM, Unconditioned
from codec.model.identity import state_hash
from codec.model.streaming import Stream
from codec.model.untrusted import PlainDumper
from codec.quantizers.base import Bottleneck, Quantized
from codec.system.files import flush, sha256, written_whole

CONFIG_FILE, WEIGHTS_FILE = "config.yaml", "model.safetensors"
VERSION = 1  # of saved configs; raise it when older programs would misread them
HIGHEST_RATE, LONGEST_FRAME = 2**20, 2**20  # Hz, samples


class Codec(nn.Module):
    """Audio `[B, C, T]` to codes `[B, K, F]` and back, `F = ceil(T / hop_length)` frames for any `T >= 1`.

    Encoder, quantizer and decoder in sequence, as in SoundStream (arXiv 2107.03312). With a continuous
    bottleneck the codes are float32 `[B, latent_dim, F]` wherever codes are named. With `conditioning`, such
    as `codec.layers.FiLM`, a condition modulates the latents before they are quantized; a call that names
    none uses the default of `conditioning`.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        quantizer: Bottleneck,
        sample_rate: int,
        conditioning: Unconditioned | None = None,
    ):
        super().__init__()
        if not 1 <= sample_rate <= HIGHEST_RATE:
            raise ValueError(f"sample_rate must be at least 1 Hz, at most {HIGHEST_RATE}, got {sample_rate}")
        if quantizer.dim != autoencoder.latent_dim:
            raise ValueError(
                f"the quantizer's dim {quantizer.dim} is not latent_dim {autoencoder.latent_dim}"
            )
        if isinstance(conditioning, FiLM) and conditioning.dim != autoencoder.latent_dim:
            raise ValueError(
                f"the conditioning's dim {conditioning.dim} is not latent_dim {autoencoder.latent_dim}"
            )
        if autoencoder.hop_length * quantizer.stride > LONGEST_FRAME:
            raise ValueError(f"a frame must be at most {LONGEST_FRAME} samples long: lower the strides")
        self.autoencoder = autoencoder
        self.quantizer = quantizer
        self.conditioning = conditioning or Unconditioned()
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

    def latents(self, audio: Tensor, lengths: Tensor | None = None, condition: Condition = None) -> Tensor:
        """Modulated encoder output `[B, D, F * stride]` of audio `[B, C, T]`, zero-padded to whole frames.

        With `lengths` `[B]`, whole frames in samples, the latents of each signal in a zero-padded batch equal
        those of the signal alone. `condition`: see `FiLM.forward`. ValueError for audio of another type or
        shape, and for a condition of a codec without conditioning.
        """
        if not isinstance(audio, Tensor) or not audio.is_floating_point():
            kind = getattr(audio, "dtype", type(audio).__name__)
            raise ValueError(f"audio must be a tensor of float samples, nominally -1 to 1, got {kind}")
        if audio.ndim != 3 or audio.shape[1] != self.audio_channels or 0 in audio.shape:
            shape = f"[B >= 1, {self.audio_channels}, T >= 1]"
            raise ValueError(f"audio must be {shape}, got {list(audio.shape)}")
        padded = functional.pad(audio.to(self.dtype), (0, -audio.shape[-1] % self.hop_length))
        if lengths is None:
            return self.conditioning(self.autoencoder.encode(padded), condition)
        return self.conditioning(self.autoencoder.encode_ragged(padded, lengths), condition)

    @property
    def condition(self) -> str | None:
        """Condition of calls that name none; None for the first, or without conditions."""
        index = self.conditioning.default
        return self.conditioning.names[index] if index else None

    def set_condition(self, name: str) -> None:
        """Set the condition of calls that name none; ConfigError for one that the codec lacks."""
        try:
            self.conditioning.default = self.conditioning.number(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def forward(
        self,
        audio: Tensor,
        num_quantizers: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        condition: Condition = None,
    ) -> tuple[Tensor, Quantized]:
        """Reconstruction `[B, C, T]`, and the quantizer's output for the losses."""
        latents = self.latents(audio, condition=condition)
        quantized = self.quantizer(latents, num_quantizers, generator=generator)
        estimate = self.autoencoder.decode(quantized.latents.to(self.dtype))
        return estimate[..., : audio.shape[-1]], quantized

    def encode(
        self,
        audio: Tensor,
        num_quantizers: int | None = None,
        beam: int = 1,
        condition: Condition = None,
    ) -> Tensor:
        """Codes int64 `[B, num_quantizers, F]` of audio `[B, C, T]`.

        `beam` as in `Quantizer.encode`, `condition` as in `latents`.
        """
        return self.quantizer.encode(self.latents(audio, condition=condition), num_quantizers, beam)

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

        NotStreamable, a ConfigError, if neither encoder nor decoder has a streaming form.
        """
        return Stream(self.autoencoder, self.quantizer, self.sample_rate, batch, self.conditioning)

    def codec_id(self) -> str:
        """Hexadecimal SHA-256 of config and weights, which identifies the meaning of codes."""
        return state_hash(json.dumps(class_names(self.config), sort_keys=True), self.state_dict())

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
                content = {"version": VERSION, "model": self.config, "sha256": sha256(weights)}
                config.write_text(yaml.dump(content, Dumper=PlainDumper, sort_keys=False))
                flush(config)  # both files are on disk before either replaces an older one
                shutil.copymode(config, weights)  # safetensors writes files without read access for others
        except (OSError, SafetensorError) as error:
            raise OSError(f"{directory}: the codec is NOT saved: {error}") from error


def class_names(config: Any) -> Any:
    """Copy a config with classes by name alone, so that moving a class changes no `codec_id`."""
    if isinstance(config, Mapping):
        return {key: v.rpartition(".")[2] if key == TARGET else class_names(v) for key, v in config.items()}
    return list(map(class_names, config)) if isinstance(config, list) else config


def count_parameters(codec: Codec) -> dict[str, int]:
    """Number of learned values of each part, including codebooks learned by moving averages."""
    parts = {**dict(codec.autoencoder.named_children()), "quantizer": codec.quantizer}
    return {
        name: sum(p.numel() for p in part.parameters())
        + sum(b.numel() for b in part.buffers() if b.is_floating_point() and b.ndim > 1)
        for name, part in parts.items()
    }
