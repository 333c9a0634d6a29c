"""Multi-period discriminator (MPD), HiFi-GAN arXiv:2010.05646 §2.3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codec.audio.spectrogram import pad_reflect
from codec.discriminators.base import ConvStack, Discriminator, activated


class MultiPeriodDiscriminator(Discriminator):
    """Folds audio `[B, C, T]` into rows of `period` samples and convolves along the columns.

    HiFi-GAN's discriminator (arXiv:2010.05646, §2.3). Logits and features are `[B, C', rows', period]`.
    8.22 M parameters per period with 1024 channels.
    """

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        audio_channels: int = 1,
    ):
        super().__init__()
        if not periods or min(periods) < 1:
            raise ValueError(
                f"periods must be positive numbers of samples, at least one, got {list(periods)}"
            )
        self.periods = tuple(periods)
        self.networks = nn.ModuleList(column_stack(audio_channels, channels) for _ in periods)

    def inputs(self, audio: Tensor) -> Iterable[Tensor]:
        """Audio `[B, C, rows, period]`, its end reflected to fill the last row."""
        for period in self.periods:
            yield pad_reflect(audio, 0, -audio.shape[-1] % period).unflatten(-1, (-1, period))


def column_stack(in_channels: int, channels: Sequence[int]) -> ConvStack:
    """Convolutions 5 x 1 of stride 3, the last of stride 1, and the head."""
    widths, last = [in_channels, *channels], len(channels) - 1
    layers = [
        activated(
            weight_norm(nn.Conv2d(width, next_width, (5, 1), (3 if i < last else 1, 1), (2, 0))), slope=0.1
        )
        for i, (width, next_width) in enumerate(pairwise(widths))
    ]
    return ConvStack(layers, weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))))
