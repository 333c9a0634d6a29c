"""Streaming forms of convolutions, for signals `[B, T, C]`.

A convolution is then one matrix product, twice as fast as a convolution of the few samples of one frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from codec.layers.linear import linear
from codec.layers.streaming import State, StreamingLayer

MANY = 256  # outputs; from here on a convolution is faster than a matrix product
WIDE = 16  # taps; above, a graph has a convolution instead of one slice per tap


class Convolution(StreamingLayer):
    """Convolution as one matrix product: concatenated samples under the taps times `[k * C, C']`.

    `weight` is `[C', C, k]`; the padding is `left` and `right` zeros. ValueError for a span below `stride`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: int, dilation: int, left: int, right: int
    ):
        super().__init__()
        outputs, self.channels, self.kernel_size = weight.shape
        taps = weight.detach().transpose(1, 2).reshape(outputs, -1)
        self.register_buffer("weight", taps.clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.stride, self.dilation, self.left, self.right = stride, dilation, left, right
        self.span = (self.kernel_size - 1) * dilation + 1
        if self.span < stride:
            raise ValueError(f"a convolution of {self.span} samples every {stride} cannot be streamed")

    def count(self, inputs: int) -> int:
        """Number of positions of the kernel."""
        return max(0, (self.left + inputs - self.span) // self.stride + 1)

    def initial(self, batch: int) -> State:
        """Padding before the signal."""
        return [self.weight.new_zeros(batch, self.left, self.channels)] if self.span > 1 else []

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Convolve, and keep the samples that later outputs need."""
        if self.span == 1:
            return linear(x, self.weight, self.bias), []
        padding = [x.new_zeros(len(x), self.right, self.channels)] if final and self.right else []
        x = torch.cat([*state, x, *padding], 1)
        count = max(0, self.count(x.shape[1] - self.left))
        new_state = [x[:, count * self.stride :]]
        if torch.compiler.is_compiling() and self.kernel_size > WIDE:
            kernel = self.weight.view(-1, self.kernel_size, self.channels).transpose(1, 2)
            y = functional.conv1d(x.transpose(1, 2), kernel, self.bias, self.stride, 0, self.dilation)
            return y.transpose(1, 2), new_state
        if count < MANY or self.channels == 1 or torch.compiler.is_compiling():
            return linear(self.windows(x, count), self.weight, self.bias), new_state
        # Libraries implement channels last for two dimensions only.
        kernel = self.weight.view(-1, 1, self.kernel_size, self.channels).permute(0, 3, 1, 2)
        image, geometry = x.transpose(1, 2).unsqueeze(2), ((1, self.stride), 0, (1, self.dilation))
        return functional.conv2d(image, kernel, self.bias, *geometry).squeeze(2).transpose(1, 2), new_state

    def windows(self, x: Tensor, count: int) -> Tensor:
        """Samples under the taps at `count` positions of the kernel, `[B, count, k * C]`."""
        if torch.compiler.is_compiling():  # exported graphs have no strides
            reach = (count - 1) * self.stride + 1
            starts = range(0, self.span, self.dilation)
            return torch.cat([x[:, start : start + reach : self.stride] for start in starts], 2)
        # Overlapping windows as a view, so that `reshape` makes the only copy.
        x = x.contiguous()
        size = (len(x), count, self.kernel_size, self.channels)
        batch, step = x.stride(0), self.channels
        strides = (batch, self.stride * step, self.dilation * step, 1)
        return x.as_strided(size, strides).reshape(len(x), count, self.kernel_size * self.channels)


class Upsampling(StreamingLayer):
    """Transposed convolution: each frame and the previous frames under the kernel give `stride` samples.

    `weight` is `[C, C', k]`. `trim` samples are cut at the start of the signal; `final` returns the same
    number at its end.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, trim: int):
        super().__init__()
        inputs, outputs, kernel_size = weight.shape
        reach = -(-kernel_size // stride)
        padded = functional.pad(weight.detach(), (0, reach * stride - kernel_size))
        blocks = padded.view(inputs, outputs, reach, stride).flip(2)
        taps = blocks.permute(3, 1, 0, 2).reshape(stride * outputs, inputs, reach)
        repeated = None if bias is None else bias.detach().repeat(stride)
        self.steps: StreamingLayer = Convolution(taps, repeated, 1, 1, reach - 1, 0)
        self.outputs, self.stride, self.trim = outputs, stride, trim

    def count(self, inputs: int) -> int:
        """Samples of all inputs, less the trimmed ones."""
        return max(0, inputs * self.stride - self.trim)

    def initial(self, batch: int) -> State:
        """Zero frames before the signal, and the number of samples left to trim."""
        return [*self.steps.initial(batch), *([torch.tensor(self.trim)] if self.trim else [])]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Upsample."""
        extra_frames = -(-self.trim // self.stride) if final else 0
        x = functional.pad(x, (0, 0, 0, extra_frames)) if extra_frames else x
        size = len(state) - bool(self.trim)
        blocks, new_state = self.steps(x, state[:size])
        samples = blocks.reshape(len(x), -1, self.outputs)
        if not self.trim:
            return samples, new_state
        trimmed = min(int(state[-1]), samples.shape[1])
        end = samples.shape[1] - (extra_frames * self.stride - self.trim if final else 0)
        return samples[:, trimmed:end], [*new_state, state[-1] - trimmed]


class DepthwiseConvolution(StreamingLayer):
    """Depthwise convolution, `weight` `[C, 1, k]`; the padding is `left` and `right` zeros."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, left: int, right: int):
        super().__init__()
        self.register_buffer("weight", weight.detach()[:, 0].T.clone())  # [k, C]
        self.register_buffer("bias", bias.detach().clone())
        self.left, self.right = left, right

    def count(self, inputs: int) -> int:
        """Number of positions of the kernel."""
        return max(0, inputs - self.right)

    def initial(self, batch: int) -> State:
        """Padding before the signal."""
        return [self.weight.new_zeros(batch, self.left, self.weight.shape[1])]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Convolve, and keep the samples that later outputs need."""
        padding = [x.new_zeros(len(x), self.right, x.shape[2])] if final and self.right else []
        x = torch.cat([*state, x, *padding], 1)
        count = max(0, x.shape[1] - self.left - self.right)
        if torch.compiler.is_compiling():  # one node of a graph instead of two per tap
            taps = self.weight.T.unsqueeze(1)
            y = functional.conv1d(x.transpose(1, 2), taps, self.bias, groups=len(taps))
            return y.transpose(1, 2), [x[:, count:]]
        y = self.bias.expand(len(x), count, -1)
        for tap, weight in enumerate(self.weight):
            y = torch.addcmul(y, x[:, tap : tap + count], weight)
        return y, [x[:, count:]]
