"""LSTMs of EnCodec in configs and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codec.config import PARTIAL, TARGET, locate
from codec.huggingface.foreign import arguments
from codec.layers.recurrent import LSTM


def lstm_node(num_layers: int) -> dict[str, Any] | None:
    """Config of a bottleneck of `num_layers` recurrent layers."""
    return {TARGET: "codec.layers.LSTM", PARTIAL: True, "num_layers": num_layers} if num_layers else None


def num_lstm_layers(net: Mapping[str, Any]) -> int | None:
    """Number of recurrent layers, 0 without a bottleneck; None for another bottleneck than an LSTM."""
    node = net["bottleneck"]
    if node is None:
        return 0
    return arguments(node, LSTM)["num_layers"] if locate(node[TARGET]) is LSTM else None


def idle_lstm(prefix: str, channels: int) -> dict[str, Tensor]:
    """LSTM of zeros, the identity with its skip connection; `EncodecModel` requires an LSTM."""
    shapes = {"weight_ih_l0": (4 * channels, channels), "weight_hh_l0": (4 * channels, channels)}
    shapes |= {"bias_ih_l0": (4 * channels,), "bias_hh_l0": (4 * channels,)}
    return {f"{prefix}.{name}": torch.zeros(shape) for name, shape in shapes.items()}
