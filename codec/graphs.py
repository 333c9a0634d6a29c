"""A codec as two functions to export: audio to codes and codes to audio, its weights folded."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from codec.config import ConfigError
from codec.layers import ConvTranspose1d
from codec.model import Codec, build_codec
from codec.quantizers.base import Quantizer


class SubPixel(nn.Module):
    """A transposed convolution of kernel 2 * stride as a convolution of two taps and a reshape: the same sums.

    Runtimes have fast convolutions; what they have of transposed ones is up to twice as slow.
    """

    def __init__(self, layer: ConvTranspose1d):
        super().__init__()
        conv = layer.conv
        self.stride = conv.stride[0]
        weight = conv.weight.detach()  # [C, C', 2 * stride]
        early, late = weight[..., : self.stride], weight[..., self.stride :]
        # Output sample f * stride + j is frame f at tap j and frame f - 1 at tap stride + j.
        taps = torch.stack([late, early], 3).permute(1, 2, 0, 3)  # [C', stride, C, 2]
        self.weight = nn.Parameter(taps.reshape(-1, weight.shape[0], 2).contiguous())
        assert conv.bias is not None
        self.bias = nn.Parameter(conv.bias.detach().repeat_interleave(self.stride))
        self.left = layer.trim[0] or int(conv.padding[0])
        self.future = self.left > 0  # a centred layer needs the frame after its last one

    def forward(self, latents: Tensor) -> Tensor:
        """Upsample `[B, C, F]`."""
        padded = functional.pad(latents, (1, int(self.future)))
        phases = functional.conv1d(padded, self.weight, self.bias)
        channels = phases.shape[1] // self.stride
        spread = phases.unflatten(1, (channels, self.stride)).transpose(2, 3).flatten(2)
        length = latents.shape[2] * self.stride
        return spread[..., self.left : self.left + length] if self.future else spread


class Encoder(nn.Module):
    """Codes int64 `[B, K, F]` of audio `[B, C, T]`; any T, padded with zeros to whole frames."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.network = codec.autoencoder.encoder
        self.quantizer = codec.quantizer
        self.hop_length = codec.hop_length

    def forward(self, audio: Tensor) -> Tensor:
        """Encode."""
        padded = functional.pad(audio, (0, -audio.shape[2] % self.hop_length))
        latents = self.network(padded)
        return as_batch(self.quantizer.encode(in_one_row(latents)), latents.shape[0])


class Decoder(nn.Module):
    """Audio `[B, C, F * hop_length]` of codes int64 `[B, K, F]`."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.network = codec.autoencoder.decoder
        self.quantizer = codec.quantizer

    def forward(self, codes: Tensor) -> Tensor:
        """Decode."""
        return self.network(as_batch(self.quantizer.decode(in_one_row(codes)), codes.shape[0]))


def in_one_row(frames: Tensor) -> Tensor:
    """`[B, D, F]` as `[1, D, B * F]`: frames are quantized one by one, so that no graph has to know B there."""
    return frames.transpose(0, 1).flatten(1)[None]


def as_batch(frames: Tensor, batch: int) -> Tensor:
    """`[1, D, B * F]` back as `[B, D, F]`."""
    return frames[0].unflatten(1, (batch, -1)).transpose(0, 1)


def inference_codec(codec: Codec) -> Codec:
    """A copy on the CPU without weight normalisation, its transposed convolutions rewritten, for export alone.

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
    for parent, name, layer in list(upsamplers(plain)):
        setattr(parent, name, SubPixel(layer))
    return plain.requires_grad_(False)


def upsamplers(module: nn.Module) -> Iterator[tuple[nn.Module, str, ConvTranspose1d]]:
    """Every transposed convolution, with the module that holds it and its name there."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, ConvTranspose1d):
                yield parent, name, child


def programs(codec: Codec) -> dict[str, torch.export.ExportedProgram]:
    """`encoder` and `decoder` of an `inference_codec` as graphs of any batch and length."""
    batch, samples, frames = (torch.export.Dim.DYNAMIC for _ in range(3))
    audio = torch.zeros(2, codec.audio_channels, 6 * codec.hop_length + 1)
    codes = torch.zeros(2, codec.quantizer.num_quantizers, 6, dtype=torch.int64)
    return {
        "encoder": torch.export.export(
            Encoder(codec).eval(), (audio,), dynamic_shapes=({0: batch, 2: samples},), strict=False
        ),
        "decoder": torch.export.export(
            Decoder(codec).eval(), (codes,), dynamic_shapes=({0: batch, 2: frames},), strict=False
        ),
    }
