"""Conversion of configs and weights to and from EnCodec in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from codec.autoencoders.seanet import ResidualUnits, SEANet
from codec.config import ConfigError
from codec.huggingface.bandwidths import bandwidths, depth_of
from codec.huggingface.foreign import arguments, fit_kernel
from codec.huggingface.lstm import idle_lstm, lstm_node, num_lstm_layers
from codec.huggingface.seanet import FAR, KERNEL, convolutions, euclidean, flattened
from codec.layers.conv import Layers
from codec.layers.recurrent import LSTM
from codec.model.codec import Codec
from codec.quantizers.residual import Residual

DEFAULTS: dict[str, Any] = {
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
    "sampling_rate": 24000,
    "audio_channels": 1,
    "normalize": False,
    "chunk_length_s": None,
    "hidden_size": 128,
    "num_filters": 32,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 5, 4, 2],
    "norm_type": "weight_norm",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "reflect",
    "compress": 2,
    "num_lstm_layers": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": 1024,
    "codebook_dim": None,
    "use_conv_shortcut": True,
}


def differences(
    codec: Codec, net: Mapping[str, Any], layers: Mapping[str, Any], units: Mapping[str, Any]
) -> dict[str, bool]:
    """Possible differences from EnCodec's architecture, each with True if the codec has it."""
    widths = [net["encoder_channels"] * 2**level for level in range(len(net["strides"]))]
    dilations, ratio = list(units["dilations"]), units["hidden_ratio"]
    growth = dilations[1] if len(dilations) > 1 else 2
    return {
        "autoencoder.layers.activation is not elu": layers["activation"] != "elu",
        "autoencoder.bounded": net["bounded"],
        "autoencoder.latent_layers": net["latent_layers"] is not None,
        "autoencoder.latent_stride is not 1": net["latent_stride"] != 1,
        "autoencoder.output_kernel_size is not 7": net["output_kernel_size"] != KERNEL,
        "autoencoder.bottleneck is no LSTM": num_lstm_layers(net) is None,
        "autoencoder.encoder_channels is not decoder_channels": widths[0] != net["decoder_channels"],
        "autoencoder.residual_units.dilations are no powers of one number": dilations
        != [growth**power for power in range(len(dilations))],
        "autoencoder.residual_units.hidden_ratio is no 1 / n": any(
            max(1, round(width * ratio)) != width // max(1, round(1 / ratio)) for width in widths
        ),
        "channels is more than 2": codec.audio_channels > 2,
        "quantizer is no residual cascade of Euclidean codebooks": not euclidean(codec.quantizer),
    }


def to_config(codec: Codec) -> dict[str, Any]:
    """Convert a codec's config to `config.json`; ConfigError with its differences from EnCodec."""
    node = (codec.config or {}).get("autoencoder", {})
    net = arguments(node, SEANet)
    layers, units = arguments(net["layers"], Layers), arguments(node.get("residual_units"), ResidualUnits)
    growth = units["dilations"][1] if len(units["dilations"]) > 1 else 2
    compress = round(1 / units["hidden_ratio"])
    quantizer = codec.quantizer
    unlike = differences(codec, net, layers, units)
    if any(unlike.values()):
        reasons = "; ".join(reason for reason, differs in unlike.items() if differs)
        raise ConfigError(f"not of the shape of EnCodec in transformers: {reasons}")
    assert isinstance(quantizer, Residual)
    size = 2 ** math.ceil(math.log2(max(quantizer.codebook_sizes)))
    frame_rate = math.ceil(codec.sample_rate / codec.hop_length)
    depths = sorted({*quantizer.depths, quantizer.num_quantizers})
    return {
        "architectures": ["EncodecModel"],
        "model_type": "encodec",
        "target_bandwidths": bandwidths(depths, size, frame_rate),
        "sampling_rate": codec.sample_rate,
        "audio_channels": codec.audio_channels,
        "normalize": False,
        "chunk_length_s": None,
        "overlap": None,
        "hidden_size": net["latent_dim"],
        "num_filters": net["encoder_channels"],
        "num_residual_layers": len(units["dilations"]),
        "upsampling_ratios": list(reversed(net["strides"])),
        "norm_type": "weight_norm",
        "kernel_size": KERNEL,
        "last_kernel_size": max(KERNEL, net["latent_kernel_size"]),
        "residual_kernel_size": units["kernel_size"],
        "dilation_growth_rate": growth,
        "use_causal_conv": layers["causal"],
        "pad_mode": "constant",
        "compress": compress,
        "num_lstm_layers": num_lstm_layers(net) or 1,
        "trim_right_ratio": 1.0,
        "codebook_size": size,
        "codebook_dim": net["latent_dim"],
        "use_conv_shortcut": units["convolutional_skip"],
    }


