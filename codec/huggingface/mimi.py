"""Conversion of configs and weights to and from Mimi in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from codec.autoencoders.seanet import ResidualUnits, SEANet
from codec.huggingface.foreign import arguments, refuse
from codec.huggingface.mimi_weights import from_weights, to_weights
from codec.huggingface.seanet import euclidean
from codec.huggingface.seanet_config import (
    check_counts,
    differences,
    from_shared_config,
    residual_config,
    to_shared_config,
    unsupported,
)
from codec.layers.conv import Layers
from codec.layers.transformer import Transformer
from codec.model.codec import Codec
from codec.quantizers.base import Bottleneck
from codec.quantizers.projected import Projected
from codec.quantizers.split import Split

__all__ = ["DEFAULTS", "from_config", "from_weights", "to_config", "to_weights"]

STRIDE = 2  # of latents, in every MimiModel

DEFAULTS: dict[str, Any] = {
    "sampling_rate": 24000,
    "audio_channels": 1,
    "hidden_size": 512,
    "num_filters": 64,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "compress": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": 2048,
    "codebook_dim": None,
    "num_quantizers": 32,
    "use_conv_shortcut": False,
    "vector_quantization_hidden_dimension": 256,
    "num_semantic_quantizers": 1,
    "upsample_groups": None,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "rope_parameters": None,
    "rope_theta": 10000.0,
    "sliding_window": 250,
    "layer_scale_initial_scale": 0.01,
    "attention_bias": False,
    "frame_rate": None,
}


def to_config(codec: Codec) -> dict[str, Any]:
    """Convert a codec's config to `config.json`; ConfigError with its differences from Mimi."""
    net = arguments((codec.config or {}).get("autoencoder", {}), SEANet)
    layers, units = arguments(net["layers"], Layers), arguments(net["residual_units"], ResidualUnits)
    parts = [part for part in cast(SEANet, codec.autoencoder).encoder if isinstance(part, Transformer)]
    unlike = differences(codec, net, layers, units) | {
        "autoencoder.layers.causal is false": not layers["causal"],
        "autoencoder.bottleneck": net["bottleneck"] is not None,
        "autoencoder.latent_layers are no causal Transformer": not any(part.causal for part in parts),
        "autoencoder.latent_stride is not 2": net["latent_stride"] != STRIDE,
        "autoencoder.output_kernel_size is not latent_kernel_size": net["output_kernel_size"]
        != net["latent_kernel_size"],
        "quantizer is no split residual quantizer of projections and Euclidean codebooks": not split(
            codec.quantizer, net["latent_dim"]
        ),
    }
    refuse("not of the shape of Mimi in transformers", unlike)
    transformer, quantizer = parts[0], cast(Split, codec.quantizer)
    heads = transformer.channels // transformer.head_channels
    inner = cast(Projected, quantizer.acoustic).quantizer.dim
    return {
        "architectures": ["MimiModel"],
        "model_type": "mimi",
        **to_shared_config(codec, net, layers, units),
        "frame_rate": codec.frame_rate,
        "last_kernel_size": net["latent_kernel_size"],
        "codebook_size": 2 ** math.ceil(math.log2(max(quantizer.codebook_sizes))),
        "codebook_dim": inner,
        "vector_quantization_hidden_dimension": inner,
        "num_quantizers": quantizer.num_quantizers,
        "num_semantic_quantizers": quantizer.semantic.num_quantizers,
        "upsample_groups": net["latent_dim"],
        "num_hidden_layers": len(transformer.layers),
        "intermediate_size": cast(nn.Linear, transformer.layers[0].expand).out_features,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": transformer.head_channels,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": transformer.rotary_base},
        "sliding_window": transformer.window,
        "layer_scale_initial_scale": arguments(net["latent_layers"], Transformer)["layer_scale"],
        "attention_bias": False,
    }


