"""Conversion of configs and weights of X-Codec and Higgs Audio v2's tokenizer, built by `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codec.autoencoders.networks import complete, network_config
from codec.config import ConfigError
from codec.huggingface.foreign import folded
from codec.model.codec import Codec

DEFAULTS: dict[str, Any] = {}  # those of `transformers`
PROJECTIONS = {"project_in": "in_proj", "project_out": "out_proj"}


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ValueError for invalid values."""
    kind = given["model_type"]
    network = network_config(kind, given)
    codebook: dict[str, Any] = {"_partial_": True, "codebook_size": network.codebook_size}
    loss_weights = {"commitment": 0.25}
    if kind == "xcodec":
        if network.codebook_dim != network.hidden_size:
            raise ConfigError(f"codebook_dim is {network.codebook_dim}, and {network.hidden_size} of latents")
        codebook |= {"_target_": "codec.codebooks.EMACodebook"}
    else:
        codebook |= {"_target_": "codec.codebooks.ProjectedCodebook", "codebook_dim": network.codebook_dim}
        loss_weights["codebook"] = 1.0
    return {
        "_target_": "codec.Codec",
        "autoencoder": {
            "_target_": "codec.autoencoders.Xcodec",
            "kind": kind,
            "config": complete(kind, given),
        },
        "quantizer": {
            "_target_": "codec.quantizers.Residual",
            "dim": network.hidden_size,
            "num_quantizers": network.num_quantizers,
            "loss_weights": loss_weights,
            "codebook": codebook,
        },
        "sample_rate": network.sample_rate,
    }


def from_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a codec from folded ones of `transformers`; `codec` gives the names."""
    weights: dict[str, Tensor] = {}
    for index in range(codec.quantizer.num_quantizers):
        stage, own = f"quantizer.quantizers.{index}", f"quantizer.codebooks.{index}"
        vectors = plain[f"{stage}.codebook.embed"]
        weights[f"{own}.vectors"] = vectors
        weights[f"{own}.usage"] = torch.full((len(vectors),), 1 / len(vectors))
        weights[f"{own}.initialised"] = torch.tensor(True)
        for theirs, ours in PROJECTIONS.items():
            for part in ("weight", "bias"):
                if f"{stage}.{theirs}.{part}" in plain:
                    weights[f"{own}.{ours}.{part}"] = plain[f"{stage}.{theirs}.{part}"]
    for name in folded(codec.autoencoder.state_dict()):
        original = name.split(".", 2)[2]  # behind encoder.0. or decoder.0.
        if original in plain:
            weights[f"autoencoder.{name}"] = plain[original]
    return weights
