"""Layers of encoders and decoders, each with its context, streaming form and form for exported graphs."""

from codec.layers.base import Layer
from codec.layers.conv import Layers
from codec.layers.convnext import ConvNeXtBlock
from codec.layers.film import FiLM, Unconditioned
from codec.layers.polar import PolarInverseSTFT
from codec.layers.position import PositionNet
from codec.layers.recurrent import LSTM
from codec.layers.reflection import ReflectedLayers
from codec.layers.transformer import Transformer

__all__ = [
    "LSTM",
    "ConvNeXtBlock",
    "FiLM",
    "Layer",
    "Layers",
    "PolarInverseSTFT",
    "PositionNet",
    "ReflectedLayers",
    "Transformer",
    "Unconditioned",
]
