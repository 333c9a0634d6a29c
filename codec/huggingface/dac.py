"""Conversion of configs and weights to and from DAC in Hugging Face's `transformers`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from codec.autoencoders.seanet import ResidualUnits, SEANet
from codec.codebooks.factorized import FactorizedCodebook
from codec.config import ConfigError
from codec.huggingface.foreign import arguments, refuse
from codec.huggingface.seanet_config import pad_mode
from codec.layers.conv import Layers
from codec.model.codec import Codec
from codec.quantizers.residual import Residual

DILATIONS = [1, 3, 9]
UNIT = ("snake1", "conv1", "snake2", "conv2")

DEFAULTS: dict[str, Any] = {
    "encoder_hidden_size": 64,
    "downsampling_ratios": [2, 4, 8, 8],
    "decoder_hidden_size": 1536,
    "n_codebooks": 9,
    "codebook_size": 1024,
    "codebook_dim": 8,
    "quantizer_dropout": 0.0,
    "commitment_loss_weight": 0.25,
    "codebook_loss_weight": 1.0,
    "sampling_rate": 16000,
}


def to_config(codec: Codec) -> dict[str, Any]:
    """Convert a codec's config to `config.json`; ConfigError with its differences from DAC's architecture."""
    node = (codec.config or {}).get("autoencoder", {})
    net = arguments(node, SEANet)
    layers, units = arguments(net["layers"], Layers), arguments(node.get("residual_units"), ResidualUnits)
    quantizer, halvings = codec.quantizer, len(net["strides"])
    unlike = {
        "channels is not 1": codec.audio_channels != 1,
        "autoencoder.layers.causal": layers["causal"],
        "autoencoder.layers pad with a reflection": pad_mode(net) != "constant",
        "autoencoder.layers.activation is not snake": layers["activation"] != "snake",
        "autoencoder.bounded is false": not net["bounded"],
        "autoencoder.bottleneck": net["bottleneck"] is not None,
        "autoencoder.latent_layers": net["latent_layers"] is not None,
        "autoencoder.latent_stride is not 1": net["latent_stride"] != 1,
        "autoencoder.output_kernel_size is not 7": net["output_kernel_size"] != 7,
        "autoencoder.latent_kernel_size is not 3": net["latent_kernel_size"] != 3,
        f"autoencoder.latent_dim is not encoder_channels * {2**halvings}": net["latent_dim"]
        != net["encoder_channels"] * 2**halvings,
        "autoencoder.strides hold a 1": 1 in net["strides"],
        "autoencoder.residual_units are not DAC's": (
            list(units["dilations"]) != DILATIONS
            or (units["kernel_size"], units["hidden_ratio"], units["convolutional_skip"]) != (7, 1, False)
        ),
        "quantizer is no residual cascade of factorized codebooks of one size, a power of 2": not factorized(
            quantizer
        ),
    }
    refuse("not of the shape of DAC in transformers", unlike)
    assert isinstance(quantizer, Residual)
    return {
        "architectures": ["DacModel"],
        "model_type": "dac",
        "encoder_hidden_size": net["encoder_channels"],
        "downsampling_ratios": list(net["strides"]),
        "decoder_hidden_size": net["decoder_channels"] * 2**halvings,
        "n_codebooks": quantizer.num_quantizers,
        "codebook_size": quantizer.codebook_sizes[0],
        "codebook_dim": cast(Tensor, quantizer.stages[0].vectors).shape[1],
        "quantizer_dropout": quantizer.dropout,
        "sampling_rate": codec.sample_rate,
    }


def factorized(quantizer: object) -> bool:
    """Return True for a residual cascade of factorized codebooks that DAC's format can represent."""
    if not isinstance(quantizer, Residual) or set(quantizer.strides) != {1}:
        return False
    sizes = set(quantizer.codebook_sizes)
    one_size = len(sizes) == 1 and math.log2(min(sizes)).is_integer()
    return one_size and all(isinstance(stage, FactorizedCodebook) for stage in quantizer.codebooks)


def names(autoencoder: SEANet) -> Iterator[tuple[str, str]]:
    """Yield each convolution's and activation's name in this package and in `transformers`."""
    blocks = (len(autoencoder.encoder) - 3) // 3
    for block in range(blocks):
        encoder, decoder = 1 + 3 * block, 1 + 3 * block
        yield from unit_names(f"autoencoder.encoder.{encoder}", f"encoder.block.{block}")
        yield f"autoencoder.encoder.{encoder + 1}", f"encoder.block.{block}.snake1"
        yield f"autoencoder.encoder.{encoder + 2}.conv", f"encoder.block.{block}.conv1"
        yield f"autoencoder.decoder.{decoder}", f"decoder.block.{block}.snake1"
        yield f"autoencoder.decoder.{decoder + 1}.conv", f"decoder.block.{block}.conv_t1"
        yield from unit_names(f"autoencoder.decoder.{decoder + 2}", f"decoder.block.{block}")
    last = 1 + 3 * blocks
    for side in ("encoder", "decoder"):
        yield f"autoencoder.{side}.0.conv", f"{side}.conv1"
        yield f"autoencoder.{side}.{last}", f"{side}.snake1"
        yield f"autoencoder.{side}.{last + 1}.conv", f"{side}.conv2"


