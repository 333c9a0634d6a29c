"""X-Codec 2 and NeuCodec, as they are in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.autoencoders.base import LayeredAutoencoder
from codec.autoencoders.networks import build_network, library_with, network_config
from codec.layers.filterbank import Filterbank
from codec.layers.sinc import Resample

Kind = Literal["xcodec2", "neucodec"]
RATE, HOP, FEATURES = 16_000, 320, 160  # of the features of w2v-BERT 2.0; Hz, samples, values
# Zeros before and after the audio, for these features and for the convolutions, as in the feature extractors.
MARGINS = {"xcodec2": ((160, 160), 0), "neucodec": ((0, HOP), HOP)}
MOST_CODES = 2**20  # a table of all codes is computed


class Xcodec2(LayeredAutoencoder):
    """Networks of X-Codec 2 (arXiv 2502.04128) and NeuCodec (arXiv 2509.09550), built by `transformers`.

    `config` is that of `transformers`, of which only the architecture is read. Latents are bounded
    projections, one dimension for each of `quantization_levels`, for an `FSQCodebook` without whitening.
    NeuCodec's audio has 24 kHz on both sides; its encoder resamples it to 16 kHz. The encoder is always in
    eval mode. Contexts are unbounded, and there is no streaming form.
    ConfigError without `transformers`, ValueError for sizes that do not fit each other.
    """

    audio_channels = 1

    def __init__(self, kind: Kind, config: Mapping[str, Any]):
        super().__init__()
        network = network_config(kind, config)
        source = getattr(network, "input_sampling_rate", None) or network.sampling_rate
        self.sample_rate = getattr(network, "output_sampling_rate", source)
        semantic, levels = network.semantic_model_config, list(network.quantization_levels)
        hop = HOP * Fraction(self.sample_rate, RATE)
        unlike = {
            f"a sample rate of {source} Hz, not {RATE}": source != RATE,
            f"{self.sample_rate} Hz, lower than {RATE}, or no hop": hop < HOP or hop.denominator > 1,
            f"downsampling_ratios with a product other than {HOP}": math.prod(network.downsampling_ratios)
            != HOP,
            f"features of other than {FEATURES} values": semantic.feature_projection_input_dim != FEATURES,
            "a quantization_dim other than the sum of both hidden_size": network.quantization_dim
            != network.hidden_size + semantic.hidden_size,
            f"levels below 2 or with a product above {MOST_CODES}": not levels
            or min(levels) < 2
            or math.prod(levels) > MOST_CODES,
        }
        if any(unlike.values()):
            raise ValueError(
                f"no {kind} as published: {'; '.join(k for k, differs in unlike.items() if differs)}"
            )
        self.latent_dim, self.hop_length = len(levels), int(hop)
        library, model = library_with(kind), build_network(kind, network)
        resample = Resample(1, self.sample_rate, RATE) if self.sample_rate != RATE else nn.Identity()
        margins, zeros = MARGINS[kind]
        inputs = Filterbank(library.SeamlessM4TFeatureExtractor(), margins)
        self.encoder = nn.Sequential(resample, Xcodec2Encoder(model, inputs, zeros))
        self.decoder = nn.Sequential(Xcodec2Decoder(model))


class Xcodec2Encoder(nn.Module):
    """Audio `[B, 1, T]` at 16 kHz to bounded latents `[B, D, F]` of a semantic and an acoustic branch."""

    def __init__(self, model: Any, inputs: Filterbank, zeros: int):
        super().__init__()
        self.semantic_encoder, self.semantic_adapter = model.semantic_encoder, model.semantic_adapter
        self.acoustic_encoder, self.fc_encoder = model.acoustic_encoder, model.fc_encoder
        self.project_in, self.grid = model.quantizer.project_in, model.quantizer.quantizer
        self.inputs, self.zeros = inputs, zeros
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: dropout and masks would change the codes."""
        return super().train(False)

    def forward(self, audio: Tensor) -> Tensor:
        """Encode."""
        with torch.autocast(audio.device.type, enabled=False):
            features = self.inputs(audio[:, 0].float()).to(audio.dtype)
        semantic = self.semantic_adapter(self.semantic_encoder(features).last_hidden_state.mT)
        acoustic = self.acoustic_encoder(functional.pad(audio, (0, self.zeros)))[..., : semantic.shape[-1]]
        joined = self.fc_encoder(torch.cat([semantic, acoustic], 1).mT)
        # Bounded once more by the quantizer, as in the published model.
        return self.grid.bound(self.project_in(joined)).mT


class Xcodec2Decoder(nn.Module):
    """Quantized latents `[B, D, F]` to audio `[B, 1, T]`."""

    def __init__(self, model: Any):
        super().__init__()
        self.project_out, self.acoustic_decoder = model.quantizer.project_out, model.acoustic_decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        return self.acoustic_decoder(self.project_out(latents.mT), attention_mask=None)
