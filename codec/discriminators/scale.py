"""Multi-scale waveform discriminator (MSD) of MelGAN, arXiv:1910.06711, used unchanged by SoundStream."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm as apply_weight_norm

from codec.discriminators.base import ConvStack, Discriminator, activated


class MultiScaleDiscriminator(Discriminator):
    """Grouped strided convolutions on audio `[B, C, T]` at the rates 1, 1/2, 1/4, ... (arXiv:1910.06711).

    Logits are `[B, 1, T / (2**scale * 256)]`. 5.638 M parameters per scale, plus 3409 weight-norm scales.
    """

    def __init__(self, scales: int = 3, audio_channels: int = 1, weight_norm: bool = True):
        super().__init__()
        if scales < 1:
            raise ValueError(f"scales must be at least 1, got {scales}")
        self.networks = nn.ModuleList(waveform_stack(audio_channels, weight_norm) for _ in range(scales))

    def inputs(self, audio: Tensor) -> Iterable[Tensor]:
        """Audio `[B, C, T]` at the full rate, then repeatedly halved by average pooling."""
        # Each pooling needs at least two samples.
        audio = functional.pad(audio, (0, max(0, 2 ** (len(self.networks) - 1) - audio.shape[-1])))
        yield audio
        for _ in self.networks[1:]:
            audio = functional.avg_pool1d(audio, 4, 2, padding=1, count_include_pad=False)
            yield audio


def waveform_stack(in_channels: int, weight_norm: bool) -> ConvStack:
    """MelGAN's layers: k15, four grouped k41 of stride 4 (four input channels per group), k5, head k3."""

    def conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
        layer = nn.Conv1d(before, after, kernel, stride, kernel // 2, groups=groups)
        return apply_weight_norm(layer) if weight_norm else layer

    convs = [
        conv(in_channels, 16, 15),
        conv(16, 64, 41, stride=4, groups=4),
        conv(64, 256, 41, stride=4, groups=16),
        conv(256, 1024, 41, stride=4, groups=64),
        conv(1024, 1024, 41, stride=4, groups=256),
        conv(1024, 1024, 5),
    ]
    return ConvStack([activated(layer, slope=0.2) for layer in convs], conv(1024, 1, 3))
