"""Maps stay channels last, from the spectrum to their gradients: mixed layouts are slow."""

import pytest
import torch

from codec.discriminators.base import DiscriminatorOutput
from codec.discriminators.mdct import MultiResolutionMDCTDiscriminator
from codec.discriminators.spectrogram import SpectrogramDiscriminator
from codec.discriminators.stft import ComplexSTFTDiscriminator, MultiScaleSTFTDiscriminator
from codec.losses.adversarial import FeatureMatching


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda channels: MultiScaleSTFTDiscriminator([64, 32], channels=4, audio_channels=channels),
        lambda channels: ComplexSTFTDiscriminator(128, channels=4, audio_channels=channels),
        lambda channels: MultiResolutionMDCTDiscriminator([128, 64], channels=4, audio_channels=channels),
        lambda channels: SpectrogramDiscriminator([128, 64], channels=4, audio_channels=channels),
    ],
)
def test_maps_of_spectral_discriminators_are_channels_last(make, channels):
    judged = make(channels)(torch.randn(2, channels, 512))
    assert all(is_channels_last(feature) for one in judged for feature in one.features)


@pytest.mark.parametrize("relative", [False, True])
def test_gradients_of_feature_matching_have_the_layout_of_the_maps(relative):
    plain = torch.randn(2, 3, 4, 5)
    for layout in (torch.channels_last, torch.contiguous_format):
        fake = plain.to(memory_format=layout).requires_grad_()
        real = torch.randn_like(fake)
        loss = FeatureMatching(relative=relative)(
            [DiscriminatorOutput(real, [real])], [DiscriminatorOutput(fake, [fake])]
        )
        (gradient,) = torch.autograd.grad(loss, fake)
        assert gradient.stride() == fake.stride()
