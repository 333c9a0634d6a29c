"""Moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the parameters of `average` by `1 - decay` of the way to those of `model`; copy its buffers."""
    for slow, current in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(current, 1 - decay)
    for slow, current in zip(average.buffers(), model.buffers(), strict=True):
        slow.copy_(current)