def names(autoencoder: SEANet) -> Iterator[tuple[str, str]]:
    """Yield each convolution's and LSTM's name here and in `transformers`, which has one LSTM per side."""
    for side in ("encoder", "decoder"):
        flat = flattened(autoencoder, side)
        if not any(isinstance(layer, LSTM) for _, layer in flat):
            flat.insert(len(flat) - 2 if side == "encoder" else 1, ("", LSTM(1, 1)))
        for index, (own_name, layer) in enumerate(flat):
            encodec_name = f"{side}.layers.{index}"
            if isinstance(layer, LSTM):
                yield f"{own_name}.lstm" if own_name else "", f"{encodec_name}.lstm"
            yield from convolutions(layer, own_name, encodec_name)


def to_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of a codec to folded ones of `EncodecModel`."""
    tensors: dict[str, Tensor] = {}
    for own_name, encodec_name in names(cast(SEANet, codec.autoencoder)):
        if not own_name:
            tensors |= idle_lstm(encodec_name, config["num_filters"] * 2 ** len(config["upsampling_ratios"]))
        prefix = f"{own_name}."
        tensors |= {
            f"{encodec_name}.{name.removeprefix(prefix)}": tensor
            for name, tensor in plain.items()
            if own_name and name.startswith(prefix)
        }
    for side in ("encoder", "decoder"):
        last = max(int(name.split(".")[2]) for name in tensors if name.startswith(side))
        name = f"{side}.layers.{last}.conv.weight"
        tensors[name] = fit_kernel(tensors[name], config["last_kernel_size"], config["use_causal_conv"])
    assert isinstance(codec.quantizer, Residual)
    for index, stage in enumerate(codec.quantizer.stages):
        table, missing = stage.table(), config["codebook_size"] - stage.codebook_size
        usage = functional.pad(cast(Tensor, stage.usage), (0, missing))
        table = functional.pad(table, (0, 0, 0, missing), value=FAR)
        prefix = f"quantizer.layers.{index}.codebook"
        tensors[f"{prefix}.embed"] = table
        tensors[f"{prefix}.embed_avg"] = table * usage[:, None]
        tensors[f"{prefix}.cluster_size"] = usage
        tensors[f"{prefix}.inited"] = torch.ones(1)
    return tensors


def check_loadable(given: Mapping[str, Any], zero_padding: bool) -> None:
    """Raise ConfigError with all unsupported values of an EnCodec config."""
    small = ("num_filters", "compress", "residual_kernel_size", "dilation_growth_rate", "codebook_size")
    small += ("sampling_rate", "kernel_size", "last_kernel_size", "hidden_size", "num_residual_layers")
    wrong = [f"{name} {given[name]}" for name in small if given[name] < 1]
    ratios = given["upsampling_ratios"]
    wrong += [f"num_residual_layers {given['num_residual_layers']}"] * (given["num_residual_layers"] > 64)
    if wrong or not ratios or len(ratios) > 64 or min(ratios) < 1:
        raise ConfigError(f"no such EnCodec: {', '.join(wrong) or f'upsampling_ratios {ratios}'}")
    norm, pad = given["norm_type"], given["pad_mode"]
    limits = {
        f"norm_type {norm} (weight_norm alone can be loaded)": norm != "weight_norm",
        f"pad_mode {pad} (we pad zeros; --zero-padding loads it all the same, with other codes at the "
        "edges of a recording)": pad != "constant" and not zero_padding,
        "normalize": given["normalize"],
        "chunk_length_s (we code a recording as a whole)": given["chunk_length_s"] is not None,
        f"trim_right_ratio {given['trim_right_ratio']}": given["trim_right_ratio"] != 1,
        f"kernel_size {given['kernel_size']} above {KERNEL}": given["kernel_size"] > KERNEL,
        f"last_kernel_size {given['last_kernel_size']} above {KERNEL}": given["last_kernel_size"] > KERNEL,
        "compress of which the channels are no multiple": given["num_filters"] % given["compress"] != 0,
        "codebook_dim other than hidden_size": given["codebook_dim"] not in (None, given["hidden_size"]),
    }
    if any(limits.values()):
        raise ConfigError(
            "this EnCodec has: " + "; ".join(reason for reason, applies in limits.items() if applies)
        )


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ConfigError with all unsupported values.

    `zero_padding` accepts a model that was trained with another padding than zeros: its codes then differ
    near the beginning of a recording, and near the end unless it is causal.
    """
    check_loadable(given, zero_padding)
    ratios = given["upsampling_ratios"]
    hop, layers = math.prod(ratios), range(given["num_residual_layers"])
    frame_rate = math.ceil(given["sampling_rate"] / hop)
    size = given["codebook_size"]
    depths = [max(1, depth_of(bandwidth, size, frame_rate)) for bandwidth in given["target_bandwidths"]]
    return {
        "_target_": "codec.Codec",
        "autoencoder": {
            "_target_": "codec.autoencoders.SEANet",
            "audio_channels": given["audio_channels"],
            "latent_dim": given["hidden_size"],
            "encoder_channels": given["num_filters"],
            "decoder_channels": given["num_filters"],
            "strides": list(reversed(ratios)),
            "latent_kernel_size": given["last_kernel_size"],
            "bottleneck": lstm_node(given["num_lstm_layers"]),
            "bounded": False,
            "layers": {
                "_target_": "codec.layers.Layers",
                "causal": given["use_causal_conv"],
                "weight_norm": True,
                "activation": "elu",
            },
            "residual_units": {
                "_target_": "codec.autoencoders.ResidualUnits",
                "_partial_": True,
                "dilations": [given["dilation_growth_rate"] ** layer for layer in layers],
                "kernel_size": given["residual_kernel_size"],
                "hidden_ratio": 1 / given["compress"],
                "convolutional_skip": given["use_conv_shortcut"],
            },
        },
        "quantizer": {
            "_target_": "codec.quantizers.Residual",
            "dim": given["hidden_size"],
            "num_quantizers": depths[-1],
            "dropout": 1.0,
            "depths": depths,
            "loss_weights": {"commitment": 1.0},
            "codebook": {
                "_target_": "codec.codebooks.EMACodebook",
                "_partial_": True,
                "codebook_size": given["codebook_size"],
            },
        },
        "sample_rate": given["sampling_rate"],
    }


