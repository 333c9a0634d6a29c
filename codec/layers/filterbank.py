"""Log-mel energies, the inputs of w2v-BERT 2.0 and Whisper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-7  # of variances, in the feature extractors of `transformers`
BLOCK, CONTEXT = 1000, 250  # frames of a long signal at a time, and those before and after it


class Filterbank:
    """Input of w2v-BERT 2.0: Kaldi's log-mel energies, normalized, `stride` frames of 10 ms in one.

    `extractor` is a `SeamlessM4TFeatureExtractor`. `margins` are the zeros before and after the audio, by
    default those that center each window on its hop.
    """

    step = reach = 1  # of its own frames
    block, context = BLOCK, CONTEXT
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


class WindowedFilterbank:
    """Input of Whisper (arXiv 2212.04356, section 2.2): log-mel energies of windows of 30 s.

    `extractor` is a `WhisperFeatureExtractor`. The last window is filled with zeros, and energies are raised
    to 80 dB below the largest of their window.
    """

    step = reach = 2  # of its own frames
    context = 0

    def __init__(self, extractor: Any):
        self.samples, self.transform, self.hop = extractor.n_samples, extractor.n_fft, extractor.hop_length
        self.hop_length = self.step * self.hop
        self.block = self.samples // self.hop_length
        self.filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32)

    def __call__(self, audio: Tensor) -> Tensor:
        """Input `[B, F, D]` for audio `[B, T]`, F a multiple of the frames in a window."""
        windows = functional.pad(audio, (0, -audio.shape[1] % self.samples)).unflatten(1, (-1, self.samples))
        weight = torch.hann_window(self.transform, device=audio.device)
        spectrum = torch.stft(
            windows.flatten(0, 1), self.transform, self.hop, window=weight, return_complex=True
        )
        power = spectrum[..., :-1].abs().square().mT
        energies = (power @ self.filters.to(audio.device)).clamp(min=1e-10).log10()
        energies = energies.maximum(energies.amax((1, 2), keepdim=True) - 8.0)
        return ((energies + 4.0) / 4.0).unflatten(0, windows.shape[:2]).flatten(1, 2)
