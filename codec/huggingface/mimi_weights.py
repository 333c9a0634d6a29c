"""Weights of Mimi in Hugging Face's `transformers`: names, and sums of codebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from codec.autoencoders.seanet import SEANet
from codec.config import ConfigError
from codec.huggingface.foreign import fit_kernel, renamed
from codec.huggingface.seanet import FAR, KERNEL, convolutions, flattened
from codec.layers.resample import Downsample, Upsample
from codec.layers.transformer import Transformer
from codec.model.codec import Codec
from codec.quantizers.projected import Projected
from codec.quantizers.residual import Residual
from codec.quantizers.split import Split

LEAST = 1e-5  # of a usage that sums are divided by
LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention_norm.bias": "input_layernorm.bias",
    "out.weight": "self_attn.o_proj.weight",
    "attention_scale": "self_attn_layer_scale.scale",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp_norm.bias": "post_attention_layernorm.bias",
    "expand.weight": "mlp.fc1.weight",
    "project.weight": "mlp.fc2.weight",
    "mlp_scale": "mlp_layer_scale.scale",
}
HEADS = [f"self_attn.{part}_proj.weight" for part in "qkv"]  # one tensor here, three there
BRANCHES = {
    "semantic": "semantic_residual_vector_quantizer",
    "acoustic": "acoustic_residual_vector_quantizer",
}
PROJECTIONS = {"in_proj.weight": "input_proj.weight", "out_proj.weight": "output_proj.weight"}


def names(codec: Codec) -> Iterator[tuple[str, str]]:
    """Yield the name here and in `transformers` of each layer or tensor that is the same in both."""
    for side in ("encoder", "decoder"):
        latent = (Transformer, Downsample, Upsample)
        flat = flattened(cast(SEANet, codec.autoencoder), side)
        for own_name, layer in flat:
            if isinstance(layer, Downsample | Upsample):
                yield f"{own_name}.conv", f"{type(layer).__name__.lower()}.conv"
            elif isinstance(layer, Transformer):
                for index in range(len(layer.layers)):
                    for one, other in LAYER.items():
                        yield f"{own_name}.layers.{index}.{one}", f"{side}_transformer.layers.{index}.{other}"
        plain = [(own_name, layer) for own_name, layer in flat if not isinstance(layer, latent)]
        for index, (own_name, layer) in enumerate(plain):
            yield from convolutions(layer, own_name, f"{side}.layers.{index}")
    for one, other in BRANCHES.items():
        for mine, yours in PROJECTIONS.items():
            yield f"quantizer.{one}.{mine}", f"quantizer.{other}.{yours}"


def attentions(codec: Codec) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each weight of queries, keys and values here, and its three names there."""
    for side in ("encoder", "decoder"):
        for own_name, layer in flattened(cast(SEANet, codec.autoencoder), side):
            for index in range(len(layer.layers) if isinstance(layer, Transformer) else 0):
                mimi_names = [f"{side}_transformer.layers.{index}.{name}" for name in HEADS]
                yield f"{own_name}.layers.{index}.qkv.weight", mimi_names


def cascades(codec: Codec) -> Iterator[tuple[str, str, Residual]]:
    """Yield the names here and there of each residual cascade, and the cascade."""
    quantizer = cast(Split, codec.quantizer)
    for (own_name, mimi_name), part in zip(
        BRANCHES.items(), (quantizer.semantic, quantizer.acoustic), strict=True
    ):
        cascade = cast(Residual, cast(Projected, part).quantizer)
        yield f"quantizer.{own_name}.quantizer", f"quantizer.{mimi_name}", cascade


def to_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert folded weights of a codec to those of `MimiModel`."""
    weights = renamed(plain, names(codec))
    for own_name, mimi_names in attentions(codec):
        weights |= dict(zip(mimi_names, plain[own_name].chunk(3), strict=True))
    for _, mimi_name, cascade in cascades(codec):
        for index, stage in enumerate(cascade.stages):
            missing = config["codebook_size"] - stage.codebook_size
            prefix = f"{mimi_name}.layers.{index}.codebook"
            table = functional.pad(stage.table(), (0, 0, 0, missing), value=FAR)
            # Sums of a usage of 1 are the vectors to the last bit.
            weights[f"{prefix}.embed_sum"] = table
            weights[f"{prefix}.cluster_usage"] = torch.ones(len(table))
            weights[f"{prefix}.initialized"] = torch.ones(1)
    return weights


def from_weights(codec: Codec, plain: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert weights of `MimiModel` to folded ones of a codec; `codec` gives only the names."""
    first = {mimi_name: own_name for own_name, mimi_name in names(codec)}
    weights = renamed(plain, first.items())
    for own_name, mimi_names in attentions(codec):
        weights[own_name] = torch.cat([needed(plain, name) for name in mimi_names])
    for mimi_name in ("encoder.layers.0.conv", "decoder.layers.0.conv"):
        key = f"{first[mimi_name]}.weight"
        if key in weights:
            weights[key] = fit_kernel(weights[key], KERNEL, causal=True)
    for own_name, mimi_name, cascade in cascades(codec):
        for index in range(cascade.num_quantizers):
            prefix, name = f"{mimi_name}.layers.{index}.codebook", f"{own_name}.codebooks.{index}"
            usage = needed(plain, f"{prefix}.cluster_usage")
            sums = needed(plain, f"{prefix}.embed_sum")
            weights[f"{name}.vectors"] = sums / usage.clamp(min=LEAST)[:, None]
            known = bool(usage.sum() > 0)
            weights[f"{name}.usage"] = (
                usage / usage.sum() if known else torch.full_like(usage, 1 / len(usage))
            )
            weights[f"{name}.initialised"] = torch.tensor(True)
    return weights


def needed(plain: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight by name; ConfigError if it is missing."""
    if name not in plain:
        raise ConfigError(f"{name} is missing")
    return plain[name]
