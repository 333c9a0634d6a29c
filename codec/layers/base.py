"""The contract of a layer, and the questions that can be put to a network of layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codec.layers.streaming import Chain, NotStreamable, Pointwise, Step

POINTWISE = (nn.ELU, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Tanh)


class Context(NamedTuple):
    """Inputs before and after its own place on which an output depends; None where that has no bound."""

    before: Fraction | int | None
    after: Fraction | int | None


UNBOUNDED = Context(None, None)


class Layer(nn.Module):
    """A layer of a network along time.

    Signals are `[B, C, T]`, or `[B, T, C]` if `channels_last`. The defaults are safe for any layer: its
    context is unbounded, it cannot be streamed, and graphs hold it as it is.
    """

    channels_last: bool = False

    @property
    def rate(self) -> Fraction | int:
        """Outputs per input."""
        return 1

    @property
    def context(self) -> Context:
        """Inputs before and after its own on which an output depends."""
        return UNBOUNDED

    def stream(self) -> Step:
        """Streaming form with the weights as they are now; NotStreamable where there is none."""
        raise NotStreamable(f"{type(self).__name__} has no streaming form")

    def exported(self) -> nn.Module:
        """Form of the same function for graphs, on frozen weights; itself by default."""
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


def stream_of(network: nn.Module) -> Step:
    """Streaming form of a layer or sequence of layers; NotStreamable for a module of another kind."""
    if isinstance(network, Layer):
        return network.stream()
    if isinstance(network, nn.Sequential):
        return Chain([stream_of(part) for part in network])
    if isinstance(network, POINTWISE):
        return Pointwise(network)
    raise NotStreamable(f"{type(network).__name__} has no streaming form")


def looks_ahead(layer: nn.Module) -> bool:
    """Test for a layer whose outputs depend on inputs after their own place."""
    return isinstance(layer, Layer) and layer.context.after != 0


@contextmanager
def zeros_beyond(network: nn.Module, lengths: Tensor, longest: int) -> Iterator[None]:
    """Zero the inputs of all layers that look ahead beyond each item's length `[B]`, of `longest` inputs.

    A layer that looks ahead would see the response of earlier layers to the padding of a shorter item; the
    item alone is followed by zeros. The context of the network must be bounded after.
    """

    def mask(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x = inputs[0]
        size = x.shape[1] if layer.channels_last else x.shape[-1]
        # Lengths are whole frames, and the rate of a layer divides a frame.
        beyond = torch.arange(size, device=x.device) >= (lengths * size // longest)[:, None]
        return x.masked_fill(beyond[..., None] if layer.channels_last else beyond[:, None], 0)

    ragged = bool((lengths < longest).any())
    ahead = [module for module in network.modules() if looks_ahead(module)] if ragged else []
    hooks = [layer.register_forward_pre_hook(mask) for layer in ahead]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
