"""A codec as two functions to export: audio to codes and codes to audio, its weights folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional
from torch.nn.utils import parametrize

from codec.config import ConfigError
from codec.layers import LSTM, ConvTranspose1d
from codec.model import Codec, build_codec

FREE = torch.export.Dim.DYNAMIC


class SubPixel(nn.Module):
    """A transposed convolution of kernel 2 * stride as a convolution of two taps and a reshape.

    The same sums; runtimes have fast convolutions, and transposed ones that are up to twice as slow.
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
        self.left = layer.left
        self.future = self.left > 0  # a centred layer needs the frame after its last one

    def forward(self, latents: Tensor) -> Tensor:
        """Upsample `[B, C, F]`."""
        padded = functional.pad(latents, (1, int(self.future)))
        phases = functional.conv1d(padded, self.weight, self.bias)
        channels = phases.shape[1] // self.stride
        spread = phases.unflatten(1, (channels, self.stride)).transpose(2, 3).flatten(2)
        length = latents.shape[2] * self.stride
        return spread[..., self.left : self.left + length] if self.future else spread


class Recurrent(nn.Module):
    """`codec.layers.LSTM` with its loop over frames written out, as graphs of any length need it."""

    def __init__(self, layer: LSTM):
        super().__init__()
        lstm = layer.lstm
        self.levels = nn.ModuleList()
        for level in range(lstm.num_layers):
            inputs, hidden, first, second = (
                getattr(lstm, f"{kind}_l{level}").detach()
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            weights = {"inputs": inputs, "hidden": hidden.T.contiguous(), "bias": first + second}
            self.levels.append(nn.ParameterDict(weights).requires_grad_(False))

    def forward(self, latents: Tensor) -> Tensor:
        """Run over the frames of `[B, C, F]`."""
        frames = latents.permute(2, 0, 1)
        answer = frames
        for level in self.levels:
            weights = cast(nn.ParameterDict, level)
            gates = functional.linear(answer, weights["inputs"], weights["bias"])
            zeros = torch.zeros_like(frames[0])
            _, answer = scan(cell(weights["hidden"]), (zeros, zeros.clone()), gates)
        return (answer + frames).permute(1, 2, 0)


def cell(hidden: Tensor) -> Callable[..., tuple[tuple[Tensor, Tensor], Tensor]]:
    """One step of an LSTM whose inputs are multiplied already."""

    def step(state: tuple[Tensor, Tensor], gates: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        output, memory = state
        enter, forget, new, leave = (gates + output @ hidden).chunk(4, 1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(new)
        output = torch.sigmoid(leave) * torch.tanh(memory)
        return (output, memory), output.clone()

    return step


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
    """Audio `[B, C, F * hop_length]` of codes int64 `[B, K, F]`."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.network = codec.autoencoder.decoder
        self.quantizer = codec.quantizer

    def forward(self, codes: Tensor) -> Tensor:
        """Decode."""
        return self.network(as_batch(self.quantizer.decode(in_one_row(codes)), codes.shape[0]))


class Network(nn.Module):
    """Latents `[B, D, F * stride]` of audio `[B, C, T]`; any T, padded with zeros to whole frames."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.network = codec.autoencoder.encoder
        self.hop_length = codec.hop_length

    def forward(self, audio: Tensor) -> Tensor:
        """Run the encoder's layers."""
        return self.network(functional.pad(audio, (0, -audio.shape[2] % self.hop_length)))


class Codes(nn.Module):
    """Codes int64 `[B, K, F]` of latents `[B, D, F * stride]`."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.quantizer = codec.quantizer

    def forward(self, latents: Tensor) -> Tensor:
        """Quantize."""
        return as_batch(self.quantizer.encode(in_one_row(latents)), latents.shape[0])


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
    """`without_normalisation`, transposed convolutions and recurrence written as graphs can hold them."""
    plain = without_normalisation(codec)
    for parent in list(plain.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, ConvTranspose1d):
                setattr(parent, name, SubPixel(layer))
            elif isinstance(layer, LSTM):
                setattr(parent, name, Recurrent(layer))
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
    parts: dict[str, tuple[nn.Module, Tensor, Any]] = {"decoder": (Decoder(codec), codes, FREE)}
    if split:
        frames = quantizer.stride * torch.export.Dim("frames") if quantizer.stride > 1 else FREE
        parts |= {"network": (Network(codec), audio, FREE), "quantizer": (Codes(codec), latents, frames)}
    else:
        parts["encoder"] = (Encoder(codec), audio, FREE)
    found = {}
    for name, (module, example, length) in parts.items():
        shapes = ({0: FREE, 2: length},)
        found[name] = torch.export.export(module.eval(), (example,), dynamic_shapes=shapes)
        # The tracer assumes, and would have the graph check, that no size is 1; no operation depends on it.
        found[name]._guards_code.clear()
    return found
