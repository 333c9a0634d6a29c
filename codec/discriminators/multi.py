"""Several discriminators as one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from codec.discriminators.base import Discriminator, DiscriminatorOutput

PEAK = 0.8
QUIETEST_PEAK = 1e-4  # -80 dBFS; DAC divides silence by 1e-9, which scales its gradient by 8e8


class Discriminators(Discriminator):
    """Joins discriminators of audio `[B, C, T]`: the list of all their outputs, empty without any.

    `normalize` removes the DC of every channel and scales each example to a peak of 0.8, as in DAC's release
    (arXiv:2306.06546), so that the logits do not depend on loudness.
    """

    def __init__(self, discriminators: Sequence[nn.Module], normalize: bool = False):
        super().__init__()
        self.networks = nn.ModuleList(discriminators)
        self.normalize = normalize

    def forward(self, audio: Tensor) -> list[DiscriminatorOutput]:
        """Outputs of all discriminators on audio `[B, C, T]`."""
        if self.normalize:
            audio = normalize_peak(audio.float())
        return [output for discriminator in self.networks for output in discriminator(audio)]


def normalize_peak(audio: Tensor) -> Tensor:
    """Audio `[B, C, T]` without DC and with a peak of 0.8 over all channels of an example."""
    audio = audio - audio.mean(dim=-1, keepdim=True)
    return PEAK * audio / audio.abs().amax(dim=(1, 2), keepdim=True).clamp(min=QUIETEST_PEAK)
