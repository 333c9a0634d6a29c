"""Configs that the SEANets of EnCodec and Mimi in `transformers` share, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codec.config import TARGET, ConfigError, locate
from codec.huggingface.seanet import KERNEL
from codec.layers.reflection import ReflectedLayers
from codec.model.codec import Codec

MOST_LAYERS = 64  # of a config that is no mistake
COUNTS = ("num_filters", "compress", "residual_kernel_size", "dilation_growth_rate", "codebook_size")
COUNTS += ("sampling_rate", "kernel_size", "last_kernel_size", "hidden_size", "num_residual_layers")
Node = Mapping[str, Any]


def check_counts(kind: str, given: Node, *more: str) -> None:
    """Raise ConfigError for counts below 1 and absurd numbers of layers."""
    wrong = [f"{name} {given[name]}" for name in (*COUNTS, *more) if given[name] < 1]
    if given["num_residual_layers"] > MOST_LAYERS:
        wrong.append(f"num_residual_layers {given['num_residual_layers']}")
    ratios = given["upsampling_ratios"]
    if not 1 <= len(ratios) <= MOST_LAYERS or min(ratios) < 1:
        wrong.append(f"upsampling_ratios {ratios}")
    if wrong:
        raise ConfigError(f"no such {kind}: {', '.join(wrong)}")


def unsupported(given: Node) -> dict[str, Any]:
    """Values of a foreign config that cannot be loaded, each with a true value if it has it."""
    return {
        f"trim_right_ratio {given['trim_right_ratio']}": given["trim_right_ratio"] != 1,
        f"kernel_size {given['kernel_size']} above {KERNEL}": given["kernel_size"] > KERNEL,
        "compress of which the channels are no multiple": given["num_filters"] % given["compress"],
    }


def differences(codec: Codec, net: Node, layers: Node, units: Node) -> dict[str, Any]:
    """Possible differences of a codec from the shared architecture, each with a true value if it has it."""
    widths = [net["encoder_channels"] * 2**level for level in range(len(net["strides"]))]
    dilations, ratio = list(units["dilations"]), units["hidden_ratio"]
    return {
        "autoencoder.layers.activation is not elu": layers["activation"] != "elu",
        "autoencoder.bounded": net["bounded"],
        "autoencoder.encoder_channels is not decoder_channels": widths[0] != net["decoder_channels"],
        "autoencoder.residual_units.dilations are no powers of one number": dilations
        != [growth(units) ** power for power in range(len(dilations))],
        "autoencoder.residual_units.hidden_ratio is no 1 / n": any(
            max(1, round(width * ratio)) != width // max(1, round(1 / ratio)) for width in widths
        ),
        "channels is more than 2": codec.audio_channels > 2,
    }


def pad_mode(net: Node) -> str:
    """Name of the padding in `transformers`."""
    target = (net["layers"] or {}).get(TARGET)
    return "reflect" if target and locate(target) is ReflectedLayers else "constant"


def growth(units: Node) -> int:
    """Dilation of the second residual layer, 2 if there is only one."""
    return units["dilations"][1] if len(units["dilations"]) > 1 else 2


def to_shared_config(codec: Codec, net: Node, layers: Node, units: Node) -> dict[str, Any]:
    """Convert the shared architecture to entries of `config.json`."""
    return {
        "sampling_rate": codec.sample_rate,
        "audio_channels": codec.audio_channels,
        "hidden_size": net["latent_dim"],
        "num_filters": net["encoder_channels"],
        "num_residual_layers": len(units["dilations"]),
        "upsampling_ratios": list(reversed(net["strides"])),
        "kernel_size": KERNEL,
        "residual_kernel_size": units["kernel_size"],
        "dilation_growth_rate": growth(units),
        "use_causal_conv": layers["causal"],
        "pad_mode": pad_mode(net),
        "compress": round(1 / units["hidden_ratio"]),
        "trim_right_ratio": 1.0,
        "use_conv_shortcut": units["convolutional_skip"],
    }


def from_shared_config(given: Node, weight_norm: bool, **own: Any) -> dict[str, Any]:
    """Convert to an autoencoder's config, `own` arguments added."""
    return {
        "_target_": "codec.autoencoders.SEANet",
        "audio_channels": given["audio_channels"],
        "latent_dim": given["hidden_size"],
        "encoder_channels": given["num_filters"],
        "decoder_channels": given["num_filters"],
        "strides": list(reversed(given["upsampling_ratios"])),
        "latent_kernel_size": given["last_kernel_size"],
        **own,
        "bounded": False,
        "layers": {
            "_target_": "codec.layers.Layers",
            "causal": given["use_causal_conv"],
            "weight_norm": weight_norm,
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
    }


def residual_config(num_quantizers: int, codebook_size: int, commitment: float, **own: Any) -> dict[str, Any]:
    """Config of a cascade of Euclidean codebooks."""
    return {
        "_target_": "codec.quantizers.Residual",
        "num_quantizers": num_quantizers,
        "loss_weights": {"commitment": commitment},
        "codebook": {
            "_target_": "codec.codebooks.EMACodebook",
            "_partial_": True,
            "codebook_size": codebook_size,
        },
        **own,
    }
