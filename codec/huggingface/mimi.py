"""Conversion of configs and weights to and from Mimi in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from codec.autoencoders.seanet import ResidualUnits, SEANet
from codec.config import ConfigError
from codec.huggingface.foreign import arguments
from codec.huggingface.mimi_weights import from_weights, to_weights
from codec.huggingface.seanet import KERNEL, euclidean
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
    latent_layers = [
        part for part in cast(SEANet, codec.autoencoder).encoder if isinstance(part, Transformer)
    ]
    unlike = differences(codec, net, layers, units, latent_layers)
    if any(unlike.values()):
        reasons = "; ".join(reason for reason, is_unlike in unlike.items() if is_unlike)
        raise ConfigError(f"not of the shape of Mimi in transformers: {reasons}")
    transformer, quantizer = latent_layers[0], cast(Split, codec.quantizer)
    dilations, heads = units["dilations"], transformer.channels // transformer.head_channels
    inner = cast(Projected, quantizer.acoustic).quantizer.dim
    return {
        "architectures": ["MimiModel"],
        "model_type": "mimi",
        "sampling_rate": codec.sample_rate,
        "frame_rate": codec.frame_rate,
        "audio_channels": codec.audio_channels,
        "hidden_size": net["latent_dim"],
        "num_filters": net["encoder_channels"],
        "num_residual_layers": len(dilations),
        "upsampling_ratios": list(reversed(net["strides"])),
        "kernel_size": KERNEL,
        "last_kernel_size": net["latent_kernel_size"],
        "residual_kernel_size": units["kernel_size"],
        "dilation_growth_rate": dilations[1] if len(dilations) > 1 else 2,
        "use_causal_conv": True,
        "pad_mode": "constant",
        "compress": round(1 / units["hidden_ratio"]),
        "trim_right_ratio": 1.0,
        "codebook_size": 2 ** math.ceil(math.log2(max(quantizer.codebook_sizes))),
        "codebook_dim": inner,
        "vector_quantization_hidden_dimension": inner,
        "num_quantizers": quantizer.num_quantizers,
        "num_semantic_quantizers": quantizer.semantic.num_quantizers,
        "use_conv_shortcut": units["convolutional_skip"],
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


def differences(
    codec: Codec,
    net: Mapping[str, Any],
    layers: Mapping[str, Any],
    units: Mapping[str, Any],
    latent_layers: list[Transformer],
) -> dict[str, bool]:
    """Possible differences from Mimi's architecture, each with True if the codec has it."""
    widths = [net["encoder_channels"] * 2**level for level in range(len(net["strides"]))]
    dilations, ratio, quantizer = list(units["dilations"]), units["hidden_ratio"], codec.quantizer
    growth = dilations[1] if len(dilations) > 1 else 2
    return {
        "autoencoder.layers.causal is false": not layers["causal"],
        "autoencoder.layers.activation is not elu": layers["activation"] != "elu",
        "autoencoder.bounded": net["bounded"],
        "autoencoder.bottleneck": net["bottleneck"] is not None,
        "autoencoder.encoder_channels is not decoder_channels": widths[0] != net["decoder_channels"],
        "autoencoder.latent_layers are no causal Transformer": not any(part.causal for part in latent_layers),
        "autoencoder.latent_stride is not 2": net["latent_stride"] != STRIDE,
        "autoencoder.output_kernel_size is not latent_kernel_size": net["output_kernel_size"]
        != net["latent_kernel_size"],
        "autoencoder.residual_units.dilations are no powers of one number": dilations
        != [growth**power for power in range(len(dilations))],
        "autoencoder.residual_units.hidden_ratio is no 1 / n": any(
            max(1, round(width * ratio)) != width // max(1, round(1 / ratio)) for width in widths
        ),
        "channels is more than 2": codec.audio_channels > 2,
        "quantizer is no split residual quantizer of projections and Euclidean codebooks": not split(
            quantizer, net["latent_dim"]
        ),
    }


def split(quantizer: Bottleneck, dim: int) -> bool:
    """Return True for two residual cascades behind projections to the same number of dimensions."""
    branches = [quantizer.semantic, quantizer.acoustic] if isinstance(quantizer, Split) else [None]
    inner = [part.quantizer for part in branches if isinstance(part, Projected)]
    alike = len(inner) == 2 and len({part.dim for part in inner} | {dim}) == 2
    return alike and all(euclidean(part) for part in inner)


