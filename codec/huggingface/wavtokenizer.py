"""Conversion of configs and weights to and from WavTokenizer in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from codec.autoencoders.halves import Halves
from codec.autoencoders.seanet import ResidualUnits, SEANet
from codec.autoencoders.vocos import Vocos
from codec.config import TARGET, locate
from codec.huggingface.foreign import arguments, fit_kernel, refuse, renamed
from codec.huggingface.lstm import lstm_node, num_lstm_layers
from codec.huggingface.seanet import KERNEL, codebook_from, codebook_to, convolutions, euclidean, flattened
from codec.huggingface.seanet_config import (
    check_counts,
    differences,
    from_shared_config,
    residual_config,
    to_shared_config,
    unsupported,
)
from codec.layers.conv import Conv1d, Layers
from codec.layers.convnext import ChannelsFirst, ChannelsLast, ConvNeXtBlock, Projection
from codec.layers.polar import PolarInverseSTFT
from codec.layers.position import PositionNet
from codec.model.codec import Codec
from codec.quantizers.residual import Residual

OVERLAP = 4  # hops of a window
CODEBOOK = "encoder_model.quantizer.codebook"
BLOCK = {"depthwise": "dwconv", "pointwise.expand": "pwconv1", "pointwise.project": "pwconv2"}
BLOCK["pointwise.scale"] = "gamma"
DECODER = "autoencoder.decoder.0"
BEFORE, AFTER = 5, 2  # layers of the decoder around its blocks
UNLIKE = "not of the shape of WavTokenizer in transformers"

DEFAULTS: dict[str, Any] = {
    "sampling_rate": 24000,
    "audio_channels": 1,
    "num_filters": 32,
    "upsampling_ratios": [6, 5, 5, 4],
    "num_residual_layers": 1,
    "dilation_growth_rate": 2,
    "compress": 2,
    "use_conv_shortcut": True,
    "use_causal_conv": False,
    "pad_mode": "reflect",
    "norm_type": "weight_norm",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "num_lstm_layers": 2,
    "hidden_size": 512,
    "codebook_size": 4096,
    "codebook_dim": 512,
    "decoder_hidden_size": 768,
    "decoder_intermediate_size": 2304,
    "decoder_num_layers": 12,
    "adanorm_num_embeddings": 4,
    "decoder_attention_num_groups": 32,
    "norm_eps": 1e-6,
}


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ConfigError with all unsupported values.

    `zero_padding` makes an encoder that can be streamed of one that pads with reflections.
    """
    layers = ("decoder_num_layers", "decoder_hidden_size", "decoder_intermediate_size")
    check_counts("WavTokenizer", given, *layers, "decoder_attention_num_groups", "num_lstm_layers")
    hop, pad = math.prod(given["upsampling_ratios"]), given["pad_mode"]
    unlike = {
        "audio_channels other than 1": given["audio_channels"] != 1,
        f"norm_type {given['norm_type']} (weight_norm alone can be loaded)": given["norm_type"]
        != "weight_norm",
        f"pad_mode {pad} (reflect and constant can be loaded)": pad not in ("reflect", "constant"),
        "codebook_dim other than hidden_size": given["codebook_dim"] != given["hidden_size"],
        f"a hop of {hop} samples, an odd number": hop % 2,
    }
    refuse("this WavTokenizer has", unsupported({**given, "trim_right_ratio": 1.0}) | unlike)
    encoder = from_shared_config(given, weight_norm=True, bottleneck=lstm_node(given["num_lstm_layers"]))
    if pad == "reflect" and not zero_padding:
        encoder["layers"][TARGET] = "codec.layers.ReflectedLayers"
    rate, width = given["sampling_rate"], given["hidden_size"]
    return {
        "_target_": "codec.Codec",
        "autoencoder": {
            "_target_": "codec.autoencoders.Halves",
            "latent_dim": width,
            "encoder": encoder,
            "decoder": decoder_config(given, hop),
            "encoder_rate": rate,
            "decoder_rate": rate,
        },
        "quantizer": residual_config(1, given["codebook_size"], 1.0, dim=width),
        "sample_rate": rate,
    }


