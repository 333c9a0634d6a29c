"""Features of speech models of `transformers`, as targets of semantic distillation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.autoencoders.base import Autoencoder
from codec.config import ConfigError
from codec.layers.filterbank import BLOCK, CONTEXT, TINY, Filterbank, WindowedFilterbank
from codec.layers.sinc import Resample
from codec.losses.base import Forward, Teacher
from codec.model.codec import Codec
from codec.quantizers.continuous import Identity
from codec.system.local_model import load_local_model

Layer = int | Literal["average"]
# Models with convolutions on the waveform; the others have a filterbank.
KINDS = ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm")
BERT, WHISPER = "wav2vec2-bert", "whisper"


class Waveform:
    """Input of a convolutional model: normalized audio, with half a window more at each end.

    `step` and `reach` are the samples between two frames, and those that a frame is computed from.
    """

    block, context = BLOCK, CONTEXT

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


class MelEncoder(nn.Module):
    """Encoder of Whisper, with frames `[B, F, D]` as input."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor, **options: Any) -> Any:
        """Output of the encoder."""
        return self.encoder(frames.mT, **options)


class SpeechModel(Autoencoder):
    """Encoder of a speech model of `transformers`: audio `[B, 1, T]` to hidden states `[B, D, F]`.

    Frame f is of the samples from `f * hop_length` on, at the model's `sample_rate`. `layer` counts hidden
    states from 0, the input of the first layer; "average" is the mean of all. A signal of over 20 s is
    computed in blocks, each with 5 s before and after it; Whisper's are 30 s, filled with zeros. Nothing is
    downloaded, weights are read from safetensors only. ConfigError for a folder without a speech model, and a
    layer that it lacks.
    """

    audio_channels = 1

    def __init__(self, path: str | Path, layer: Layer = "average"):
        super().__init__()
        self.network, extractor = load(Path(path))
        config: Any = self.network.config
        if config.model_type == WHISPER:
            self.network, self.inputs = MelEncoder(self.network.encoder), WindowedFilterbank(extractor)
        else:
            self.inputs = Filterbank(extractor) if config.model_type == BERT else Waveform(config, extractor)
        self.latent_dim, self.hop_length = config.hidden_size, self.inputs.hop_length
        self.sample_rate, self.layer = int(extractor.sampling_rate), layer
        last = config.num_hidden_layers
        if layer != "average" and layer not in range(last + 1):
            raise ConfigError(f"layer must be average or 0 to {last}, as {path} has, got {layer}")

    def encode(self, audio: Tensor) -> Tensor:
        """Hidden states `[B, D, F]` of audio `[B, 1, T]`, `T` a multiple of `hop_length`."""
        prepare = self.inputs
        with torch.autocast(audio.device.type, enabled=False):
            inputs = prepare(audio[:, 0].float())
        frames = (inputs.shape[1] - prepare.reach) // prepare.step + 1
        parts = []
        for start in range(0, frames, prepare.block):
            first = max(0, start - prepare.context)
            last = min(frames, start + prepare.block + prepare.context)
            part = inputs[:, first * prepare.step : (last - 1) * prepare.step + prepare.reach]
            states = self.network(part, output_hidden_states=True).hidden_states
            chosen = torch.stack(states).mean(0) if self.layer == "average" else states[self.layer]
            parts.append(chosen[:, start - first :][:, : prepare.block])
        return torch.cat(parts, 1).mT[..., : audio.shape[-1] // self.hop_length]

    def forward(self, audio: Tensor) -> Tensor:
        """Hidden states of audio, see `encode`."""
        return self.encode(audio)


def load(path: Path) -> tuple[Any, Any]:
    """Load a speech model of a local folder, and its feature extractor; ConfigError if there is none."""

    def choose(config: Any) -> str:
        if config.model_type not in (*KINDS, BERT, WHISPER):
            kinds = ", ".join((*KINDS, BERT, WHISPER))
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
