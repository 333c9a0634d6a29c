"""Conversion of configs and weights to and from EnCodec in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor

from codec.autoencoders.seanet import ResidualUnits, SEANet
from codec.huggingface.bandwidths import bandwidths, depth_of
from codec.huggingface.foreign import arguments, fit_kernel, refuse, renamed
from codec.huggingface.lstm import idle_lstm, lstm_node, num_lstm_layers
from codec.huggingface.seanet import KERNEL, codebook_from, codebook_to, convolutions, euclidean, flattened
from codec.huggingface.seanet_config import (
    check_counts,
    differences,
    from_shared_config,
    residual_config,
    to_shared_config,
    unsupported,
)
from codec.layers.conv import Layers
from codec.layers.recurrent import LSTM
from codec.model.codec import Codec
from codec.quantizers.residual import Residual

IDLE = ".lstm"  # of an LSTM without a name here

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


def to_config(codec: Codec) -> dict[str, Any]:
    """Convert a codec's config to `config.json`; ConfigError with its differences from EnCodec."""
    node, quantizer = (codec.config or {}).get("autoencoder", {}), codec.quantizer
    net = arguments(node, SEANet)
    layers, units = arguments(net["layers"], Layers), arguments(node.get("residual_units"), ResidualUnits)
    unlike = differences(codec, net, layers, units) | {
        "autoencoder.latent_layers": net["latent_layers"] is not None,
        "autoencoder.latent_stride is not 1": net["latent_stride"] != 1,
        "autoencoder.output_kernel_size is not 7": net["output_kernel_size"] != KERNEL,
        "autoencoder.bottleneck is no LSTM": num_lstm_layers(net) is None,
        "quantizer is no residual cascade of Euclidean codebooks": not euclidean(quantizer),
    }
    refuse("not of the shape of EnCodec in transformers", unlike)
    assert isinstance(quantizer, Residual)
    size = 2 ** math.ceil(math.log2(max(quantizer.codebook_sizes)))
    frame_rate = math.ceil(codec.sample_rate / codec.hop_length)
    depths = sorted({*quantizer.depths, quantizer.num_quantizers})
    return {
        "architectures": ["EncodecModel"],
        "model_type": "encodec",
        **to_shared_config(codec, net, layers, units),
        "target_bandwidths": bandwidths(depths, size, frame_rate),
        "normalize": False,
        "chunk_length_s": None,
        "overlap": None,
        "norm_type": "weight_norm",
        "last_kernel_size": max(KERNEL, net["latent_kernel_size"]),
        "num_lstm_layers": num_lstm_layers(net) or 1,
        "codebook_size": size,
        "codebook_dim": net["latent_dim"],
    }


def names(autoencoder: SEANet) -> Iterator[tuple[str, str]]:
    """Yield each convolution's and LSTM's name here and in `transformers`, which has one LSTM per side."""
    for side in ("encoder", "decoder"):
        flat = flattened(autoencoder, side)
        if not any(isinstance(layer, LSTM) for _, layer in flat):
            flat.insert(len(flat) - 2 if side == "encoder" else 1, ("", LSTM(1, 1)))
        for index, (own_name, layer) in enumerate(flat):
            yield from convolutions(layer, own_name, f"{side}.layers.{index}")


def to_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of a codec to folded ones of `EncodecModel`."""
    pairs = list(names(cast(SEANet, codec.autoencoder)))
    tensors = renamed(plain, pairs)
    for own_name, encodec_name in pairs:
        if own_name == IDLE:
            tensors |= idle_lstm(encodec_name, config["num_filters"] * 2 ** len(config["upsampling_ratios"]))
    for side in ("encoder", "decoder"):
        last = max(int(name.split(".")[2]) for name in tensors if name.startswith(side))
        name = f"{side}.layers.{last}.conv.weight"
        tensors[name] = fit_kernel(tensors[name], config["last_kernel_size"], config["use_causal_conv"])
    assert isinstance(codec.quantizer, Residual)
    for index, stage in enumerate(codec.quantizer.stages):
        tensors |= codebook_to(stage, config["codebook_size"], f"quantizer.layers.{index}.codebook")
    return tensors


def check_loadable(given: Mapping[str, Any], zero_padding: bool) -> None:
    """Raise ConfigError with all unsupported values of an EnCodec config."""
    check_counts("EnCodec", given)
    norm, pad = given["norm_type"], given["pad_mode"]
    limits = {
        f"norm_type {norm} (weight_norm alone can be loaded)": norm != "weight_norm",
        f"pad_mode {pad} (we pad zeros; --zero-padding loads it all the same, with other codes at the "
        "edges of a recording)": pad != "constant" and not zero_padding,
        "normalize": given["normalize"],
        "chunk_length_s (we code a recording as a whole)": given["chunk_length_s"] is not None,
        f"last_kernel_size {given['last_kernel_size']} above {KERNEL}": given["last_kernel_size"] > KERNEL,
        "codebook_dim other than hidden_size": given["codebook_dim"] not in (None, given["hidden_size"]),
    }
    refuse("this EnCodec has", unsupported(given) | limits)


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ConfigError with all unsupported values.

    `zero_padding` accepts a model that was trained with another padding than zeros: its codes then differ
    near the beginning of a recording, and near the end unless it is causal.
    """
    check_loadable(given, zero_padding)
    frame_rate = math.ceil(given["sampling_rate"] / math.prod(given["upsampling_ratios"]))
    size = given["codebook_size"]
    depths = [max(1, depth_of(bandwidth, size, frame_rate)) for bandwidth in given["target_bandwidths"]]
    bottleneck = lstm_node(given["num_lstm_layers"])
    return {
        "_target_": "codec.Codec",
        "autoencoder": from_shared_config(given, weight_norm=True, bottleneck=bottleneck),
        "quantizer": residual_config(
            depths[-1], size, 1.0, dim=given["hidden_size"], dropout=1.0, depths=depths
        ),
        "sample_rate": given["sampling_rate"],
    }


def from_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of `EncodecModel` to folded ones of a codec; `codec` gives only the names."""
    pairs = names(cast(SEANet, codec.autoencoder))
    tensors = renamed(plain, ((encodec_name, own_name) for own_name, encodec_name in pairs))
    causal = config["use_causal_conv"]
    last = len(cast(SEANet, codec.autoencoder).decoder) - 1
    for name in ("encoder.0", "decoder.0", f"decoder.{last}"):
        key = f"autoencoder.{name}.conv.weight"
        if key in tensors:
            tensors[key] = fit_kernel(tensors[key], KERNEL, causal)
    for index in range(codec.quantizer.num_quantizers):
        own_name = f"quantizer.codebooks.{index}"
        tensors |= codebook_from(plain, f"quantizer.layers.{index}.codebook", own_name)
    return tensors
