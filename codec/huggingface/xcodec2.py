"""Conversion of configs and weights of X-Codec 2 and NeuCodec, whose networks are `transformers`'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from codec.autoencoders.networks import complete
from codec.codebooks.fsq import FSQCodebook
from codec.model.codec import Codec

DEFAULTS: dict[str, Any] = {}  # those of `transformers`


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ValueError for invalid values."""
    kind = given["model_type"]
    network = complete(kind, given)
    levels = list(network["quantization_levels"])
    return {
        "_target_": "codec.Codec",
        "autoencoder": {"_target_": "codec.autoencoders.Xcodec2", "kind": kind, "config": network},
        "quantizer": {
            "_target_": "codec.quantizers.Residual",
            "dim": len(levels),
            "num_quantizers": 1,
            "codebook": {
                "_target_": "codec.codebooks.FSQCodebook",
                "_partial_": True,
                "levels": levels,
                "whiten": False,
            },
        },
        "sample_rate": network.get("output_sampling_rate", network.get("sampling_rate")),
    }


def from_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a codec from those of `Xcodec2Model` or `NeuCodecModel`; `codec` gives the names."""
    levels = complete(config["model_type"], config)["quantization_levels"]
    grid = FSQCodebook(len(levels), levels, whiten=False).state_dict()
    weights = {f"quantizer.codebooks.0.{name}": value for name, value in grid.items()}
    for name in codec.autoencoder.state_dict():
        original = name.split(".", 2)[2]  # behind encoder.1. or decoder.0.
        original = f"quantizer.{original}" if original.startswith("project_") else original
        if original in plain:
            weights[f"autoencoder.{name}"] = plain[original]
    return weights
