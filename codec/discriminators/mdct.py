"""Multi-resolution MDCT discriminator (MR-MDCTD) of MDCTCodec, arXiv:2411.00464."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codec.audio.spectrogram import mdct, pad_reflect
from codec.discriminators.base import ConvStack, Discriminator, activated, check_windows

KERNELS = ((5, 7), (3, 5), (3, 5), (3, 3), (3, 3))  # over frames and bins
STRIDES = ((2, 2), (1, 2), (2, 2), (1, 2), (2, 2))


class MultiResolutionMDCTDiscriminator(Discriminator):
    """Strided 2-D convolutions on the MDCT of audio `[B, C, T]` at several windows (samples).

    MDCTCodec uses real, signed spectra at three resolutions, one sub-discriminator each. Layers, 64 channels,
    slope, weight norm, sine window and scale are those of its authors' release for 16 kHz (CFMDCTCodec,
    arXiv:2605.26812). Vocos has the same layers on magnitudes (arXiv:2306.00814). This implementation adds
    several audio channels, reflected ends and no stride at two bins or fewer. It also adds `floor`, a level
    of white noise: coefficients above it are compressed to signed logarithms; None keeps them linear, as
    published. 0.200 M parameters per window with 64 channels. Logits are `[B, 1, frames / 8, bins / 32]`,
    rounded up.
    """

    def __init__(
        self,
        windows: Sequence[int] = (400, 100, 40),
        channels: int = 64,
        slope: float = 0.1,
        floor: float | None = None,
        audio_channels: int = 1,
    ):
        super().__init__()
        if floor is not None and floor <= 0:
            raise ValueError(f"floor must be positive, or null for linear coefficients, got {floor}")
        self.windows, self.floor = check_windows(windows), floor
        self.networks = nn.ModuleList(
            mdct_stack(audio_channels, window // 2, channels, slope) for window in windows
        )

    def inputs(self, audio: Tensor) -> Iterable[Tensor]:
        """MDCT `[B, C, frames, bins]` per window: window / 2 bins, `T / bins` frames, rounded up."""
        for window in self.windows:
            hop = window // 2
            missing = -audio.shape[-1] % hop
            spectrum = mdct(pad_reflect(audio, hop // 2, hop // 2 + missing), window)
            if self.floor is not None:
                spectrum = (spectrum / self.floor).asinh()
            # `contiguous` would not change one channel, which convolutions then treat as channels first.
            yield spectrum.clone(memory_format=torch.channels_last)


def mdct_stack(in_channels: int, bins: int, channels: int, slope: float) -> ConvStack:
    """Five strided convolutions and the head."""
    layers = []
    for kernel, (time_stride, stride) in zip(KERNELS, STRIDES, strict=True):
        # Strided bf16 convolutions with one output per row are wrong on CPUs with AMX (pytorch#169688).
        stride = stride if bins > 2 else 1
        bins = -(-bins // stride)
        padding = kernel[0] // 2, kernel[1] // 2
        conv = nn.Conv2d(in_channels, channels, kernel, (time_stride, stride), padding)
        layers.append(activated(weight_norm(conv), slope))
        in_channels = channels
    return ConvStack(layers, weight_norm(nn.Conv2d(channels, 1, 3, padding=1)))
