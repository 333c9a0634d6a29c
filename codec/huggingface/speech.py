"""Features of speech models of `transformers`, as targets of semantic distillation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from codec.autoencoders.base import Autoencoder
from codec.config import ConfigError
from codec.layers.filterbank import TINY, Filterbank
from codec.layers.sinc import Resample
from codec.losses.base import Forward, Teacher
from codec.model.codec import Codec
from codec.quantizers.continuous import Identity
from codec.system.local_model import load_local_model

Layer = int | Literal["average"]
# Models with convolutions on the waveform; w2v-BERT has a filterbank.
KINDS = ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm")
BERT = "wav2vec2-bert"
BLOCK, CONTEXT = 1000, 250  # frames of a long signal at a time, and those before and after it


class Waveform:
    """Input of a convolutional model: normalized audio, with half a window more at each end.

    `step` and `reach` are the samples between two frames, and those that a frame is computed from.
    """

    def __init__(self, config: Any, extractor: Any):
        self.step = self.hop_length = math.prod(config.conv_stride)
        strides = [math.prod(config.conv_stride[:number]) for number in range(len(config.conv_stride))]
        kernels = zip(config.conv_kernel, strides, strict=True)
        self.reach = 1 + sum((kernel - 1) * stride for kernel, stride in kernels)
        self.normalized = extractor.do_normalize

    def __call__(self, audio: Tensor) -> Tensor:
        """Input `[B, T + reach - step]` for audio `[B, T]`."""
        if self.normalized:
            variance, mean = torch.var_mean(audio, 1, correction=0, keepdim=True)
            audio = (audio - mean) / (variance + TINY).sqrt()
        margin = self.reach - self.step
        return functional.pad(audio, (margin // 2, margin - margin // 2))


class SpeechModel(Autoencoder):
    """Encoder of a speech model of `transformers`: audio `[B, 1, T]` to hidden states `[B, D, F]`.

    Frame f is of the samples from `f * hop_length` on, at the model's `sample_rate`. `layer` counts hidden
    states from 0, the input of the first layer; "average" is the mean of all. A signal of over 20 s is
    computed in blocks, each with 5 s before and after it. Nothing is downloaded, weights are read from
    safetensors only. ConfigError for a folder without a speech model, and a layer that it lacks.
    """

    audio_channels = 1

    def __init__(self, path: str | Path, layer: Layer = "average"):
        super().__init__()
        self.network, extractor = load(Path(path))
        config: Any = self.network.config
        self.inputs = Filterbank(extractor) if config.model_type == BERT else Waveform(config, extractor)
        self.latent_dim, self.hop_length = config.hidden_size, self.inputs.hop_length
        self.sample_rate, self.layer = int(extractor.sampling_rate), layer
        last = config.num_hidden_layers
        if layer != "average" and layer not in range(last + 1):
            raise ConfigError(f"layer must be average or 0 to {last}, as {path} has, got {layer}")

    def encode(self, audio: Tensor) -> Tensor:
        """Hidden states `[B, D, F]` of audio `[B, 1, T]`, `T` a multiple of `hop_length`."""
        with torch.autocast(audio.device.type, enabled=False):
            inputs = self.inputs(audio[:, 0].float())
        step, reach = self.inputs.step, self.inputs.reach
        frames = audio.shape[-1] // self.hop_length
        parts = []
        for start in range(0, frames, BLOCK):
            first, last = max(0, start - CONTEXT), min(frames, start + BLOCK + CONTEXT)
            part = inputs[:, first * step : (last - 1) * step + reach]
            states = self.network(part, output_hidden_states=True).hidden_states
            chosen = torch.stack(states).mean(0) if self.layer == "average" else states[self.layer]
            parts.append(chosen[:, start - first :][:, :BLOCK])
        return torch.cat(parts, 1).mT

    def forward(self, audio: Tensor) -> Tensor:
        """Hidden states of audio, see `encode`."""
        return self.encode(audio)


def load(path: Path) -> tuple[torch.nn.Module, Any]:
    """Load a speech model of a local folder, and its feature extractor; ConfigError if there is none."""

    def choose(config: Any) -> str:
        if config.model_type not in (*KINDS, BERT):
            kinds = ", ".join((*KINDS, BERT))
            raise ConfigError(f"{path}: no speech model: model_type is {config.model_type!r}, not {kinds}")
        return "AutoModel"

    try:
        return load_local_model(path, choose)
    except ImportError as error:
        raise ConfigError(f"{path} needs transformers: pip install transformers ({error})") from error


class SpeechTeacher:
    """Teacher of a distillation: features `[B, dim, F]` of the targets `[B, C, T]` of a `Forward`.

    A frozen `SpeechModel`, in no checkpoint, as Mimi's WavLM (arXiv 2410.00037, section 3.3). Channels are
    averaged, and audio at `sample_rate` is resampled to the model's rate. ConfigError for a model of a
    higher rate.
    """

    def __init__(self, path: str, sample_rate: int, layer: Layer = "average"):
        model = SpeechModel(path, layer)
        if model.sample_rate > sample_rate:
            raise ConfigError(
                f"{path} is for audio of {model.sample_rate} Hz, and the codec's has {sample_rate} Hz: "
                "choose a higher sample_rate, or another teacher"
            )
        self.network, self.model = Teacher(model), model
        self.resample = (
            None if model.sample_rate == sample_rate else Resample(1, sample_rate, model.sample_rate)
        )
        self.dim, self.frame_rate = model.latent_dim, model.sample_rate / model.hop_length

    @torch.no_grad()
    def __call__(self, outputs: Forward) -> Tensor:
        """Features of a crop, padded with zeros to full frames."""
        audio = outputs.target.float().mean(1, keepdim=True)
        if self.resample:
            audio = self.resample.to(audio.device)(padded(audio, self.resample.stride))
        return self.network(padded(audio, self.model.hop_length))


def padded(audio: Tensor, multiple: int) -> Tensor:
    """Pad `[B, C, T]` with zeros to a multiple of samples."""
    return functional.pad(audio, (0, -audio.shape[-1] % multiple))


def feature_codec(path: Path, layer: Layer = "average") -> Codec:
    """Codec whose latents are the features of a speech model; it cannot decode."""
    model = SpeechModel(path, layer)
    return Codec(model, Identity(model.latent_dim), model.sample_rate).requires_grad_(False).eval()
