"""Codebooks, the stages of quantizers, and the tools they share."""

from codec.codebooks.base import Codebook
from codec.codebooks.ema import CosineCodebook, EMACodebook
from codec.codebooks.estimators import rotation_trick
from codec.codebooks.factorized import FactorizedCodebook, ProjectedCodebook
from codec.codebooks.fsq import FSQCodebook, ScaledFSQCodebook
from codec.codebooks.gradient import GradientCodebook, SimVQCodebook
from codec.codebooks.gumbel import GumbelCodebook
from codec.codebooks.lfq import BSQCodebook, LFQCodebook
from codec.codebooks.qinco import QINCoCodebook
from codec.codebooks.random_projection import RandomProjectionCodebook
from codec.codebooks.regularized import RegularizedCodebook

__all__ = [
    "BSQCodebook",
    "Codebook",
    "CosineCodebook",
    "EMACodebook",
    "FSQCodebook",
    "FactorizedCodebook",
    "GradientCodebook",
    "GumbelCodebook",
    "LFQCodebook",
    "ProjectedCodebook",
    "QINCoCodebook",
    "RandomProjectionCodebook",
    "RegularizedCodebook",
    "ScaledFSQCodebook",
    "SimVQCodebook",
    "rotation_trick",
]
