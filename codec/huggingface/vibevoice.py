"""Conversion of configs and weights of VibeVoice's acoustic tokenizer in Hugging Face's `transformers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from codec.config import ConfigError
from codec.model.codec import Codec

RATE = 24_000  # of its feature extractor, Hz; the config has none
DEFAULTS: dict[str, Any] = {
    "channels": 1,
    "hidden_size": 64,
    "kernel_size": 7,
    "rms_norm_eps": 1e-5,
    "num_filters": 32,
    "downsampling_ratios": [2, 2, 4, 5, 5, 8],
    "depths": [3, 3, 3, 3, 3, 3, 8],
    "hidden_act": "gelu",
    "ffn_expansion": 4,
}
# Parts of names in this package, and in `transformers`.
RENAMED = {
    "convtr.conv.": "convtr.convtr.",
    "mixer.": "mixer.conv.",
    "mlp.norm": "ffn_norm",
    "mlp.expand": "ffn.linear1",
    "mlp.project": "ffn.linear2",
    "mlp.scale": "ffn_gamma",
}


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ConfigError for another activation."""
    if given["hidden_act"] != "gelu":
        raise ConfigError(f"hidden_act is {given['hidden_act']!r}; only gelu can be loaded")
    return {
        "_target_": "codec.Codec",
        "autoencoder": {
            "_target_": "codec.autoencoders.VibeVoice",
            "audio_channels": given["channels"],
            "latent_dim": given["hidden_size"],
            "channels": given["num_filters"],
            "strides": given["downsampling_ratios"],
            "depths": given["depths"],
            "kernel_size": given["kernel_size"],
            "expansion": given["ffn_expansion"],
            "epsilon": given["rms_norm_eps"],
        },
        "quantizer": {"_target_": "codec.quantizers.Identity", "dim": given["hidden_size"]},
        "sample_rate": RATE,
    }


def layer_names(side: str, depths: Sequence[int]) -> Iterator[str]:
    """Yield the name of each layer of the `encoder` or `decoder` in `transformers`."""
    for stage, depth in enumerate(depths):
        prefix = f"{side}.conv_layers.{stage - 1}" if stage else f"{side}.stem"
        yield f"{prefix}.{'convtr' if stage and side == 'decoder' else 'conv'}"
        yield from (f"{prefix}.stage.{block}" for block in range(depth))
    yield f"{side}.head"


def from_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a codec from those of `VibeVoiceAcousticTokenizerModel`; `codec` gives the names."""
    weights: dict[str, Tensor] = {}
    for side, depths in (("encoder", config["depths"]), ("decoder", config["depths"][::-1])):
        layers = cast(nn.Sequential, getattr(codec.autoencoder, side))
        for index, (layer, prefix) in enumerate(zip(layers, layer_names(side, depths), strict=True)):
            for name in layer.state_dict():
                original = f"{prefix}.{name}"
                for part, renamed in RENAMED.items():
                    original = original.replace(part, renamed)
                if original in plain:
                    weights[f"autoencoder.{side}.{index}.{name}"] = plain[original]
    return weights
