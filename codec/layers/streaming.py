"""Streaming forms of layers: each maps a chunk and a state to the outputs it completes and a new state.

Any chunking gives the outputs of the full signal, and nothing is computed twice. Causal layers have no delay,
centered layers wait for their look-ahead, recurrent layers keep their hidden state. Signals are `[B, T, C]`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codec.config import ConfigError

State = list[Tensor]
LONG = 2**24  # samples, more than the receptive field of any network


class NotStreamable(ConfigError):
    """Raised for a network or a layer without a streaming form."""


class StreamingLayer(nn.Module):
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


class Pointwise(StreamingLayer):
    """Activation or other map of single samples, without state."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Activate."""
        return self.activation(x), []


class Widened(StreamingLayer):
    """Computes a layer with its state in the type `dtype`; inputs and outputs have another type."""

    def __init__(self, step: StreamingLayer, dtype: torch.dtype):
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


class Interleave(StreamingLayer):
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


class Chain(StreamingLayer):
    """Sequence of steps."""

    def __init__(self, steps: Sequence[StreamingLayer]):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.sizes = [len(step.initial(1)) for step in steps]

    @property
    def parts(self) -> list[StreamingLayer]:
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


class Skip(StreamingLayer):
    """Residual connection with a delay line: the skip path waits for the block's output of the same frame."""

    def __init__(self, block: StreamingLayer, around: StreamingLayer):
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
