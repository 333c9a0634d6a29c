"""Loss of the sum and the difference of two channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from codec.config import ConfigError
from codec.metrics.signal import check_same_shape


class MidSide(nn.Module):
    """Applies a loss to mid and side, (L + R) / sqrt(2) and (L - R) / sqrt(2), instead of left and right.

    The stereo loss of Steinmetz et al. 2020 (arXiv 2010.10291): width and position of a source are in the
    side signal, which is faint beside the mid. Raises ConfigError unless `channels` is 2, and ValueError for
    audio without two channels.
    """

    def __init__(self, loss: nn.Module, channels: int = 2):
        super().__init__()
        if channels != 2:
            raise ConfigError(f"mid and side are of two channels, not {channels}: set channels=2")
        self.loss = loss

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Compare `[B, 2, T]` with `[B, 2, T]`; a scalar."""
        check_same_shape(estimate, target)
        if estimate.shape[1] != 2:
            raise ValueError(f"mid and side are of two channels, not {estimate.shape[1]}: set channels=2")
        return self.loss(mid_side(estimate), mid_side(target))


def mid_side(audio: Tensor) -> Tensor:
    """Orthonormal sum and difference of audio `[B, 2, T]`."""
    left, right = audio.unbind(1)
    return torch.stack([left + right, left - right], dim=1) / math.sqrt(2)
