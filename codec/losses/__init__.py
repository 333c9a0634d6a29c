"""Losses: reconstruction, adversarial, and how they are weighed (`objective.py`)."""

from codec.losses.adversarial import FeatureMatching, Hinge, LeastSquares
from codec.losses.balancer import Balancer
from codec.losses.base import Forward, Loss, Teacher
from codec.losses.distillation import Distillation
from codec.losses.objective import Objective
from codec.losses.perceptual import PESQLoss
from codec.losses.resolutions import MultiResolutionLoss
from codec.losses.spectral import MultiScaleMelLoss, MultiScaleSpectralLoss
from codec.losses.stereo import MidSide
from codec.losses.waveform import WaveformL1

__all__ = [
    "Balancer",
    "Distillation",
    "FeatureMatching",
    "Forward",
    "Hinge",
    "LeastSquares",
    "Loss",
    "MidSide",
    "MultiResolutionLoss",
    "MultiScaleMelLoss",
    "MultiScaleSpectralLoss",
    "Objective",
    "PESQLoss",
    "Teacher",
    "WaveformL1",
]
