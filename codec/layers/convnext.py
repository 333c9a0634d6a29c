"""ConvNeXt blocks on frames `[B, F, C]`, and the changes of frame rate between them."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.layers.base import Context, Layer
from codec.layers.conv import split_padding
from codec.layers.streaming import Chain, Interleave, Pointwise, Skip, StreamingLayer
from codec.layers.streaming_convolution import Convolution, DepthwiseConvolution


class ChannelsLast(Layer):
    """Transpose `[B, C, F]` to `[B, F, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Transpose."""
        return x.transpose(1, 2)

    @property
    def context(self) -> Context:
        """No other frames."""
        return Context(0, 0)

    def stream(self) -> StreamingLayer:
        """Identity: streams are `[B, F, C]` throughout."""
        return Pointwise(nn.Identity())


class ChannelsFirst(ChannelsLast):
    """Transpose `[B, F, C]` to `[B, C, F]`."""

    channels_last = True


class FrameLayer(Layer):
    """Base class of a layer that maps each frame of `[B, F, C]` separately."""

    channels_last = True

    @property
    def context(self) -> Context:
        """No other frames."""
        return Context(0, 0)

    def stream(self) -> StreamingLayer:
        """Frozen copy of the layer."""
        return Pointwise(copy.deepcopy(self).requires_grad_(False))


class Projection(FrameLayer):
    """Layer normalization, then a linear map of the channels, `[B, F, C] -> [B, F, C']`."""

    def __init__(self, in_channels: int, out_channels: int, normalize: bool = True, epsilon: float = 1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, epsilon) if normalize else nn.Identity()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and project."""
        return self.linear(self.norm(x))


class Merge(Layer):
    """Strided convolution of kernel `stride`: `[B, F, C] -> [B, F / stride, C']`, frames normalized first."""

    channels_last = True

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(in_channels)
        self.linear = nn.Linear(stride * in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Join `stride` frames and project them."""
        batch, frames, channels = x.shape
        return self.linear(self.norm(x).reshape(batch, frames // self.stride, self.stride * channels))

    @property
    def rate(self) -> Fraction:
        """One output every `stride` frames."""
        return Fraction(1, self.stride)

    @property
    def context(self) -> Context:
        """No frames other than those joined."""
        return Context(0, 0)

    def stream(self) -> StreamingLayer:
        """Strided convolution of the normalized frames."""
        weight = self.linear.weight.unflatten(1, (self.stride, -1)).transpose(1, 2)
        norm = copy.deepcopy(self.norm).requires_grad_(False)
        return Chain([Pointwise(norm), Convolution(weight, self.linear.bias, self.stride, 1, 0, 0)])


class Split(Layer):
    """Transposed convolution of kernel `stride`: `[B, F, C] -> [B, F * stride, C']`, normalized first."""

    channels_last = True

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(in_channels)
        self.linear = nn.Linear(in_channels, stride * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Project and divide each frame into `stride`."""
        batch, frames, _ = x.shape
        return self.linear(self.norm(x)).reshape(batch, frames * self.stride, -1)

    @property
    def rate(self) -> int:
        """`stride` outputs per frame."""
        return self.stride

    @property
    def context(self) -> Context:
        """No other frames."""
        return Context(0, 0)

    def stream(self) -> StreamingLayer:
        """Linear map of each frame, and its division into `stride` frames."""
        parts = copy.deepcopy(nn.Sequential(self.norm, self.linear)).requires_grad_(False)
        return Chain([Pointwise(parts), Interleave(self.stride)])


class DepthwiseConv(Layer):
    """Convolution of each channel along frames, `[B, F, C] -> [B, F, C]`, zero-padded.

    A causal kernel covers `lookahead` future frames.
    """

    channels_last = True

    def __init__(self, channels: int, kernel_size: int, causal: bool, lookahead: int = 0):
        super().__init__()
        left, right = split_padding(kernel_size - 1, causal)
        self.left, self.right = left - lookahead, right + lookahead
        conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.weight = conv.weight  # [C, 1, k]
        self.bias = cast(nn.Parameter, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, at least in float32: narrower types have a slower backward pass on CPUs."""
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, self.weight.dtype)
            padded = functional.pad(x.to(wide), (0, 0, self.left, self.right))
            # Libraries implement channels last for two dimensions only.
            image = padded.transpose(1, 2).unsqueeze(2)
            weight = self.weight.unsqueeze(2).to(wide).contiguous(memory_format=torch.channels_last)
            y = functional.conv2d(image, weight, self.bias, groups=len(weight))
        return y.squeeze(2).transpose(1, 2)

    @property
    def context(self) -> Context:
        """Frames under the kernel."""
        return Context(self.left, self.right)

    def stream(self) -> StreamingLayer:
        """Depthwise convolution with its past frames as state."""
        return DepthwiseConvolution(self.weight, self.bias, self.left, self.right)


class ConvNeXtBlock(Layer):
    """Residual block `[B, F, C] -> [B, F, C]`: depthwise convolution, normalization, two linear maps.

    ConvNeXt (arXiv 2201.03545) along time as in Vocos (2306.00814, Fig. 2). `layer_scale` is the initial
    value of the learned factor of each channel. A causal kernel covers `lookahead` future frames.
    Raises ValueError for sizes below 1, and for a look-ahead without `causal` or beyond the kernel.
    """

    channels_last = True

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        expansion: float = 3.0,
        layer_scale: float = 0.1,
        causal: bool = False,
        lookahead: int = 0,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        hidden = round(expansion * channels)
        if kernel_size < 1 or hidden < 1:
            raise ValueError(
                f"kernel_size and expansion * channels must be at least 1, got {kernel_size}, {hidden}"
            )
        if not 0 <= lookahead < kernel_size or (lookahead and not causal):
            raise ValueError(
                f"lookahead must be 0 to {kernel_size - 1} frames, within the kernel of a causal block, got "
                f"{lookahead} with causal={causal}"
            )
        self.depthwise = DepthwiseConv(channels, kernel_size, causal, lookahead)
        self.pointwise = PointwiseMLP(channels, hidden, layer_scale, nn.LayerNorm(channels, epsilon))

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input."""
        return x + self.pointwise(self.depthwise(x))

    @property
    def context(self) -> Context:
        """Frames under the depthwise kernel."""
        return self.depthwise.context

    def stream(self) -> StreamingLayer:
        """Streaming form of the block, with a delay line for the residual."""
        return Skip(Chain([self.depthwise.stream(), self.pointwise.stream()]), Pointwise(nn.Identity()))


class PointwiseMLP(FrameLayer):
    """Normalization, expansion, GELU, projection and layer scale of each frame `[B, F, C]`."""

    def __init__(self, channels: int, hidden: int, layer_scale: float, norm: nn.Module):
        super().__init__()
        self.norm = norm
        self.expand = nn.Linear(channels, hidden)
        self.project = nn.Linear(hidden, channels)
        self.scale = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Map each frame."""
        return self.project(functional.gelu(self.expand(self.norm(x)))) * self.scale