def decoder_config(given: Mapping[str, Any], hop: int) -> dict[str, Any]:
    """Config of the decoder, half of an autoencoder."""
    width, epsilon = given["decoder_hidden_size"], given["norm_eps"]
    return {
        "_target_": "codec.autoencoders.Vocos",
        "latent_dim": given["hidden_size"],
        "hop": hop,
        "windows": [OVERLAP * hop, OVERLAP * hop],
        "channels": [width],
        "strides": [],
        "encoder_blocks": [0],
        "decoder_blocks": [given["decoder_num_layers"]],
        "blocks": {
            "_target_": "codec.layers.ConvNeXtBlock",
            "_partial_": True,
            "expansion": given["decoder_intermediate_size"] / width,
            "epsilon": epsilon,
        },
        "bottleneck": {
            "_target_": "codec.layers.PositionNet",
            "_partial_": True,
            "num_groups": given["decoder_attention_num_groups"],
            "epsilon": epsilon,
        },
        "input_kernel_size": KERNEL,
        "synthesis": {"_target_": "codec.layers.PolarInverseSTFT", "_partial_": True},
        "epsilon": epsilon,
    }


def to_config(codec: Codec) -> dict[str, Any]:
    """Convert a codec's config to `config.json`; ConfigError with its differences from WavTokenizer."""
    node = (codec.config or {}).get("autoencoder", {})
    sides = [locate(node[side][TARGET]) for side in ("encoder", "decoder")]
    reasons: dict[str, Any] = {
        "autoencoder.encoder is no SEANet": sides[0] is not SEANet,
        "autoencoder.decoder is no Vocos": sides[1] is not Vocos,
        "autoencoder.encoder_rate is not decoder_rate": node["encoder_rate"] != node["decoder_rate"],
    }
    refuse(UNLIKE, reasons)
    net = arguments(node["encoder"], SEANet)
    net |= {"decoder_channels": net["encoder_channels"], "bounded": False}  # of the half that is not used
    layers, units = arguments(net["layers"], Layers), arguments(net["residual_units"], ResidualUnits)
    decoder = decoder_of(codec)
    unlike = differences(codec, net, layers, units) | {
        "channels is not 1": codec.audio_channels != 1,
        "autoencoder.encoder.latent_layers": net["latent_layers"] is not None,
        "autoencoder.encoder.latent_stride is not 1": net["latent_stride"] != 1,
        "autoencoder.encoder.bottleneck is no LSTM": not num_lstm_layers(net),
        "autoencoder.decoder is no Vocos with input_kernel_size=7, PositionNet, ConvNeXt blocks of "
        "kernel 7, PolarInverseSTFT, windows of 4 hops and one epsilon": not is_theirs(
            decoder, codec.hop_length
        ),
        "quantizer is no single Euclidean codebook": not euclidean(codec.quantizer)
        or codec.quantizer.num_quantizers != 1,
    }
    refuse(UNLIKE, unlike)
    position, block = cast(PositionNet, decoder[3]), cast(ConvNeXtBlock, decoder[5])
    shared = to_shared_config(codec, net, layers, units)
    return {name: value for name, value in shared.items() if name in DEFAULTS} | {
        "architectures": ["WavTokenizerModel"],
        "model_type": "wavtokenizer",
        "norm_type": "weight_norm",
        "last_kernel_size": net["latent_kernel_size"],
        "num_lstm_layers": num_lstm_layers(net),
        "codebook_size": max(codec.quantizer.codebook_sizes),
        "codebook_dim": net["latent_dim"],
        "decoder_hidden_size": position.norm.normalized_shape[0],
        "decoder_intermediate_size": block.pointwise.expand.out_features,
        "decoder_num_layers": len(decoder) - BEFORE - AFTER,
        "adanorm_num_embeddings": DEFAULTS["adanorm_num_embeddings"],
        "decoder_attention_num_groups": cast(nn.GroupNorm, position.layers[-1]).num_groups,
        "norm_eps": position.norm.eps,
    }