def check_loadable(given: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Raise ConfigError with all unsupported values of a Mimi config."""
    small = ("num_filters", "compress", "residual_kernel_size", "dilation_growth_rate", "codebook_size")
    small += ("sampling_rate", "kernel_size", "last_kernel_size", "hidden_size", "num_residual_layers")
    small += ("num_hidden_layers", "num_attention_heads", "sliding_window", "num_semantic_quantizers")
    wrong = [f"{name} {given[name]}" for name in small if given[name] < 1]
    ratios, heads, width = given["upsampling_ratios"], given["num_attention_heads"], given["hidden_size"]
    wrong += [f"num_residual_layers {given['num_residual_layers']}"] * (given["num_residual_layers"] > 64)
    if wrong or not ratios or len(ratios) > 64 or min(ratios) < 1:
        raise ConfigError(f"no such Mimi: {', '.join(wrong) or f'upsampling_ratios {ratios}'}")
    rate = given["sampling_rate"] / math.prod(ratios)
    inner = given["vector_quantization_hidden_dimension"]
    unlike = {
        "use_causal_conv false": not given["use_causal_conv"],
        f"pad_mode {given['pad_mode']} (zeros, constant, can be loaded)": given["pad_mode"] != "constant",
        f"trim_right_ratio {given['trim_right_ratio']}": given["trim_right_ratio"] != 1,
        f"kernel_size {given['kernel_size']} above {KERNEL}": given["kernel_size"] > KERNEL,
        "compress of which the channels are no multiple": given["num_filters"] % given["compress"] != 0,
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
    if any(unlike.values()):
        raise ConfigError(
            "this Mimi has: " + "; ".join(what for what, is_unlike in unlike.items() if is_unlike)
        )


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ConfigError with all unsupported values. Mimi pads with zeros."""
    rope = given["rope_parameters"] or {}
    check_loadable(given, rope)
    width, stages = given["hidden_size"], given["num_quantizers"] - given["num_semantic_quantizers"]
    return {
        "_target_": "codec.Codec",
        "autoencoder": {
            "_target_": "codec.autoencoders.SEANet",
            "audio_channels": given["audio_channels"],
            "latent_dim": width,
            "encoder_channels": given["num_filters"],
            "decoder_channels": given["num_filters"],
            "strides": list(reversed(given["upsampling_ratios"])),
            "latent_kernel_size": given["last_kernel_size"],
            "latent_layers": {
                "_target_": "codec.layers.Transformer",
                "_partial_": True,
                "num_layers": given["num_hidden_layers"],
                "num_heads": given["num_attention_heads"],
                "window": given["sliding_window"],
                "expansion": given["intermediate_size"] / width,
                "layer_scale": given["layer_scale_initial_scale"],
                "rotary_base": rope.get("rope_theta", given["rope_theta"]),
                "causal": True,
            },
            "latent_stride": STRIDE,
            "output_kernel_size": given["last_kernel_size"],
            "bounded": False,
            "layers": {
                "_target_": "codec.layers.Layers",
                "causal": True,
                "weight_norm": False,
                "activation": "elu",
            },
            "residual_units": {
                "_target_": "codec.autoencoders.ResidualUnits",
                "_partial_": True,
                "dilations": [
                    given["dilation_growth_rate"] ** layer for layer in range(given["num_residual_layers"])
                ],
                "kernel_size": given["residual_kernel_size"],
                "hidden_ratio": 1 / given["compress"],
                "convolutional_skip": given["use_conv_shortcut"],
            },
        },
        "quantizer": {
            "_target_": "codec.quantizers.Split",
            "dim": width,
            "semantic": branch(given, given["num_semantic_quantizers"], 0.0),
            "acoustic": branch(given, stages, 1.0),
        },
        "sample_rate": given["sampling_rate"],
    }


def branch(given: Mapping[str, Any], num_quantizers: int, dropout: float) -> dict[str, Any]:
    """Config of the semantic or acoustic quantizer."""
    return {
        "_target_": "codec.quantizers.Projected",
        "_partial_": True,
        "quantizer_dim": given["vector_quantization_hidden_dimension"],
        "quantizer": {
            "_target_": "codec.quantizers.Residual",
            "_partial_": True,
            "num_quantizers": num_quantizers,
            "dropout": dropout,
            "loss_weights": {"commitment": 0.25},
            "codebook": {
                "_target_": "codec.codebooks.EMACodebook",
                "_partial_": True,
                "codebook_size": given["codebook_size"],
            },
        },
    }
