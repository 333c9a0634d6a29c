"""Convolutions that pad a signal with its reflection."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from codec.layers.base import UNBOUNDED, Context
from codec.layers.conv import Conv1d, Layers
from codec.layers.streaming import NotStreamable, StreamingLayer


class ReflectedConv1d(Conv1d):
    """`Conv1d` whose padding is the signal's reflection; zeros extend a signal that is too short for it.

    The reflection starts from the signal's true end, so a batch of different lengths cannot be encoded at
    once, and there is no streaming form.
    """

    def forward(self, audio: Tensor) -> Tensor:
        """Convolve `[B, C, T]`."""
        conv, padded = self.conv, reflected(audio, self.left, self.right)
        return functional.conv1d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation)

    @property
    def context(self) -> Context:
        """Unbounded, because the padding depends on the length."""
        return UNBOUNDED

    def stream(self) -> StreamingLayer:
        """Raise NotStreamable."""
        raise NotStreamable("a convolution that pads with a reflection needs samples after the first")


def reflected(signal: Tensor, left: int, right: int) -> Tensor:
    """Pad `[B, C, T]` to `[B, C, left + T + right]` with its reflection at both ends."""
    length = signal.shape[-1]
    places = torch.arange(-left, length + right, device=signal.device).abs()
    last = torch.sym_max(length, max(left, right) + 1) - 1
    places = last - (last - places).abs()
    return signal[..., places.clamp(max=length - 1)] * (places < length).to(signal)


class ReflectedLayers(Layers):
    """`Layers` that pad with reflections, as the released EnCodec (arXiv 2210.13438) and WavTokenizer do."""

    convolution = ReflectedConv1d
