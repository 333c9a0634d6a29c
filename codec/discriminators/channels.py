"""One discriminator for each channel by itself."""

from __future__ import annotations

from torch import Tensor, nn

from codec.discriminators.base import Discriminator, DiscriminatorOutput


class PerChannel(Discriminator):
    """Judges every channel of audio `[B, C, T]` by one discriminator of mono audio.

    Logits and feature maps are `[B, C, ...]`, with the rest of their shape behind the channels. EnCodec
    (arXiv 2210.13438, section 3.4) judges stereo this way: no channel masks the artifacts of the other.
    """

    def __init__(self, discriminator: Discriminator):
        super().__init__()
        self.networks = nn.ModuleList([discriminator])

    def forward(self, audio: Tensor) -> list[DiscriminatorOutput]:
        """Outputs of each channel."""
        split = audio.shape[:2]
        return [
            DiscriminatorOutput(
                logits.unflatten(0, split), [feature.unflatten(0, split) for feature in features]
            )
            for logits, features in self.networks[0](audio.flatten(0, 1).unsqueeze(1))
        ]