def decoder_of(codec: Codec) -> nn.Sequential:
    """Layers of the decoder."""
    return cast(nn.Sequential, cast(Halves, codec.autoencoder).decoder[0])


def is_theirs(decoder: nn.Sequential, hop: int) -> bool:
    """Return True for layers of WavTokenizer's kinds and sizes."""
    blocks = [part for part in decoder if isinstance(part, ConvNeXtBlock)]
    kinds = [Conv1d, ChannelsLast, ChannelsFirst, PositionNet, ChannelsLast, *[ConvNeXtBlock] * len(blocks)]
    if not blocks or [type(part) for part in decoder] != [*kinds, Projection, PolarInverseSTFT]:
        return False
    sizes = [cast(Conv1d, decoder[0]).conv.weight.shape[2], *(b.depthwise.weight.shape[2] for b in blocks)]
    windows = len(cast(PolarInverseSTFT, decoder[-1]).window)
    epsilons = {part.eps for part in decoder.modules() if isinstance(part, nn.LayerNorm | nn.GroupNorm)}
    return set(sizes) == {KERNEL} and windows == OVERLAP * hop and len(epsilons) == 1


def names(codec: Codec) -> Iterator[tuple[str, str]]:
    """Yield the name here and in `transformers` of each layer or tensor that is the same in both."""
    for index, (own_name, layer) in enumerate(flattened(codec.autoencoder, "encoder.1")):
        yield from convolutions(layer, own_name, f"encoder_model.encoder.layers.{index}")
    decoder = decoder_of(codec)
    yield f"{DECODER}.0.conv", "backbone.embed"
    yield f"{DECODER}.3.layers", "backbone.pos_net"
    for index in range(len(decoder) - BEFORE - AFTER):
        for one, other in BLOCK.items():
            yield f"{DECODER}.{BEFORE + index}.{one}", f"backbone.convnext.{index}.{other}"
    yield f"{DECODER}.{len(decoder) - AFTER}.norm", "backbone.final_layer_norm"
    yield f"{DECODER}.{len(decoder) - AFTER}.linear", "head.linear"


def norms(num_blocks: int) -> Iterator[tuple[str, str]]:
    """Yield the name of each weight and bias that is a table in `transformers`, and that of the table."""
    pairs = [(f"{DECODER}.3.norm", "backbone.norm")]
    pairs += [
        (f"{DECODER}.{BEFORE + i}.pointwise.norm", f"backbone.convnext.{i}.norm") for i in range(num_blocks)
    ]
    for own_name, their_name in pairs:
        yield f"{own_name}.weight", f"{their_name}.scale.weight"
        yield f"{own_name}.bias", f"{their_name}.shift.weight"


def to_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of a codec to folded ones of `WavTokenizerModel`."""
    tensors = renamed(plain, names(codec))
    for own_name, table in norms(config["decoder_num_layers"]):
        tensors[table] = plain[own_name].expand(config["adanorm_num_embeddings"], -1)
    stage = cast(Residual, codec.quantizer).stages[0]
    return tensors | codebook_to(stage, config["codebook_size"], CODEBOOK)


def from_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of `WavTokenizerModel`, whose tables have an unused rest after the first row."""
    tensors = renamed(plain, ((their_name, own_name) for own_name, their_name in names(codec)))
    for own_name, table in norms(config["decoder_num_layers"]):
        tensors[own_name] = plain[table][0]
    first = "autoencoder.encoder.1.0.conv.weight"
    tensors[first] = fit_kernel(tensors[first], KERNEL, config["use_causal_conv"])
    return tensors | codebook_from(plain, CODEBOOK, "quantizer.codebooks.0")
