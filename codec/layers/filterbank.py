"""Log-mel energies, the input of w2v-BERT 2.0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-7  # of variances, in the feature extractors of `transformers`


class Filterbank:
    """Input of w2v-BERT 2.0: Kaldi's log-mel energies, normalized, `stride` frames of 10 ms in one.

    `extractor` is a `SeamlessM4TFeatureExtractor`. `margins` are the zeros before and after the audio, by
    default those that center each window on its hop.
    """

    step = reach = 1  # of its own frames
    LENGTH, HOP, TRANSFORM, PREEMPHASIS, FLOOR = 400, 160, 512, 0.97, 1.1920929e-07

    def __init__(self, extractor: Any, margins: tuple[int, int] = (120, 120)):
        self.stride, self.hop_length = extractor.stride, extractor.stride * self.HOP
        self.margins = margins
        self.window, self.filters = (
            torch.as_tensor(part, dtype=torch.float32) for part in (extractor.window, extractor.mel_filters)
        )

    def __call__(self, audio: Tensor) -> Tensor:
        """Input `[B, T / hop_length, D]` for audio `[B, T]`."""
        padded = functional.pad(audio * 2**15, self.margins)
        frames = padded.unfold(1, self.LENGTH, self.HOP)
        frames = frames - frames.mean(2, keepdim=True)
        frames = frames - self.PREEMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], 2)
        power = torch.fft.rfft(frames * self.window.to(audio.device), self.TRANSFORM).abs().square()
        energies = (power @ self.filters.to(audio.device)).clamp(min=self.FLOOR).log()
        variance, mean = torch.var_mean(energies, 1, keepdim=True)
        return ((energies - mean) / (variance + TINY).sqrt()).unflatten(1, (-1, self.stride)).flatten(2)
