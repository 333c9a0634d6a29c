"""Recurrent layers over frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from codec.layers.base import Context, Layer
from codec.layers.linear import linear
from codec.layers.streaming import State, StreamingLayer


class LSTM(Layer):
    """Recurrent layers over frames with a skip connection, `[B, C, F]` to `[B, C, F]`.

    Source: EnCodec (arXiv 2210.13438), section 3.1.

    Raises ValueError for a `num_layers` below 1.
    """

    def __init__(self, channels: int, num_layers: int = 2):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Run over the frames of `[B, C, F]`."""
        frames = latents.permute(2, 0, 1)
        return (self.lstm(frames)[0] + frames).permute(1, 2, 0)

    @property
    def context(self) -> Context:
        """All previous frames."""
        return Context(None, 0)

    def stream(self) -> StreamingLayer:
        """Recurrence with its hidden and cell state."""
        return Recurrence(self.lstm)

    def exported(self) -> nn.Module:
        """LSTM as a scan over frames."""
        return UnrolledLSTM(self.lstm)


class UnrolledLSTM(nn.Module):
    """`LSTM` as a scan over frames, for exported graphs of any length."""

    def __init__(self, lstm: nn.LSTM):
        super().__init__()
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
        outputs = frames
        for level in self.levels:
            weights = cast(nn.ParameterDict, level)
            gates = functional.linear(outputs, weights["inputs"], weights["bias"])
            zeros = torch.zeros_like(frames[0])
            _, outputs = scan(cell(weights["hidden"]), (zeros, zeros.clone()), gates)
        return (outputs + frames).permute(1, 2, 0)


def cell(hidden: Tensor) -> Callable[..., tuple[tuple[Tensor, Tensor], Tensor]]:
    """One step of an LSTM on gates `[B, 4 * C]` that include the input's product; `hidden` `[C, 4 * C]`."""

    def step(state: tuple[Tensor, Tensor], gates: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        output, memory = state
        input_gate, forget_gate, candidate, output_gate = (gates + output @ hidden).chunk(4, 1)
        memory = torch.sigmoid(forget_gate) * memory + torch.sigmoid(input_gate) * torch.tanh(candidate)
        output = torch.sigmoid(output_gate) * torch.tanh(memory)
        return (output, memory), output.clone()

    return step


SHORT = 32  # frames; up to here an LSTM is faster frame by frame


class Recurrence(StreamingLayer):
    """LSTM with a residual connection that carries hidden and cell state from chunk to chunk."""

    def __init__(self, lstm: nn.LSTM):
        super().__init__()
        parameter = next(lstm.parameters())
        self.lstm = nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers).to(parameter)
        self.lstm.load_state_dict(lstm.state_dict())
        self.requires_grad_(False)

    def initial(self, batch: int) -> State:
        """Hidden and cell state of zeros."""
        shape = self.lstm.num_layers, batch, self.lstm.hidden_size
        parameter = next(self.lstm.parameters())
        return [parameter.new_zeros(shape), parameter.new_zeros(shape)]

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Run over the frames of a chunk `[B, F, C]`."""
        if x.shape[1] == 0:
            return x, state
        if x.shape[1] > SHORT:
            output, new_state = self.lstm(x.transpose(0, 1), (state[0], state[1]))
            return x + output.transpose(0, 1), list(new_state)
        output, ends = x, []
        for weights, hidden, cell in zip(self.lstm.all_weights, *state, strict=True):
            output, *end = recur(output, hidden, cell, *weights)
            ends.append(end)
        return x + output, [torch.stack(part) for part in zip(*ends, strict=True)]


def recur(
    x: Tensor, hidden: Tensor, cell: Tensor, of_input: Tensor, of_hidden: Tensor, bias: Tensor, more: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of `torch.nn.LSTM` on `[B, T, C]`: outputs, and the last hidden and cell state `[B, C]`.

    The LSTM of torch repacks its weights on every call, which costs ten times the work of one frame.
    """
    outputs = []
    for gates in linear(x, of_input, bias + more).unbind(1):
        input_gate, forget_gate, candidate, output_gate = torch.addmm(gates, hidden, of_hidden.T).chunk(4, 1)
        cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
        hidden = output_gate.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs, 1), hidden, cell