def split(quantizer: Bottleneck, dim: int) -> bool:
    """Return True for two residual cascades behind projections to the same number of dimensions."""
    branches = [quantizer.semantic, quantizer.acoustic] if isinstance(quantizer, Split) else [None]
    inner = [part.quantizer for part in branches if isinstance(part, Projected)]
    alike = len(inner) == 2 and len({part.dim for part in inner} | {dim}) == 2
    return alike and all(euclidean(part) for part in inner)


def check_loadable(given: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Raise ConfigError with all unsupported values of a Mimi config."""
    transformer = ("num_hidden_layers", "num_attention_heads", "sliding_window")
    check_counts("Mimi", given, *transformer, "num_semantic_quantizers")
    heads, width = given["num_attention_heads"], given["hidden_size"]
    rate = given["sampling_rate"] / math.prod(given["upsampling_ratios"])
    inner = given["vector_quantization_hidden_dimension"]
    unlike = {
        "use_causal_conv false": not given["use_causal_conv"],
        f"pad_mode {given['pad_mode']} (zeros, constant, can be loaded)": given["pad_mode"] != "constant",
        "codebook_dim other than vector_quantization_hidden_dimension": given["codebook_dim"]
        not in (None, inner),
        "vector_quantization_hidden_dimension equal to hidden_size": inner == width,
        "upsample_groups other than hidden_size": given["upsample_groups"] not in (None, width),
        "num_key_value_heads other than num_attention_heads": given["num_key_value_heads"]
        not in (None, heads),
        "head_dim other than hidden_size / num_attention_heads": given["head_dim"]
        not in (None, width // heads),
        f"hidden_act {given['hidden_act']}": given["hidden_act"] != "gelu",
        f"norm_eps {given['norm_eps']}": given["norm_eps"] != 1e-5,
        "attention_bias": given["attention_bias"],
        f"rope_type {rope.get('rope_type')}": rope.get("rope_type", "default") != "default",
        f"frame_rate {given['frame_rate']}, not {rate / STRIDE}": given["frame_rate"] is not None
        and int(math.ceil(rate) / given["frame_rate"]) != STRIDE,
        "num_quantizers not above num_semantic_quantizers": given["num_quantizers"]
        <= given["num_semantic_quantizers"],
    }
    refuse("this Mimi has", unsupported(given) | unlike)


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ConfigError with all unsupported values. Mimi pads with zeros."""
    rope = given["rope_parameters"] or {}
    check_loadable(given, rope)
    width, stages = given["hidden_size"], given["num_quantizers"] - given["num_semantic_quantizers"]
    return {
        "_target_": "codec.Codec",
        "autoencoder": from_shared_config(
            given,
            weight_norm=False,
            latent_layers=latent_layers(given, rope),
            latent_stride=STRIDE,
            output_kernel_size=given["last_kernel_size"],
        ),
        "quantizer": {
            "_target_": "codec.quantizers.Split",
            "dim": width,
            "semantic": branch(given, given["num_semantic_quantizers"], 0.0),
            "acoustic": branch(given, stages, 1.0),
        },
        "sample_rate": given["sampling_rate"],
    }


def latent_layers(given: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Config of the transformer on each side."""
    return {
        "_target_": "codec.layers.Transformer",
        "_partial_": True,
        "num_layers": given["num_hidden_layers"],
        "num_heads": given["num_attention_heads"],
        "window": given["sliding_window"],
        "expansion": given["intermediate_size"] / given["hidden_size"],
        "layer_scale": given["layer_scale_initial_scale"],
        "rotary_base": rope.get("rope_theta", given["rope_theta"]),
        "causal": True,
    }


def branch(given: Mapping[str, Any], num_quantizers: int, dropout: float) -> dict[str, Any]:
    """Config of the semantic or acoustic quantizer."""
    size = given["codebook_size"]
    return {
        "_target_": "codec.quantizers.Projected",
        "_partial_": True,
        "quantizer_dim": given["vector_quantization_hidden_dimension"],
        "quantizer": residual_config(num_quantizers, size, 0.25, _partial_=True, dropout=dropout),
    }
