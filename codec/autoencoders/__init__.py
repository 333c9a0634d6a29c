"""Encoder–decoder pairs: audio `[B, C, T]` to latents `[B, D, F]` and back."""

from codec.autoencoders.base import Autoencoder
from codec.autoencoders.halves import Halves
from codec.autoencoders.seanet import ResidualUnits, SEANet
from codec.autoencoders.vibevoice import VibeVoice
from codec.autoencoders.vocos import Vocos
from codec.autoencoders.xcodec import Xcodec
from codec.autoencoders.xcodec2 import Xcodec2

__all__ = [
    "Autoencoder",
    "Halves",
    "ResidualUnits",
    "SEANet",
    "VibeVoice",
    "Vocos",
    "Xcodec",
    "Xcodec2",
]
