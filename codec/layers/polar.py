"""Inverse Fourier transform of magnitudes and phases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codec.layers.fourier import InverseSTFT
from codec.layers.streaming import NotStreamable, StreamingLayer

MOST_MAGNITUDE = 100.0


class PolarInverseSTFT(InverseSTFT):
    """Frames `[B, F, C * 2 * bins]` to audio `[B, C, F * hop]`: log magnitudes, then phase angles.

    The head of Vocos (arXiv 2306.00814, §3.3), with which WavTokenizer ends. Magnitudes are at most 100. The
    samples at both ends are divided by the sum of the squared windows that they have and do not fade.
    Centered, without a streaming form; ValueError for `causal`.
    """

    def __init__(self, channels: int, window: int, hop: int, causal: bool = False):
        super().__init__(channels, window, hop, causal)
        if causal:
            raise ValueError("a PolarInverseSTFT is centered: set causal=false, or take an InverseSTFT")
        self.hann: Tensor
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    @property
    def num_inputs(self) -> int:
        """Number of inputs per frame."""
        return 2 * self.channels * (len(self.window) // 2 + 1)

    def expand(self, x: Tensor) -> Tensor:
        """Real and imaginary parts `[B, F, C, 2, bins]` of frames `[B, F, C * 2 * bins]`."""
        level, phase = x.reshape(*x.shape[:2], self.channels, 2, len(self.window) // 2 + 1).unbind(3)
        magnitude = level.clamp(max=math.log(MOST_MAGNITUDE)).exp()
        return torch.stack([magnitude * phase.cos(), magnitude * phase.sin()], 3)

    def overlap_add(self, frames: Tensor) -> Tensor:
        """Audio `[B, C, F * hop]` of windowed frames `[B, F, C, window]`."""
        # 1 where all windows overlap, and the part of their energy that exists at the ends.
        energy = (self.window * self.hann).to(frames).expand(1, frames.shape[1], 1, -1)
        return super().overlap_add(frames) / super().overlap_add(energy)

    def stream(self) -> StreamingLayer:
        """Raise NotStreamable."""
        raise NotStreamable("a PolarInverseSTFT depends on the number of frames at its ends")
