"""Discriminators on the complex STFT: SoundStream's residual, EnCodec's multi-scale, DAC's multi-band one.

Inputs are `[B, 2 * C, frames, bins]`: the real and imaginary part of each audio channel, hop = window / 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codec.audio.spectrogram import pad_reflect, stft
from codec.discriminators.base import ConvStack, Discriminator, DiscriminatorOutput, activated, check_windows

Norm = Literal["none", "weight", "layer"]
SLOPE = 0.2


def spectrum(audio: Tensor, window: int, normalized: bool, frames_multiple: int = 1) -> Tensor:
    """Real spectrogram `[B, 2 * C, frames, window // 2 + 1]` of the STFT of audio `[B, C, T]`.

    `frames = T / hop`, rounded up to `frames_multiple`. Each frame is centered on its hop; the ends are
    reflected.
    """
    hop = window // 4
    missing = -audio.shape[-1] % (hop * frames_multiple)
    overlap = (window - hop) // 2
    audio = pad_reflect(audio, overlap, overlap + missing)
    parts = torch.view_as_real(stft(audio, window, hop, normalized)).movedim(-1, 2).flatten(1, 2)
    # Convolutions of few channels are up to twice as fast with channels last, the layout of mono anyway.
    return parts.contiguous(memory_format=torch.channels_last)


class MultiScaleSTFTDiscriminator(Discriminator):
    """Small 2-D convolutions on STFTs of audio `[B, C, T]` at several windows (samples), separate per band.

    EnCodec (arXiv:2210.13438): one band, time dilations 1, 2, 4, unit-energy windows; 0.472 M parameters
    with five windows. The paper prints kernels 3 x 8; its release and its parameter count have 3 x 9.
    DAC (arXiv:2306.06546): five bands, no dilation, plain STFT; 0.471 M parameters per window.
    `bands` are edges as shares of the Nyquist frequency. Logits are `[B, 1, frames, bins / 8]`.
    """

    def __init__(
        self,
        windows: Sequence[int] = (2048, 1024, 512, 256, 128),
        bands: Sequence[float] = (0.0, 1.0),
        dilations: Sequence[int] = (1, 2, 4),
        channels: int = 32,
        slope: float = 0.2,
        normalized: bool = True,
        audio_channels: int = 1,
    ):
        super().__init__()
        if (
            len(bands) < 2
            or any(low >= high for low, high in pairwise(bands))
            or bands[0] < 0
            or bands[-1] > 1
        ):
            raise ValueError(f"bands must be rising edges within 0..1, as 0, 0.5, 1; got {list(bands)}")
        self.windows, self.normalized = check_windows(windows), normalized
        self.networks = nn.ModuleList(
            BandStack(
                [int(edge * (window // 2 + 1)) for edge in bands], audio_channels, channels, dilations, slope
            )
            for window in windows
        )

    def inputs(self, audio: Tensor) -> Iterable[Tensor]:
        """One spectrum per window."""
        return (spectrum(audio, window, self.normalized) for window in self.windows)


class BandStack(nn.Module):
    """Separate layers for each band of bins, and one head over the concatenated bands."""

    def __init__(
        self, edges: Sequence[int], audio_channels: int, channels: int, dilations: Sequence[int], slope: float
    ):
        super().__init__()
        if any(low == high for low, high in pairwise(edges)):
            raise ValueError(f"a band holds no bin (edges {list(edges)}): use wider bands or a longer window")
        self.edges = tuple(edges)
        self.bands = nn.ModuleList(
            ConvStack(band_layers(2 * audio_channels, channels, dilations, slope), nn.Identity())
            for _ in edges[1:]
        )
        self.head = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, spectrogram: Tensor) -> DiscriminatorOutput:
        """Logits and feature maps of a spectrum `[B, 2 * C, frames, bins]`."""
        slices = (spectrogram[..., low:high] for low, high in pairwise(self.edges))
        outputs = [band(part) for band, part in zip(self.bands, slices, strict=True)]
        features = [feature for band in outputs for feature in band.features]
        return DiscriminatorOutput(self.head(torch.cat([band.logits for band in outputs], dim=-1)), features)


def band_layers(in_channels: int, channels: int, dilations: Sequence[int], slope: float) -> list[nn.Module]:
    """One 3 x 9 convolution, one of frequency stride 2 per time dilation, and one 3 x 3."""
    convs = [nn.Conv2d(in_channels, channels, (3, 9), padding=(1, 4))]
    for dilation in dilations:
        convs.append(nn.Conv2d(channels, channels, (3, 9), (1, 2), (dilation, 4), (dilation, 1)))
    convs.append(nn.Conv2d(channels, channels, 3, padding=1))
    return [activated(weight_norm(conv), slope) for conv in convs]


class ComplexSTFTDiscriminator(Discriminator):
    """SoundStream's STFT discriminator (arXiv:2107.03312): residual blocks on one STFT of audio `[B, C, T]`.

    Six blocks with strides (1, 2), (2, 2), ... reduce `[T / hop, window / 2]` to `[T / (8 * hop), 8]`. The
    head joins the 8 bins: logits are `[B, 1, T / (8 * hop), 1]`. 5.55 M parameters with 32 channels.
    `norm` is "none" as printed, "weight", or "layer", which EnCodec's authors needed for stability
    (arXiv:2210.13438, A.1). The activation, which the paper omits, is the leaky ReLU of its waveform
    discriminators.
    """

    def __init__(self, window: int = 1024, channels: int = 32, norm: Norm = "none", audio_channels: int = 1):
        super().__init__()
        if window < 128 or window % 128:
            raise ValueError(
                f"window must be a multiple of 128 samples, so that six halvings fit, got {window}"
            )
        if norm not in ("none", "weight", "layer"):
            raise ValueError(f"norm must be none, weight or layer, got {norm!r}")
        self.window = window
        widths = [channels * factor for factor in (1, 2, 4, 4, 8, 8, 16)]
        first = normed(nn.Conv2d(2 * audio_channels, channels, 7, padding=3), norm)
        blocks = [
            ResidualBlock(width, next_width, 1 + i % 2, norm)
            for i, (width, next_width) in enumerate(pairwise(widths))
        ]
        head = nn.Conv2d(widths[-1], 1, (1, window // 128))
        head = weight_norm(head) if norm == "weight" else head
        self.networks = nn.ModuleList([ConvStack([activated(first, SLOPE), *blocks], head)])

    def inputs(self, audio: Tensor) -> Iterable[Tensor]:
        """Spectrum without its Nyquist bin, the paper's F = W / 2, which every stride divides."""
        yield spectrum(audio, self.window, normalized=True, frames_multiple=8)[..., :-1]


class ResidualBlock(nn.Module):
    """Convolutions 3 x 3 and (time_stride + 2) x 4 with a strided 1 x 1 shortcut; halves the bins."""

    def __init__(self, channels: int, out_channels: int, time_stride: int, norm: Norm):
        super().__init__()
        stride = (time_stride, 2)
        self.body = nn.Sequential(
            activated(normed(nn.Conv2d(channels, channels, 3, padding=1), norm), SLOPE),
            normed(nn.Conv2d(channels, out_channels, (time_stride + 2, 4), stride, padding=1), norm),
        )
        self.shortcut = normed(nn.Conv2d(channels, out_channels, 1, stride), norm)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, C, frames, bins]` to `[B, C', frames / time_stride, bins / 2]`."""
        return self.activation(self.body(features) + self.shortcut(features))


def normed(conv: nn.Conv2d, norm: Norm) -> nn.Module:
    """Convolution with weight normalization, with layer normalization of its output, or unchanged."""
    if norm == "layer":  # over channels, frames and bins of an example
        return nn.Sequential(conv, nn.GroupNorm(1, conv.out_channels))
    return weight_norm(conv) if norm == "weight" else conv
