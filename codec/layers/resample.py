"""Changes of the rate of latents, as between Mimi's SEANet and its codes."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.layers.base import Context, Layer
from codec.layers.conv import split_padding
from codec.layers.streaming import Chain, Pointwise, State, StreamingLayer
from codec.layers.streaming_convolution import Convolution, DepthwiseConvolution, Upsampling


class Downsample(Layer):
    """Convolution `[B, C, F] -> [B, C, F / stride]` of kernel `2 * stride`, without bias.

    Before the signal is its first frame, repeated, and after it zeros (Mimi, arXiv 2410.00037).
    """

    def __init__(self, channels: int, stride: int, causal: bool = True):
        super().__init__()
        self.stride = stride
        self.left, self.right = split_padding(stride, causal)
        self.conv = nn.Conv1d(channels, channels, 2 * stride, stride, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Convolve `[B, C, F]`."""
        padded = functional.pad(latents, (self.left, 0), mode="replicate")
        return self.conv(functional.pad(padded, (0, self.right)) if self.right else padded)

    @property
    def rate(self) -> Fraction:
        """One output every `stride` inputs."""
        return Fraction(1, self.stride)

    @property
    def context(self) -> Context:
        """Inputs under the kernel, except the `stride` inputs of the output's own place."""
        return Context(self.left, self.right)

    def stream(self) -> StreamingLayer:
        """Convolution whose state begins with the first frame."""
        return Replicating(self.conv.weight, None, self.stride, 1, self.left, self.right)


class Replicating(Convolution):
    """`Convolution` with the first frame repeated before the signal; its last state is 0 until the first."""

    def initial(self, batch: int) -> State:
        """Room for the padding, and 0."""
        return [*super().initial(batch), self.weight.new_zeros(1)]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Convolve, with the first frame in place of the padding if the chunk begins the signal."""
        padding, started = state
        if x.shape[1]:
            padding = torch.where(started > 0, padding, x[:, :1])
            started = torch.ones_like(started)
        y, new_state = super().forward(x, [padding], final)
        return y, [*new_state, started]


class Upsample(Layer):
    """Transposed convolution of each channel, `[B, C, F] -> [B, C, F * stride]`, no bias."""

    def __init__(self, channels: int, stride: int, causal: bool = True):
        super().__init__()
        self.stride = stride
        self.left = 0 if causal else split_padding(stride, causal)[0]
        self.conv = nn.ConvTranspose1d(channels, channels, 2 * stride, stride, groups=channels, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Upsample `[B, C, F]`."""
        return self.conv(latents)[..., self.left : self.left + latents.shape[-1] * self.stride]

    @property
    def rate(self) -> int:
        """`stride` outputs per input."""
        return self.stride

    @property
    def context(self) -> Context:
        """Inputs whose kernels reach into the outputs of one input."""
        return Context(-(-(self.stride - self.left) // self.stride), -(-self.left // self.stride))

    def stream(self) -> StreamingLayer:
        """Sum of two products per sample."""
        return DepthwiseUpsampling(self.conv.weight, self.stride, self.left)


class DepthwiseUpsampling(Upsampling):
    """`Upsampling` of each channel by itself, `weight` `[C, 1, 2 * stride]`."""

    def __init__(self, weight: Tensor, stride: int, trim: int):
        StreamingLayer.__init__(self)
        taps = weight.detach().unflatten(2, (2, stride)).flip(2).permute(3, 0, 1, 2).reshape(-1, 1, 2)
        depthwise = DepthwiseConvolution(taps, taps.new_zeros(len(taps)), 1, 0)
        self.steps: StreamingLayer = Chain([Pointwise(Repeat(stride)), depthwise])
        self.outputs, self.stride, self.trim = len(weight), stride, trim


class Repeat(nn.Module):
    """Channels of `[B, F, C]`, repeated to `[B, F, times * C]`."""

    def __init__(self, times: int):
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        """Repeat."""
        return x.repeat(1, 1, self.times)