def unit_names(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of names in the three residual units of a block."""
    for unit in range(len(DILATIONS)):
        for index, name in enumerate(UNIT):
            conv = ".conv" if name.startswith("conv") else ""
            yield f"{ours}.{unit}.block.{index}{conv}", f"{theirs}.res_unit{unit + 1}.{name}"


def unequal_end(strides: Sequence[int]) -> int:
    """Number of last samples that differ because `DacModel` loses one in each layer of odd stride.

    The layers after it get a zero in place of that sample.
    """
    reach, scale, unequal = 3, 1, 0  # reach of the last convolution, with kernel size 7
    for stride in strides:  # from the decoder's last layer to its first
        reach += 3 * sum(DILATIONS) * scale  # the residual units after a layer
        unequal = reach + scale if stride % 2 else unequal
        scale *= stride
        reach += scale  # the layer itself
    return unequal


def renamed(plain: Mapping[str, Tensor], pairs: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename weights: prefixes that are keys of `pairs` are replaced by the values, others are dropped."""
    tensors = {}
    for name, tensor in plain.items():
        prefix, _, leaf = name.rpartition(".")
        if prefix in pairs:
            tensors[f"{pairs[prefix]}.{leaf}"] = tensor
    return tensors


def to_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of a codec to those of `DacModel`."""
    tensors = renamed(plain, dict(names(cast(SEANet, codec.autoencoder))))
    quantizer = codec.quantizer
    assert isinstance(quantizer, Residual)
    for index in range(config["n_codebooks"]):
        own_prefix = f"quantizer.codebooks.{min(index, len(quantizer.codebooks) - 1)}"
        dac_prefix = f"quantizer.quantizers.{index}"
        for name in ("in_proj", "out_proj"):
            tensors[f"{dac_prefix}.{name}.weight"] = plain[f"{own_prefix}.{name}.weight"][..., None]
            tensors[f"{dac_prefix}.{name}.bias"] = plain[f"{own_prefix}.{name}.bias"]
        tensors[f"{dac_prefix}.codebook.weight"] = plain[f"{own_prefix}.vectors"]
    return tensors


def from_config(given: Mapping[str, Any], zero_padding: bool = False) -> dict[str, Any]:
    """Convert to this package's config; ConfigError for invalid values. DAC always pads with zeros."""
    ratios, width = given["downsampling_ratios"], given["encoder_hidden_size"]
    sizes = ("encoder_hidden_size", "decoder_hidden_size", "n_codebooks", "codebook_size", "codebook_dim")
    wrong = [f"{name} {given[name]}" for name in sizes if given[name] < 1]
    if (
        wrong
        or not ratios
        or len(ratios) > 64
        or min(ratios) < 2
        or given["decoder_hidden_size"] % 2 ** len(ratios)
    ):
        raise ConfigError(
            "no DAC that can be loaded: "
            f"{', '.join(wrong) or f'downsampling_ratios {ratios}, decoder_hidden_size {given[sizes[1]]}'}"
        )
    latent_dim = width * 2 ** len(ratios)
    losses = {"commitment": "commitment_loss_weight", "codebook": "codebook_loss_weight"}
    return {
        "_target_": "codec.Codec",
        "autoencoder": {
            "_target_": "codec.autoencoders.SEANet",
            "audio_channels": 1,
            "latent_dim": latent_dim,
            "encoder_channels": width,
            "decoder_channels": given["decoder_hidden_size"] // 2 ** len(ratios),
            "strides": list(ratios),
            "latent_kernel_size": 3,
            "bottleneck": None,
            "bounded": True,
            "layers": {
                "_target_": "codec.layers.Layers",
                "causal": False,
                "weight_norm": True,
                "activation": "snake",
            },
            "residual_units": {
                "_target_": "codec.autoencoders.ResidualUnits",
                "_partial_": True,
                "dilations": DILATIONS,
                "kernel_size": 7,
                "hidden_ratio": 1.0,
                "convolutional_skip": False,
            },
        },
        "quantizer": {
            "_target_": "codec.quantizers.Residual",
            "dim": latent_dim,
            "num_quantizers": given["n_codebooks"],
            "dropout": float(given["quantizer_dropout"]),
            "loss_weights": {name: float(given[option]) for name, option in losses.items()},
            "codebook": {
                "_target_": "codec.codebooks.FactorizedCodebook",
                "_partial_": True,
                "codebook_size": given["codebook_size"],
                "codebook_dim": given["codebook_dim"],
            },
        },
        "sample_rate": given["sampling_rate"],
    }


def from_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of `DacModel` to folded ones of a codec; `codec` gives only the names."""
    tensors = renamed(
        plain, {dac_prefix: own_prefix for own_prefix, dac_prefix in names(cast(SEANet, codec.autoencoder))}
    )
    for index in range(config["n_codebooks"]):
        own_prefix, dac_prefix = f"quantizer.codebooks.{index}", f"quantizer.quantizers.{index}"
        for name in ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias", "codebook.weight"):
            if f"{dac_prefix}.{name}" not in plain:
                raise ConfigError(f"{dac_prefix}.{name} is missing")
            tensor = plain[f"{dac_prefix}.{name}"]
            leaf = "vectors" if name == "codebook.weight" else name
            tensors[f"{own_prefix}.{leaf}"] = tensor[..., 0] if tensor.ndim == 3 else tensor
        size = config["codebook_size"]
        tensors[f"{own_prefix}.usage"] = torch.full((size,), 1 / size)
        tensors[f"{own_prefix}.initialised"] = torch.tensor(True)
    return tensors
