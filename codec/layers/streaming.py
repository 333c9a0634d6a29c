"""Streaming forms of layers: each maps a chunk and a state to the outputs it completes and a new state.

Any chunking gives the outputs of the full signal, and nothing is computed twice. Causal layers have no delay,
centered layers wait for their look-ahead, recurrent layers keep their hidden state. Signals are `[B, T, C]`:
a convolution is then one matrix product, twice as fast as a convolution of the few samples of one frame.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.config import ConfigError
from codec.layers.linear import linear

State = list[Tensor]
MANY = 256  # outputs; from here on a convolution is faster than a matrix product
WIDE = 16  # taps; above, a graph has a convolution instead of one slice per tap
LONG = 2**24  # samples, more than the receptive field of any network


class NotStreamable(ConfigError):
    """Raised for a network or a layer without a streaming form."""


class Step(nn.Module):
    """Base class: maps a chunk `x` `[B, T, C]`, any `T >= 0`, and a state to outputs and the next state.

    The state of a causal layer has fixed shapes, as an exported graph needs.
    """

    def count(self, inputs: int) -> int:
        """Number of outputs that are determined by the first `inputs` samples."""
        return inputs

    def initial(self, batch: int) -> State:
        """Initial state of `batch` signals."""
        return []

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Outputs that `x` completes, and the next state; `final` returns all remaining outputs."""
        raise NotImplementedError


class Pointwise(Step):
    """Activation or other map of single samples, without state."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Activate."""
        return self.activation(x), []


class Widened(Step):
    """Step that computes, with its state, in the type `dtype`, between inputs and outputs of another."""

    def __init__(self, step: Step, dtype: torch.dtype):
        super().__init__()
        self.step, self.dtype = step, dtype

    def count(self, inputs: int) -> int:
        """Number of outputs of the step."""
        return self.step.count(inputs)

    def initial(self, batch: int) -> State:
        """State of the step."""
        return self.step.initial(batch)

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Run the step."""
        y, new_state = self.step(x.to(self.dtype), state, final)
        return y.to(x.dtype), new_state


class Convolution(Step):
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


class Upsampling(Step):
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
        self.steps: Step = Convolution(taps, repeated, 1, 1, reach - 1, 0)
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


class DepthwiseConvolution(Step):
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


class Interleave(Step):
    """Frames `[B, F, stride * C]` divided into `[B, F * stride, C]`."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def count(self, inputs: int) -> int:
        """`stride` outputs per frame."""
        return inputs * self.stride

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Divide the frames."""
        return x.reshape(len(x), x.shape[1] * self.stride, x.shape[2] // self.stride), []


class Chain(Step):
    """Sequence of steps."""

    def __init__(self, steps: Sequence[Step]):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.sizes = [len(step.initial(1)) for step in steps]

    @property
    def parts(self) -> list[Step]:
        """Steps in order."""
        return list(self.steps)  # type: ignore[arg-type]

    def count(self, inputs: int) -> int:
        """Number of outputs of the last step."""
        return functools.reduce(lambda count, step: step.count(count), self.parts, inputs)

    def initial(self, batch: int) -> State:
        """Concatenated states of all steps."""
        return [tensor for step in self.parts for tensor in step.initial(batch)]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Run all steps."""
        ends = list(itertools.accumulate(self.sizes))
        new_state: State = []
        for step, size, end in zip(self.parts, self.sizes, ends, strict=True):
            x, part = step(x, state[end - size : end], final)
            new_state += part
        return x, new_state


class Skip(Step):
    """Residual connection with a delay line: the skip path waits for the block's output of the same frame."""

    def __init__(self, block: Step, around: Step):
        super().__init__()
        self.block, self.around = block, around
        self.waits = block.count(LONG) < LONG

    def count(self, inputs: int) -> int:
        """Number of outputs of the block."""
        return self.block.count(inputs)

    def initial(self, batch: int) -> State:
        """State of the block, and an empty delay line."""
        inner = self.block.initial(batch)
        return [*inner, inner[0][:, :0]] if self.waits else inner

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Add the block's outputs to the delayed skip path."""
        if not self.waits:
            output, new_state = self.block(x, state, final)
            return self.around(x, [])[0] + output, new_state
        delay_line = torch.cat([state[-1], x], 1)
        output, new_state = self.block(x, state[:-1], final)
        count = output.shape[1]
        return self.around(delay_line[:, :count], [])[0] + output, [*new_state, delay_line[:, count:]]
