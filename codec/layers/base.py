"""Base class of layers, and the context, rate, streaming form and masking of networks of layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codec.layers.streaming import Chain, NotStreamable, Pointwise, StreamingLayer

POINTWISE = (nn.ELU, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Tanh)


class Context(NamedTuple):
    """Receptive field of an output: number of inputs before and after its own place, None if unbounded."""

    before: Fraction | int | None
    after: Fraction | int | None


UNBOUNDED = Context(None, None)


class Layer(nn.Module):
    """Base class of a layer along time.

    Signals are `[B, C, T]`, or `[B, T, C]` if `channels_last`. The defaults are safe for any layer: an
    unbounded context, no streaming form, and the layer itself in exported graphs.
    """

    channels_last: bool = False
    masked: bool = False  # `forward` has an argument `valid` `[B, T]`: False for padding

    @property
    def rate(self) -> Fraction | int:
        """Outputs per input."""
        return 1

    @property
    def context(self) -> Context:
        """Receptive field of an output, in inputs."""
        return UNBOUNDED

    def stream(self) -> StreamingLayer:
        """Streaming form with a copy of the current weights; NotStreamable without one."""
        raise NotStreamable(f"{type(self).__name__} has no streaming form")

    def exported(self) -> nn.Module:
        """Equivalent module for exported graphs, on frozen weights; the layer itself by default."""
        return self


def context_of(network: nn.Module) -> Context:
    """Context of a layer or sequence of layers, in inputs; unbounded for a module of another kind."""
    if isinstance(network, Layer):
        return network.context
    if isinstance(network, POINTWISE):
        return Context(0, 0)
    if not isinstance(network, nn.Sequential):
        return UNBOUNDED
    sides: list[Fraction | int | None] = [0, 0]
    rate = Fraction(1)
    for part in network:
        for side, reach in enumerate(context_of(part)):
            total = sides[side]
            sides[side] = None if total is None or reach is None else total + reach / rate
        rate *= rate_of(part)
    return Context(*sides)


def rate_of(network: nn.Module) -> Fraction:
    """Outputs per input of a layer or sequence of layers."""
    if isinstance(network, nn.Sequential):
        rate = Fraction(1)
        for part in network:
            rate *= rate_of(part)
        return rate
    return Fraction(network.rate) if isinstance(network, Layer) else Fraction(1)


def stream_of(network: nn.Module) -> StreamingLayer:
    """Streaming form of a layer or sequence of layers; NotStreamable for a module of another kind."""
    if isinstance(network, Layer):
        return network.stream()
    if isinstance(network, nn.Sequential):
        return Chain([stream_of(part) for part in network])
    if isinstance(network, POINTWISE):
        return Pointwise(network)
    raise NotStreamable(f"{type(network).__name__} has no streaming form")


def looks_ahead(layer: nn.Module) -> bool:
    """Test for a non-causal layer: one whose outputs depend on later inputs."""
    return isinstance(layer, Layer) and layer.context.after != 0


class Padding:
    """Masks padding before every non-causal layer of a network, so that batched equals single encoding.

    Without the mask a non-causal layer would depend on the response of earlier layers to the padding. A
    `masked` layer, such as attention, for which zeros are inputs like others, gets the mask as its argument
    `valid`. `context.after` of the network must be bounded.
    """

    def __init__(self, network: nn.Module):
        self.lengths: Tensor | None = None
        self.longest = torch.tensor(1)  # a number would be a constant of a compiled graph
        # Hooks for good: compiled networks call only those of their compilation.
        for layer in filter(looks_ahead, network.modules()):
            layer.register_forward_pre_hook(self.mask, with_kwargs=True)

    @contextmanager
    def beyond(self, lengths: Tensor, longest: int) -> Iterator[None]:
        """Mask the rest after `lengths` `[B]` of signals, of `longest` inputs with their padding."""
        self.longest = torch.tensor(longest, device=lengths.device)
        self.lengths = lengths
        try:
            yield
        finally:
            self.lengths = None

    def mask(self, layer: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Tensor]) -> Any:
        """Inputs and options of a layer with zeros as padding; None for the same."""
        if self.lengths is None:
            return None
        x = inputs[0]
        size = x.shape[1] if layer.channels_last else x.shape[-1]
        # Exact: lengths are whole frames, and the rate of a layer divides a frame.
        padding = torch.arange(size, device=x.device) >= (self.lengths * size // self.longest)[:, None]
        masked = x.masked_fill(padding[..., None] if layer.channels_last else padding[:, None], 0)
        return (masked,), options | ({"valid": ~padding} if layer.masked else {})
