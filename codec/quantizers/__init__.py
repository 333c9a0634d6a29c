"""Bottlenecks: latents `[B, D, F]` to codes `[B, K, F]` or continuous frames, and back (`base.py`)."""

from codec.quantizers.base import Bottleneck, Quantized, Quantizer
from codec.quantizers.continuous import FixedSigma, Identity, Variational
from codec.quantizers.grouped import Grouped
from codec.quantizers.patches import Patches
from codec.quantizers.projected import Projected
from codec.quantizers.residual import Residual
from codec.quantizers.split import Split

__all__ = [
    "Bottleneck",
    "FixedSigma",
    "Grouped",
    "Identity",
    "Patches",
    "Projected",
    "Quantized",
    "Quantizer",
    "Residual",
    "Split",
    "Variational",
]
