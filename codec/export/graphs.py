"""Modules for export: audio to codes, or continuous latents, and back, with folded weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from codec.config import ConfigError
from codec.export.progress import log
from codec.layers.film import Unconditioned
from codec.model.codec import Codec
from codec.model.saving import build_codec

FREE = torch.export.Dim.DYNAMIC


class Encoder(nn.Module):
    """Encode audio `[B, C, T]` to codes int64 `[B, K, F]`; any T, padded with zeros to whole frames.

    `condition`: indexes int64 `[B]` of the codec's conditions; None for the default.
    """

    def __init__(self, codec: Codec):
        super().__init__()
        self.network = Network(codec)
        self.codes = Codes(codec)

    def forward(self, audio: Tensor, condition: Tensor | None = None) -> Tensor:
        """Encode."""
        return self.codes(self.network(audio, condition))


class Decoder(nn.Module):
    """Decode codes int64 `[B, k, F]` of the first k stages to audio `[B, C, F * hop_length]`."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.autoencoder = codec.autoencoder
        self.quantizer = codec.quantizer

    def forward(self, codes: Tensor) -> Tensor:
        """Decode."""
        row = in_one_row(all_stages(codes, self.quantizer.num_quantizers))
        return self.autoencoder.decode(as_batch(self.quantizer.decode(row), codes.shape[0]))


class Network(nn.Module):
    """Map audio `[B, C, T]` to latents `[B, D, F * stride]`; any T, padded with zeros to whole frames.

    `condition`: indexes int64 `[B]` of the codec's conditions; None for the default.
    """

    def __init__(self, codec: Codec):
        super().__init__()
        self.autoencoder, self.conditioning = codec.autoencoder, codec.conditioning
        self.hop_length = codec.hop_length

    def forward(self, audio: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the encoder's layers, then modulate by the condition."""
        padded = functional.pad(audio, (0, -audio.shape[2] % self.hop_length))
        return modulated(self.conditioning, self.autoencoder.encode(padded), condition)


class Codes(nn.Module):
    """Quantize latents `[B, D, F * stride]` to codes int64 `[B, K, F]`."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.quantizer = codec.quantizer

    def forward(self, latents: Tensor) -> Tensor:
        """Quantize."""
        return as_batch(self.quantizer.encode(in_one_row(latents)), latents.shape[0])


def modulated(conditioning: Unconditioned, latents: Tensor, condition: Tensor | None) -> Tensor:
    """Modulate latents by a condition `[B]`, whose values a graph cannot check; None for the default."""
    if condition is None:
        return conditioning(latents)
    return conditioning.modulate(latents, condition[:, None])


def conditions(codec: Codec) -> tuple[str, ...]:
    """Conditions that are an input of the codec's graphs; none if it has none, or one was set."""
    return codec.conditioning.names if codec.conditioning.default is None else ()


def all_stages(codes: Tensor, count: int) -> Tensor:
    """Extend codes `[B, k, F]` to `[B, count, F]`, with -1 in the missing stages; 0: continuous latents."""
    if not count:
        return codes
    # Append `count` stages and cut: unlike padding, the graph need not compute the number of missing stages.
    padding = torch.full_like(codes[:, :1], -1).expand(-1, count, -1)
    return torch.cat([codes, padding], 1)[:, :count]


def stages_of(codec: Codec) -> Any:
    """Dynamic axis k of codes `[B, k, F]`, from 1 to all stages; None for a single stage."""
    count = codec.quantizer.num_quantizers
    return torch.export.Dim("stages", min=1, max=count) if count > 1 else None


def in_one_row(frames: Tensor) -> Tensor:
    """Reshape `[B, D, F]` to `[1, D, B * F]`: frames are quantized independently, with no dependence on B."""
    return frames.transpose(1, 2).flatten(0, 1).contiguous().T[None]


def as_batch(frames: Tensor, batch: int) -> Tensor:
    """Inverse of `in_one_row`: reshape `[1, D, B * F]` to `[B, D, F]`."""
    return frames[0].unflatten(1, (batch, -1)).transpose(0, 1)


def without_normalization(codec: Codec) -> Codec:
    """Copy a codec to the CPU for inference, with folded weight normalization.

    The copy is built from the config, because removing parametrizations from a deep copy breaks the original.
    ConfigError for a codec without a config.
    """
    if codec.config is None:
        raise ConfigError("this codec has no config: make it with codec.build_codec or codec.load")
    plain = build_codec(codec.config).eval().requires_grad_(False)
    plain.load_state_dict({name: tensor.cpu() for name, tensor in codec.state_dict().items()})
    plain.conditioning.default = codec.conditioning.default
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return plain.requires_grad_(False)


def inference_codec(codec: Codec) -> Codec:
    """Copy of `without_normalization` with its layers in their forms for graphs."""
    plain = without_normalization(codec)
    plain.autoencoder.export_form()
    return plain.requires_grad_(False)


@torch.no_grad()
def programs(codec: Codec, split: bool = False) -> dict[str, torch.export.ExportedProgram]:
    """Export `encoder` and `decoder` of an `inference_codec` as graphs for any batch size and length.

    With `split`, `network` (audio to latents) and `quantizer` (latents to codes) replace the encoder.
    """
    quantizer = codec.quantizer
    audio = torch.zeros(2, codec.audio_channels, 6 * codec.hop_length + 1)
    latents = torch.zeros(2, quantizer.dim, 6 * quantizer.stride)
    codes = torch.zeros_like(quantizer.encode(latents), memory_format=torch.contiguous_format)
    condition = [torch.zeros(2, dtype=torch.int64)] if conditions(codec) else []
    parts: dict[str, tuple[nn.Module, list[Tensor], dict[int, Any]]] = {
        "decoder": (Decoder(codec), [codes], {1: stages_of(codec), 2: FREE})
    }
    if split:
        frames = quantizer.stride * torch.export.Dim("frames") if quantizer.stride > 1 else FREE
        parts["network"] = Network(codec), [audio, *condition], {2: FREE}
        parts["quantizer"] = Codes(codec), [latents], {2: frames}
    else:
        parts["encoder"] = Encoder(codec), [audio, *condition], {2: FREE}
    graphs = {}
    for name, (module, examples, axes) in parts.items():
        log.info("tracing the %s", name)
        shapes = ({0: FREE, **axes}, *({0: FREE} for _ in examples[1:]))
        graphs[name] = torch.export.export(module.eval(), tuple(examples), dynamic_shapes=shapes)
        # The tracer's guards against sizes of 1 are removed: no operation depends on them.
        graphs[name]._guards_code.clear()
    return graphs
