"""A network's layers in pieces: what the samples so far determine, and the state from which the rest follows.

Nothing is computed twice, and nothing is guessed at the seams: a causal network answers at once, a centred
one as soon as it has seen enough, a recurrent one carries its memory along. Signals are `[B, T, C]`: so a
convolution is one matrix product, twice as fast as a convolution of the few samples of one frame.
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
MANY = 256  # outputs from which a convolution is faster as such than as one matrix product
WIDE = 16  # taps above which a graph holds a convolution, not a slice a tap
SHORT = 32  # frames up to which an LSTM is faster frame by frame
LONG = 2**24  # samples, more than any network's receptive field


class NotStreamable(ConfigError):
    """A network, or a layer of it, has no streaming form."""


class Step(nn.Module):
    """One layer in pieces: of `x` `[B, T, C]`, any `T >= 0`, and a state it makes outputs and the next state.

    Only where no output waits for later samples has the state fixed shapes, as an exported graph needs.
    """

    def count(self, inputs: int) -> int:
        """How many outputs the first `inputs` samples determine."""
        return inputs

    def initial(self, batch: int) -> State:
        """State before the first sample."""
        return []

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Outputs that `x` completes, and the next state; with `final` all that remain."""
        raise NotImplementedError


class Pointwise(Step):
    """An activation: it needs nothing but the sample itself."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Activate."""
        return self.activation(x), []


class Convolution(Step):
    """A convolution as one matrix product: the samples under its taps, side by side, times `[k * C, C']`.

    `weight` `[C', C, k]`; the signal is preceded by `left` zeros and followed by `right`.
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
        """How often the kernel fits."""
        return max(0, (self.left + inputs - self.span) // self.stride + 1)

    def initial(self, batch: int) -> State:
        """The zeros before the signal."""
        return [self.weight.new_zeros(batch, self.left, self.channels)] if self.span > 1 else []

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Convolve as far as the kernel reaches."""
        if self.span == 1:
            return linear(x, self.weight, self.bias), []
        after = [x.new_zeros(len(x), self.right, self.channels)] if final and self.right else []
        x = torch.cat([*state, x, *after], 1)
        count = max(0, self.count(x.shape[1] - self.left))
        following = [x[:, count * self.stride :]]
        if torch.compiler.is_compiling() and self.kernel_size > WIDE:
            kernel = self.weight.view(-1, self.kernel_size, self.channels).transpose(1, 2)
            y = functional.conv1d(x.transpose(1, 2), kernel, self.bias, self.stride, 0, self.dilation)
            return y.transpose(1, 2), following
        if count < MANY or self.channels == 1 or torch.compiler.is_compiling():
            return linear(self.windows(x, count), self.weight, self.bias), following
        # With channels last, as here, libraries convolve two dimensions alone.
        kernel = self.weight.view(-1, 1, self.kernel_size, self.channels).permute(0, 3, 1, 2)
        image, along = x.transpose(1, 2).unsqueeze(2), ((1, self.stride), 0, (1, self.dilation))
        return functional.conv2d(image, kernel, self.bias, *along).squeeze(2).transpose(1, 2), following

    def windows(self, x: Tensor, count: int) -> Tensor:
        """What the kernel sees at each of `count` places, `[B, count, k * C]`."""
        if torch.compiler.is_compiling():
            reach = (count - 1) * self.stride + 1
            starts = range(0, self.span, self.dilation)
            return torch.cat([x[:, start : start + reach : self.stride] for start in starts], 2)
        x = x.contiguous()
        size = (len(x), count, self.kernel_size, self.channels)
        batch, step = x.stride(0), self.channels
        strides = (batch, self.stride * step, self.dilation * step, 1)
        return x.as_strided(size, strides).reshape(len(x), count, self.kernel_size * self.channels)


