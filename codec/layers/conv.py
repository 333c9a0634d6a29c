"""Convolutions whose output lengths are exactly `T / stride` and `F * stride`."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm as apply_weight_norm

from codec.layers.activation import ACTIVATIONS
from codec.layers.base import Context, Layer
from codec.layers.streaming import StreamingLayer
from codec.layers.streaming_convolution import Convolution, Upsampling


def split_padding(total: int, causal: bool) -> tuple[int, int]:
    """Samples of padding before and after: all before if causal, otherwise centered, an odd one before."""
    right = 0 if causal else total // 2
    return total - right, right


class Conv1d(Layer):
    """Convolution `[B, C, T] -> [B, C', T / stride]` with zero padding, all of it before if causal.

    `T` must be a multiple of `stride`; `Codec` pads audio to whole frames. The padding is zeros, because
    reflected samples are future samples, which a stream does not have.
    """

    conv: nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = True,
        weight_norm: bool = False,
    ):
        super().__init__()
        left, right = split_padding((kernel_size - 1) * dilation + 1 - stride, causal)
        self.left, self.right = left, right
        # The convolution pads without a copy; fewer than `stride` extra zeros at the end reach no output.
        inner = left if 0 <= left - right < stride else 0
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, inner, dilation)
        self.conv = conv
        if weight_norm:
            apply_weight_norm(conv)
        self.padding = (0, 0) if inner else (left, right)

    def forward(self, audio: Tensor) -> Tensor:
        """Convolve `[B, C, T]`."""
        return self.conv(functional.pad(audio, self.padding) if any(self.padding) else audio)

    @property
    def rate(self) -> Fraction:
        """One output every `stride` inputs."""
        return Fraction(1, self.conv.stride[0])

    @property
    def context(self) -> Context:
        """Inputs under the kernel, except the `stride` inputs of the output's own place."""
        span = (self.conv.kernel_size[0] - 1) * self.conv.dilation[0] + 1
        return Context(self.left, max(0, span - self.conv.stride[0] - self.left))

    def stream(self) -> StreamingLayer:
        """One matrix product per chunk."""
        (stride,), (dilation,) = self.conv.stride, self.conv.dilation
        return Convolution(self.conv.weight, self.conv.bias, stride, dilation, self.left, self.right)


class ConvTranspose1d(Layer):
    """Transposed convolution `[B, C, F] -> [B, C', F * stride]`.

    Causal: output sample t depends only on input frames <= t / stride. Trims exactly `kernel_size - stride`
    samples, also for odd strides, which lose a sample in DAC's release.
    """

    conv: nn.ConvTranspose1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        causal: bool = True,
        weight_norm: bool = False,
    ):
        super().__init__()
        surplus = kernel_size - stride
        left, right = (0, surplus) if causal else split_padding(surplus, causal)
        self.left = left
        # The argument `padding` trims both ends equally, and `output_padding` restores the end's surplus.
        inner = left if 0 <= left - right < stride else 0
        conv = nn.ConvTranspose1d(
            in_channels, out_channels, kernel_size, stride, inner, left - right if inner else 0
        )
        self.conv = conv
        if weight_norm:
            apply_weight_norm(conv)
        self.trim = (0, 0) if inner else (left, right)

    def forward(self, latents: Tensor) -> Tensor:
        """Upsample `[B, C, F]`."""
        output = self.conv(latents)
        begin, end = self.trim
        return output[..., begin : output.shape[-1] - end]

    @property
    def rate(self) -> int:
        """`stride` outputs per input."""
        return self.conv.stride[0]

    @property
    def context(self) -> Context:
        """Inputs whose kernels reach into the outputs of one input."""
        stride, surplus = self.conv.stride[0], self.conv.kernel_size[0] - self.conv.stride[0]
        return Context(-(-(surplus - self.left) // stride), -(-self.left // stride))

    def stream(self) -> StreamingLayer:
        """One matrix product per chunk."""
        return Upsampling(self.conv.weight, self.conv.bias, self.conv.stride[0], self.left)

    def exported(self) -> nn.Module:
        """Convolution of two taps and a reshape if the kernel is twice the stride."""
        return SubPixel(self) if self.conv.kernel_size[0] == 2 * self.conv.stride[0] else self


class SubPixel(nn.Module):
    """Transposed convolution of kernel 2 * stride as a convolution of two taps and a reshape.

    Transposed convolutions are up to twice as slow in runtimes.
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
        self.future = self.left > 0  # the outputs of a centered layer depend on the next frame

    def forward(self, latents: Tensor) -> Tensor:
        """Upsample `[B, C, F]`."""
        padded = functional.pad(latents, (1, int(self.future)))
        phases = functional.conv1d(padded, self.weight, self.bias)
        channels = phases.shape[1] // self.stride
        spread = phases.unflatten(1, (channels, self.stride)).transpose(2, 3).flatten(2)
        length = latents.shape[2] * self.stride
        return spread[..., self.left : self.left + length] if self.future else spread


class Layers:
    """Factory for the layers of one network: causal or centered, with or without weight norm, one activation.

    Its layers map `[B, C, T]` to `[B, C', T']`. Causal padding is SoundStream's (arXiv 2107.03312), weight
    norm that of Salimans and Kingma 2016 (arXiv 1602.07868). `activation` is a key of `ACTIVATIONS`;
    ValueError otherwise.
    """

    convolution = Conv1d

    def __init__(self, causal: bool = True, weight_norm: bool = False, activation: str = "elu"):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation, self.causal = ACTIVATIONS[activation], causal
        self.style = {"causal": causal, "weight_norm": weight_norm}

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, **options: int) -> Conv1d:
        """Make a convolution; options are `stride` and `dilation`."""
        return self.convolution(in_channels, out_channels, kernel_size, **options, **self.style)

    def upsample(self, in_channels: int, out_channels: int, stride: int) -> ConvTranspose1d:
        """Make a transposed convolution with a kernel of twice its stride, as in all SEANets."""
        return ConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride, **self.style)

    def downsample(self, in_channels: int, out_channels: int, stride: int) -> Conv1d:
        """Make a strided convolution with a kernel of twice its stride."""
        return self.conv(in_channels, out_channels, 2 * stride, stride=stride)
