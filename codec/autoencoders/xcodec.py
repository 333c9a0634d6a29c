"""X-Codec and the tokenizer of Higgs Audio v2, as they are in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.autoencoders.base import LayeredAutoencoder
from codec.autoencoders.networks import build_network, network_config
from codec.layers.sinc import HannResample

Kind = Literal["xcodec", "higgs_audio_v2_tokenizer"]


class Xcodec(LayeredAutoencoder):
    """Networks of X-Codec (arXiv 2408.17175) and Higgs Audio v2's tokenizer, built by `transformers`.

    `config` is that of `transformers`, of which only the architecture is read. Latents are those of a speech
    model (HuBERT, WavLM), averaged over its layers, and of DAC's encoder, joined by a linear map. The
    encoder is always in eval mode. Contexts are unbounded, and there is no streaming form.
    ConfigError without `transformers`, ValueError for sizes that do not fit each other.
    """

    audio_channels = 1

    def __init__(self, kind: Kind, config: Mapping[str, Any]):
        super().__init__()
        network = network_config(kind, config)
        self.sample_rate, self.hop_length = network.sample_rate, network.hop_length
        self.latent_dim = network.hidden_size
        semantic = Semantic(network)
        heard = self.hop_length * Fraction(semantic.rate, self.sample_rate)
        upsampling = math.prod(network.acoustic_model_config.upsampling_ratios)
        unlike = {
            f"a hop of {float(heard):g} samples of {semantic.rate} Hz, and a frame of features every "
            f"{semantic.step}": heard != semantic.step,
            f"windows of {semantic.reach} samples and {semantic.margin} zeros beside them": not semantic.fits,
            "strides other than 1 behind the speech model": any(stride != 1 for stride in network.strides),
            f"upsampling_ratios of the product {upsampling}, and a hop of {self.hop_length}": upsampling
            != self.hop_length,
        }
        if any(unlike.values()):
            raise ValueError(
                f"no {kind} as published: {'; '.join(k for k, differs in unlike.items() if differs)}"
            )
        model = build_network(kind, network)
        self.encoder = nn.Sequential(XcodecEncoder(model, semantic, self.sample_rate))
        self.decoder = nn.Sequential(XcodecDecoder(model))


class Semantic:
    """Sizes of the semantic branch, in samples at its own `rate`, Hz.

    A frame comes every `step` samples, of `reach` samples; the signal has `margin` zeros at both ends. Of the
    speech model's frames every `stride`-th is taken.
    """

    def __init__(self, network: Any):
        speech = network.semantic_model_config
        self.rate = getattr(network, "semantic_sample_rate", network.sample_rate)
        self.stride = getattr(network, "semantic_downsample_factor", 1)
        self.margin = 160 if hasattr(network, "semantic_sample_rate") else network.hop_length // 2
        hops = [math.prod(speech.conv_stride[:number]) for number in range(len(speech.conv_stride) + 1)]
        self.reach = 1 + sum(
            (kernel - 1) * hop for kernel, hop in zip(speech.conv_kernel, hops, strict=False)
        )
        self.step = hops[-1] * self.stride
        # Frames of the speech model beyond those of whole steps.
        self.fits = -self.stride < (2 * self.margin - self.reach) // hops[-1] + 1 <= 0


class XcodecEncoder(nn.Module):
    """Audio `[B, 1, T]` to latents `[B, D, F]` of a semantic and an acoustic branch."""

    def __init__(self, model: Any, semantic: Semantic, sample_rate: int):
        super().__init__()
        self.semantic_model, self.encoder_semantic = model.semantic_model, model.encoder_semantic
        self.acoustic_encoder, self.fc = model.acoustic_encoder, model.fc
        same = sample_rate == semantic.rate
        self.resample = nn.Identity() if same else HannResample(1, sample_rate, semantic.rate)
        self.margin, self.stride = semantic.margin, semantic.stride
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: dropout and masks would change the codes."""
        return super().train(False)

    def forward(self, audio: Tensor) -> Tensor:
        """Encode."""
        heard = functional.pad(self.resample(audio)[:, 0], (self.margin, self.margin))
        states = self.semantic_model(heard, output_hidden_states=True).hidden_states
        features = torch.stack(states, 1).mean(1)[:, :: self.stride]
        joined = torch.cat([self.acoustic_encoder(audio), self.encoder_semantic(features.mT)], 1)
        return self.fc(joined.mT).mT


class XcodecDecoder(nn.Module):
    """Quantized latents `[B, D, F]` to audio `[B, 1, T]`."""

    def __init__(self, model: Any):
        super().__init__()
        self.fc2, self.acoustic_decoder = model.fc2, model.acoustic_decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        return self.acoustic_decoder(self.fc2(latents.mT).mT)
