"""Quantizers: latents `[B, D, F]` to codes `[B, K, F]` and back, under one contract (`base.py`)."""

from codec.quantizers.base import Quantized, Quantizer
from codec.quantizers.continuous import Identity, Variational
from codec.quantizers.grouped import Grouped
from codec.quantizers.patches import Patches
from codec.quantizers.projected import Projected
from codec.quantizers.residual import Residual
from codec.quantizers.split import Split

__all__ = [
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
