"""Conversion of the sample rate inside a network."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from codec.layers.base import Context, Layer
from codec.layers.streaming import Chain, Interleave, StreamingLayer
from codec.layers.streaming_convolution import Convolution

CUTOFF = 0.95  # of half the lower rate, in the middle of the transition
BETA = 7.5  # of the Kaiser window: 77 dB of attenuation


class Resample(Layer):
    """Resample audio `[B, C, T]` to `[B, C, T * target / source]`, rates in Hz, by a windowed sinc.

    One fixed filter per phase of the reduced ratio (polyphase decomposition); zeros before and after the
    signal. `T` must be a multiple of the ratio's denominator. ValueError for rates below 1.
    """

    zeros = 48.0  # length of the sinc on each side, in samples of the lower rate: 3 ms at 16 kHz
    filters: Tensor  # [target / gcd, taps]

    def __init__(self, channels: int, source: int, target: int):
        super().__init__()
        if min(source, target) < 1:
            raise ValueError(f"rates must be at least 1 Hz, got {source} and {target}")
        self.channels, self.ratio = channels, Fraction(target, source)
        self.phases, self.stride = self.ratio.as_integer_ratio()
        scale = min(1.0, target / source)
        self.reach = math.ceil(self.zeros / scale)
        taps = torch.arange(-self.reach, self.stride + self.reach, dtype=torch.float64)
        centers = torch.arange(self.phases, dtype=torch.float64) / float(self.ratio)
        distance = (taps - centers[:, None]) * scale  # in samples of the lower rate
        self.register_buffer("filters", self.response(distance, scale).float(), persistent=False)

    def response(self, distance: Tensor, scale: float) -> Tensor:
        """Filters at each `distance` `[phases, taps]`; `scale` is the share of the band that is kept."""
        window = torch.special.i0(BETA * (1 - (distance / self.zeros).square()).clamp(min=0).sqrt())
        filters = CUTOFF * torch.sinc(CUTOFF * distance) * window * (distance.abs() < self.zeros)
        return filters / filters.sum(1, keepdim=True)  # constants stay as they are

    def forward(self, audio: Tensor) -> Tensor:
        """Resample."""
        padded = functional.pad(audio.flatten(0, 1)[:, None], (self.reach, self.reach))
        phases = functional.conv1d(padded, self.filters[:, None], stride=self.stride)
        return phases.transpose(1, 2).flatten(1).unflatten(0, audio.shape[:2])

    @property
    def rate(self) -> Fraction:
        """Outputs per input."""
        return self.ratio

    @property
    def context(self) -> Context:
        """Samples under the filter."""
        return Context(self.reach, self.reach)

    def stream(self) -> StreamingLayer:
        """All phases of all channels as one convolution."""
        eye = torch.eye(self.channels).to(self.filters)
        weight = torch.einsum("pk,cd->pcdk", self.filters, eye).flatten(0, 1)
        steps = Convolution(weight, None, self.stride, 1, self.reach, self.reach)
        return Chain([steps, Interleave(self.phases)])


class HannResample(Resample):
    """Resample by a short sinc in a Hann window, as `torchaudio.functional.resample` does."""

    cutoff = 0.99
    zeros = 6 / cutoff

    def response(self, distance: Tensor, scale: float) -> Tensor:
        """Filters at each `distance` `[phases, taps]`."""
        window = torch.cos(torch.pi / 2 * distance / self.zeros).square()
        filters = scale * self.cutoff * torch.sinc(self.cutoff * distance) * window
        return filters * (distance.abs() < self.zeros)
