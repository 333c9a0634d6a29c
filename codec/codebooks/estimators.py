"""Gradient estimators of quantization: each returns exactly `quantized`, with a gradient to `inputs`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def straight_through(inputs: Tensor, quantized: Tensor) -> Tensor:
    """Exactly `quantized` `[N, D]`, with the gradient of `inputs` `[N, D]` (arXiv 1308.3432)."""
    # inputs - inputs.detach() is exactly 0; the usual inputs + (q - inputs).detach() rounds.
    return quantized.detach() + (inputs - inputs.detach()) if inputs.requires_grad else quantized


def rotation_trick(inputs: Tensor, quantized: Tensor, max_scale: float = 2.0) -> Tensor:
    """Exactly `quantized`, with a gradient rotated and scaled like `inputs` to it (arXiv 2410.06424, §4).

    Shapes are `[N, D]`. The scale |q| / |x| is unbounded for inputs near zero (542 at 60 dB below the
    codebook), so `max_scale` limits it. ValueError unless `max_scale` is positive.
    """
    if not max_scale > 0:
        raise ValueError(f"max_scale must be positive, got {max_scale}")
    if not inputs.requires_grad:
        return quantized
    x, q = inputs.detach(), quantized.detach()
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12)
    scale = (torch.linalg.vector_norm(q, dim=1, keepdim=True) / length).clamp(max=max_scale)
    start, end = x / length, functional.normalize(q, dim=1)
    # Opposite directions have no middle and get the straight-through gradient.
    middle = start + end
    opposite = torch.linalg.vector_norm(middle, dim=1, keepdim=True) < 1e-3
    middle = functional.normalize(middle, dim=1)

    def along(direction: Tensor) -> Tensor:
        return (inputs * direction).sum(1, keepdim=True)

    rotated = scale * (inputs - 2 * along(middle) * middle + 2 * along(start) * end)
    surrogate = torch.where(opposite, inputs, rotated)
    return q + (surrogate - surrogate.detach())
