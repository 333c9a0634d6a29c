"""Distances between spectrograms at several resolutions; all in fp32, channels compared one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codec.audio.spectrogram import mel
from codec.metrics.signal import FLOOR, MEL_BINS, MEL_WINDOWS, check_same_shape, mel_distance


class MultiScaleSpectralLoss(nn.Module):
    """SoundStream's reconstruction loss (arXiv:2107.03312), also EnCodec's frequency loss.

    Sum over windows s (samples; hop s / 4) of the L1 norm of the mel difference plus `log_weight` times the
    L2 norm of the log-mel difference, per frame. `log_weight=None` is SoundStream's alpha_s = sqrt(s / 2),
    the growth of noise in a plain STFT. EnCodec takes 1 and unit-energy windows (`normalized`), which keep
    the noise level. Mels are magnitudes on the HTK scale with unit peaks. Empty filters are left out, because
    their log would be constant.

    The paper sums over frames (`average_frames=False`). With the average, the weights 1 : 1 : 100 of the
    three losses do not depend on the length of the crop.
    """

    def __init__(
        self,
        sample_rate: int,
        windows: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        n_mels: int = 64,
        log_weight: float | None = None,
        normalized: bool = False,
        average_frames: bool = True,
    ):
        super().__init__()
        check_windows(windows)
        self.sample_rate, self.windows, self.n_mels = sample_rate, tuple(windows), n_mels
        self.log_weights = tuple(math.sqrt(s / 2) if log_weight is None else log_weight for s in windows)
        self.normalized, self.average_frames = normalized, average_frames

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Compare `[B, C, T]` with `[B, C, T]`; a scalar, averaged over examples and channels."""
        check_same_shape(estimate, target)
        total = estimate.new_zeros((), dtype=torch.float32)
        for window, log_weight in zip(self.windows, self.log_weights, strict=True):
            estimate_mel, target_mel = (
                mel(audio, self.sample_rate, window, self.n_mels, slaney=False, normalized=self.normalized)
                for audio in (estimate, target)
            )
            log_difference = estimate_mel.clamp(min=FLOOR).log() - target_mel.clamp(min=FLOOR).log()
            frames = (estimate_mel - target_mel).abs().sum(-1) + log_weight * torch.linalg.vector_norm(
                log_difference, dim=-1
            )
            total = total + (frames.mean() if self.average_frames else frames.sum(-1).mean())
        return total


class MultiScaleMelLoss(nn.Module):
    """DAC's mel loss (arXiv:2306.06546): L1 of log10 mels, few bins for short windows and many for long ones.

    Mean over the batch of `codec.metrics.signal.mel_distance`. No filter is empty at 16, 24 and 44.1 kHz.
    """

    def __init__(
        self, sample_rate: int, windows: Sequence[int] = MEL_WINDOWS, n_mels: Sequence[int] = MEL_BINS
    ):
        super().__init__()
        check_windows(windows)
        if len(windows) != len(n_mels):
            raise ValueError(
                f"n_mels has {len(n_mels)} entries for {len(windows)} windows: give one per window"
            )
        self.sample_rate, self.windows, self.n_mels = sample_rate, tuple(windows), tuple(n_mels)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Compare `[B, C, T]` with `[B, C, T]`; a scalar."""
        return mel_distance(estimate, target, self.sample_rate, self.windows, self.n_mels).mean()


def check_windows(windows: Sequence[int]) -> None:
    """Raise ValueError for an empty list or a window that is not a multiple of 4 samples."""
    if not windows or min(windows) < 4 or any(window % 4 for window in windows):
        raise ValueError(f"windows must be multiples of 4 samples, at least one, got {list(windows)}")
