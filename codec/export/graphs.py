"""A codec as two functions to export: audio to codes and codes to audio, its weights folded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from codec.config import ConfigError
from codec.export.progress import log
from codec.model import Codec, build_codec

FREE = torch.export.Dim.DYNAMIC


class Encoder(nn.Module):
    """Codes int64 `[B, K, F]` of audio `[B, C, T]`; any T, padded with zeros to whole frames."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.network = Network(codec)
        self.codes = Codes(codec)

    def forward(self, audio: Tensor) -> Tensor:
        """Encode."""
        return self.codes(self.network(audio))


class Decoder(nn.Module):
    """Audio `[B, C, F * hop_length]` of codes int64 `[B, k, F]`, any prefix k of the stages."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.autoencoder = codec.autoencoder
        self.quantizer = codec.quantizer

    def forward(self, codes: Tensor) -> Tensor:
        """Decode."""
        given = in_one_row(all_stages(codes, self.quantizer.num_quantizers))
        return self.autoencoder.decode(as_batch(self.quantizer.decode(given), codes.shape[0]))


class Network(nn.Module):
    """Latents `[B, D, F * stride]` of audio `[B, C, T]`; any T, padded with zeros to whole frames."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.autoencoder = codec.autoencoder
        self.hop_length = codec.hop_length

    def forward(self, audio: Tensor) -> Tensor:
        """Run the encoder's layers."""
        return self.autoencoder.encode(functional.pad(audio, (0, -audio.shape[2] % self.hop_length)))


class Codes(nn.Module):
    """Codes int64 `[B, K, F]` of latents `[B, D, F * stride]`."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.quantizer = codec.quantizer

    def forward(self, latents: Tensor) -> Tensor:
        """Quantize."""
        return as_batch(self.quantizer.encode(in_one_row(latents)), latents.shape[0])


def all_stages(codes: Tensor, count: int) -> Tensor:
    """Codes `[B, k, F]` as `[B, count, F]`, -1 in the stages that they lack."""
    # The missing ones as a cut, not as a padding: no graph has to compute how many they are.
    lacking = torch.full_like(codes[:, :1], -1).expand(-1, count, -1)
    return torch.cat([codes, lacking], 1)[:, :count]


def stages_of(codec: Codec) -> Any:
    """The axis of codes `[B, k, F]` that counts stages, for the tracer: free from 1 to all; None of one."""
    count = codec.quantizer.num_quantizers
    return torch.export.Dim("stages", min=1, max=count) if count > 1 else None


def in_one_row(frames: Tensor) -> Tensor:
    """`[B, D, F]` as `[1, D, B * F]`: frames are quantized one by one, no graph has to know B there."""
    return frames.transpose(1, 2).flatten(0, 1).contiguous().T[None]


def as_batch(frames: Tensor, batch: int) -> Tensor:
    """`[1, D, B * F]` back as `[B, D, F]`."""
    return frames[0].unflatten(1, (batch, -1)).transpose(0, 1)


def without_normalisation(codec: Codec) -> Codec:
    """A copy on the CPU, for inference alone, with the weight normalisation multiplied out.

    Built anew from the config: removing parametrizations from a deep copy breaks the original.
    ConfigError for a codec without codes.
    """
    if not codec.quantizer.codebook_sizes:
        raise ConfigError("this codec's quantizer keeps no codes: there is nothing to export")
    if codec.config is None:
        raise ConfigError("this codec has no config: make it with codec.build_codec or codec.load")
    plain = build_codec(codec.config).eval().requires_grad_(False)
    plain.load_state_dict({name: tensor.cpu() for name, tensor in codec.state_dict().items()})
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return plain.requires_grad_(False)


def inference_codec(codec: Codec) -> Codec:
    """`without_normalisation`, its layers in their forms for graphs."""
    plain = without_normalisation(codec)
    plain.autoencoder.export_form()
    return plain.requires_grad_(False)


@torch.no_grad()
def programs(codec: Codec, split: bool = False) -> dict[str, torch.export.ExportedProgram]:
    """`encoder` and `decoder` of an `inference_codec` as graphs of any batch and length.

    With `split` the encoder is `network`, audio to latents, and `quantizer`, latents to codes.
    """
    quantizer = codec.quantizer
    audio = torch.zeros(2, codec.audio_channels, 6 * codec.hop_length + 1)
    latents = torch.zeros(2, quantizer.dim, 6 * quantizer.stride)
    codes = torch.zeros(2, quantizer.num_quantizers, 6, dtype=torch.int64)
    parts: dict[str, tuple[nn.Module, Tensor, dict[int, Any]]] = {
        "decoder": (Decoder(codec), codes, {1: stages_of(codec), 2: FREE})
    }
    if split:
        frames = quantizer.stride * torch.export.Dim("frames") if quantizer.stride > 1 else FREE
        parts["network"] = Network(codec), audio, {2: FREE}
        parts["quantizer"] = Codes(codec), latents, {2: frames}
    else:
        parts["encoder"] = Encoder(codec), audio, {2: FREE}
    found = {}
    for name, (module, example, axes) in parts.items():
        log.info("tracing the %s", name)
        shapes = ({0: FREE, **axes},)
        found[name] = torch.export.export(module.eval(), (example,), dynamic_shapes=shapes)
        # The tracer assumes, and would have the graph check, that no size is 1; no operation depends on it.
        found[name]._guards_code.clear()
    return found
