"""X-Codec 2 and NeuCodec, as they are in Hugging Face's `transformers`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.autoencoders.base import LayeredAutoencoder
from codec.config import ConfigError
from codec.layers.filterbank import Filterbank
from codec.layers.sinc import Resample

Kind = Literal["xcodec2", "neucodec"]
CLASSES = {"xcodec2": "Xcodec2", "neucodec": "NeuCodec"}
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
        network = transformers_config(kind, config)
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
        library = library_with(kind)
        with value_errors(kind):
            model = getattr(library, f"{CLASSES[kind]}Model")(network)
        resample = Resample(1, self.sample_rate, RATE) if self.sample_rate != RATE else nn.Identity()
        margins, zeros = MARGINS[kind]
        inputs = Filterbank(library.SeamlessM4TFeatureExtractor(), margins)
        self.encoder = nn.Sequential(resample, Encoder(model, inputs, zeros))
        self.decoder = nn.Sequential(Decoder(model))


class Encoder(nn.Module):
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


class Decoder(nn.Module):
    """Quantized latents `[B, D, F]` to audio `[B, 1, T]`."""

    def __init__(self, model: Any):
        super().__init__()
        self.project_out, self.acoustic_decoder = model.quantizer.project_out, model.acoustic_decoder

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        return self.acoustic_decoder(self.project_out(latents.mT), attention_mask=None)


def library_with(kind: str) -> Any:
    """Import `transformers`; ConfigError if it is not installed or lacks the model."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]

        getattr(transformers, f"{CLASSES[kind]}Model")
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"autoencoder: {CLASSES[kind]} needs a recent transformers: pip install -U transformers ({error})"
        ) from error
    return transformers


def transformers_config(kind: Kind, given: Mapping[str, Any]) -> Any:
    """Config object of `transformers` with the architecture in a mapping; ValueError for invalid values.

    Options that all models of `transformers` have are left out: some of them name code to be downloaded.
    """
    if kind not in CLASSES:
        raise ValueError(f"kind must be one of {', '.join(CLASSES)}, got {kind!r}")
    library = library_with(kind)
    with value_errors(kind):
        config_class = getattr(library, f"{CLASSES[kind]}Config")
        options = own_options(config_class, given)
        if semantic := given.get("semantic_model_config"):
            if semantic.get("model_type", "wav2vec2-bert") != "wav2vec2-bert":
                raise ValueError(f"semantic_model_config is of {semantic['model_type']!r}, not wav2vec2-bert")
            semantic = own_options(library.Wav2Vec2BertConfig, semantic)
            options["semantic_model_config"] = semantic | {"model_type": "wav2vec2-bert"}
        return config_class(**options)


@contextmanager
def value_errors(kind: str) -> Iterator[None]:
    """Turn errors of `transformers`, which have many types, into a ValueError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ValueError(f"no {kind}: {' '.join(str(error).split())} ({type(error).__name__})") from error


def own_options(config_class: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a config class itself declares."""
    return {name: given[name] for name in inspect.get_annotations(config_class) if name in given}


def complete(kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    """Plain architecture in a `config.json`, with the defaults written out."""
    config = transformers_config(kind, given)

    def plain(part: Any) -> Any:
        values = own_options(type(part), vars(part))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    return plain(config) | {"semantic_model_config": plain(config.semantic_model_config)}