class Upsampling(Step):
    """A transposed convolution: each step, with those before that reach into it, gives `stride` samples.

    `trim` samples are cut off the whole signal's start, and as many more follow its last step.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, trim: int):
        super().__init__()
        inputs, outputs, kernel_size = weight.shape
        reach = -(-kernel_size // stride)
        padded = functional.pad(weight.detach(), (0, reach * stride - kernel_size))
        blocks = padded.view(inputs, outputs, reach, stride).flip(2)
        taps = blocks.permute(3, 1, 0, 2).reshape(stride * outputs, inputs, reach)
        repeated = None if bias is None else bias.detach().repeat(stride)
        self.steps = Convolution(taps, repeated, 1, 1, reach - 1, 0)
        self.outputs, self.stride, self.trim = outputs, stride, trim

    def count(self, inputs: int) -> int:
        """All samples of the inputs but those that are cut."""
        return max(0, inputs * self.stride - self.trim)

    def initial(self, batch: int) -> State:
        """No steps before, and how much of the start is still to be cut."""
        return [*self.steps.initial(batch), *([torch.tensor(self.trim)] if self.trim else [])]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Upsample."""
        more = -(-self.trim // self.stride) if final else 0
        x = functional.pad(x, (0, 0, 0, more)) if more else x
        kept = len(state) - bool(self.trim)
        blocks, following = self.steps(x, state[:kept])
        samples = blocks.reshape(len(x), -1, self.outputs)
        if not self.trim:
            return samples, following
        cut = min(int(state[-1]), samples.shape[1])
        end = samples.shape[1] - (more * self.stride - self.trim if final else 0)
        return samples[:, cut:end], [*following, state[-1] - cut]


class DepthwiseConvolution(Step):
    """A convolution of each channel, `weight` `[C, 1, k]`; zeros surround the signal, `left` and `right`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, left: int, right: int):
        super().__init__()
        self.register_buffer("weight", weight.detach()[:, 0].T.clone())  # [k, C]
        self.register_buffer("bias", bias.detach().clone())
        self.left, self.right = left, right

    def count(self, inputs: int) -> int:
        """How often the kernel fits."""
        return max(0, inputs - self.right)

    def initial(self, batch: int) -> State:
        """The zeros before the signal."""
        return [self.weight.new_zeros(batch, self.left, self.weight.shape[1])]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Convolve as far as the kernel reaches."""
        after = [x.new_zeros(len(x), self.right, x.shape[2])] if final and self.right else []
        x = torch.cat([*state, x, *after], 1)
        count = max(0, x.shape[1] - self.left - self.right)
        if torch.compiler.is_compiling():  # one node of a graph instead of two a tap
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


class Recurrence(Step):
    """An LSTM that remembers what it knew at the end of the last piece."""

    def __init__(self, lstm: nn.LSTM):
        super().__init__()
        self.lstm = nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers)
        self.lstm.load_state_dict(lstm.state_dict())
        self.requires_grad_(False)

    def initial(self, batch: int) -> State:
        """Hidden and cell state of zeros."""
        shape = self.lstm.num_layers, batch, self.lstm.hidden_size
        parameter = next(self.lstm.parameters())
        return [parameter.new_zeros(shape), parameter.new_zeros(shape)]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Run over the steps that came."""
        if x.shape[1] == 0:
            return x, state
        if x.shape[1] > SHORT:
            answer, following = self.lstm(x.transpose(0, 1), (state[0], state[1]))
            return x + answer.transpose(0, 1), list(following)
        answer, ends = x, []
        for weights, hidden, cell in zip(self.lstm.all_weights, *state, strict=True):
            answer, *end = recur(answer, hidden, cell, *weights)
            ends.append(end)
        return x + answer, [torch.stack(part) for part in zip(*ends, strict=True)]


def recur(
    x: Tensor, hidden: Tensor, cell: Tensor, of_input: Tensor, of_hidden: Tensor, bias: Tensor, more: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of `torch.nn.LSTM` on `[B, T, C]`: outputs, hidden and cell state `[B, C]` after them.

    The library's lays out its weights anew for every call, ten times the work of one frame.
    """
    outputs = []
    for gates in linear(x, of_input, bias + more).unbind(1):
        opened, kept, new, shown = torch.addmm(gates, hidden, of_hidden.T).chunk(4, 1)
        cell = kept.sigmoid() * cell + opened.sigmoid() * new.tanh()
        hidden = shown.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs, 1), hidden, cell


class Chain(Step):
    """Steps one after the other."""

    def __init__(self, steps: Sequence[Step]):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.sizes = [len(step.initial(1)) for step in steps]

    @property
    def parts(self) -> list[Step]:
        """The steps, first first."""
        return list(self.steps)  # type: ignore[arg-type]

    def count(self, inputs: int) -> int:
        """What is left after the last step."""
        return functools.reduce(lambda count, step: step.count(count), self.parts, inputs)

    def initial(self, batch: int) -> State:
        """All steps' states in a row."""
        return [tensor for step in self.parts for tensor in step.initial(batch)]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Run all steps."""
        ends = list(itertools.accumulate(self.sizes))
        following: State = []
        for step, size, end in zip(self.parts, self.sizes, ends, strict=True):
            x, part = step(x, state[end - size : end], final)
            following += part
        return x, following


class Skip(Step):
    """A block and the way around it, where samples wait for what the block makes of them."""

    def __init__(self, block: Step, around: Step):
        super().__init__()
        self.block, self.around = block, around
        self.waits = block.count(LONG) < LONG

    def count(self, inputs: int) -> int:
        """As many as the block answers."""
        return self.block.count(inputs)

    def initial(self, batch: int) -> State:
        """The block's state, and nobody waiting."""
        inner = self.block.initial(batch)
        return [*inner, inner[0][:, :0]] if self.waits else inner

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Add the block's answers to the samples they belong to."""
        if not self.waits:
            answer, following = self.block(x, state, final)
            return self.around(x, [])[0] + answer, following
        waiting = torch.cat([state[-1], x], 1)
        answer, following = self.block(x, state[:-1], final)
        count = answer.shape[1]
        return self.around(waiting[:, :count], [])[0] + answer, [*following, waiting[:, count:]]
