"""Discriminator on log-magnitude spectrograms with bins as channels, convolved by matrix products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codec.audio.spectrogram import magnitude, pad_reflect
from codec.discriminators.base import ConvStack, Discriminator, activated, check_windows

STRIDES = (2, 2, 1)


class SpectrogramDiscriminator(Discriminator):
    """Convolutions over the frames of spectrograms of audio `[B, C, T]` at several windows (samples).

    The inputs are those of UnivNet's discriminator, magnitudes at several resolutions (arXiv:2106.07889,
    §2.2), as logarithms. The architecture is from no paper: bins are channels, not a second spatial axis, so
    a few wide layers are enough and run at a CPU's full speed. Logits do not depend on phase. Magnitudes
    below `floor`, a level of white noise, stay linear, which bounds gradients. Hop = window / 4. Logits are
    `[B, 1, 1, frames / 4]`, rounded up.
    """

    def __init__(
        self,
        windows: Sequence[int] = (1024, 512, 256),
        channels: int = 256,
        slope: float = 0.2,
        floor: float = 0.01,
        audio_channels: int = 1,
    ):
        super().__init__()
        if floor <= 0:
            raise ValueError(f"floor must be positive, got {floor}")
        self.windows, self.floor = check_windows(windows), floor
        self.networks = nn.ModuleList(
            frame_stack(audio_channels * (window // 2 + 1), channels, slope) for window in windows
        )

    def inputs(self, audio: Tensor) -> Iterable[Tensor]:
        """Log magnitudes `[B, C * bins, 1, frames]` per window, channels last; silence is zero."""
        for window in self.windows:
            # Strided bf16 convolutions with one output per row are wrong on CPUs with AMX (pytorch#169688).
            longer = pad_reflect(audio, 0, max(0, window - audio.shape[-1]))
            levels = (magnitude(longer, window, normalized=True) / self.floor).log1p()
            yield levels.transpose(1, 2).flatten(2).transpose(1, 2).unsqueeze(2)


def frame_stack(in_channels: int, channels: int, slope: float) -> ConvStack:
    """Convolutions over three frames, the first two strided, and the head."""
    widths = [in_channels] + len(STRIDES) * [channels]

    def conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
        # Conv1d would transpose to channels first before each layer, which takes 15 % longer.
        return weight_norm(nn.Conv2d(in_channels, out_channels, (1, 3), (1, stride), (0, 1)))

    layers = [
        activated(conv(width, next_width, stride), slope)
        for (width, next_width), stride in zip(pairwise(widths), STRIDES, strict=True)
    ]
    return ConvStack(layers, conv(channels, 1))