def from_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of `EncodecModel` to folded ones of a codec; `codec` gives only the names."""
    tensors: dict[str, Tensor] = {}
    for own_name, encodec_name in names(cast(SEANet, codec.autoencoder)):
        prefix = f"{encodec_name}."
        tensors |= {
            f"{own_name}.{name.removeprefix(prefix)}": tensor
            for name, tensor in plain.items()
            if name.startswith(prefix)
        }
    causal = config["use_causal_conv"]
    last = len(cast(SEANet, codec.autoencoder).decoder) - 1
    for name in ("encoder.0", "decoder.0", f"decoder.{last}"):
        key = f"autoencoder.{name}.conv.weight"
        if key in tensors:
            tensors[key] = fit_kernel(tensors[key], KERNEL, causal)
    for index in range(codec.quantizer.num_quantizers):
        prefix = f"quantizer.layers.{index}.codebook"
        vectors = plain.get(f"{prefix}.embed")
        if vectors is None:
            raise ConfigError(f"{prefix}.embed is missing")
        counts = plain.get(f"{prefix}.cluster_size", torch.zeros(len(vectors)))
        has_counts = bool(counts.sum() > 0)
        usage = counts / counts.sum() if has_counts else torch.full_like(counts, 1 / len(counts))
        tensors[f"quantizer.codebooks.{index}.vectors"] = vectors
        tensors[f"quantizer.codebooks.{index}.usage"] = usage
        tensors[f"quantizer.codebooks.{index}.initialised"] = torch.tensor(True)
    return tensors
