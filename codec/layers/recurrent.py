"""Recurrent layers over frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from codec.layers.base import Context, Layer
from codec.layers.streaming import Recurrence, Step


class LSTM(Layer):
    """Recurrent layers over frames with a skip connection, `[B, C, F] -> [B, C, F]` (EnCodec, §3.1)."""

    def __init__(self, channels: int, num_layers: int):
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Run over the frames of `[B, C, F]`."""
        frames = latents.permute(2, 0, 1)
        return (self.lstm(frames)[0] + frames).permute(1, 2, 0)

    @property
    def context(self) -> Context:
        """All previous frames."""
        return Context(None, 0)

    def stream(self) -> Step:
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
