"""Discriminators: audio `[B, C, T]` to logits and feature maps, under one contract (`base.py`)."""

from codec.discriminators.base import Discriminator
from codec.discriminators.channels import PerChannel
from codec.discriminators.mdct import MultiResolutionMDCTDiscriminator
from codec.discriminators.multi import Discriminators
from codec.discriminators.period import MultiPeriodDiscriminator
from codec.discriminators.scale import MultiScaleDiscriminator
from codec.discriminators.spectrogram import SpectrogramDiscriminator
from codec.discriminators.stft import ComplexSTFTDiscriminator, MultiScaleSTFTDiscriminator

__all__ = [
    "ComplexSTFTDiscriminator",
    "Discriminator",
    "Discriminators",
    "MultiPeriodDiscriminator",
    "MultiResolutionMDCTDiscriminator",
    "MultiScaleDiscriminator",
    "MultiScaleSTFTDiscriminator",
    "PerChannel",
    "SpectrogramDiscriminator",
]
