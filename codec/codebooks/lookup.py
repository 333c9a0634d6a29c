"""Lookup of projected vectors with the gradients of their projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional

Estimator = Callable[[Tensor, Tensor], Tensor]


class Projected(Protocol):
    """Codebook with a projection from its vectors to latents."""

    out_proj: Any  # a Linear, possibly with weight norm

    def table(self) -> Tensor:
        """All vectors `[K, D]`, projected."""
        ...


class ProjectedLookup(torch.autograd.Function):
    """Rows `codes` of a projected table, with the gradients of `linear(inputs, weight, bias)`.

    The lookup makes `forward` bit-exact with `decode`; another projection would round differently.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor, codes: Tensor, table: Tensor) -> Tensor:
        """Look up `[N, D]`."""
        ctx.save_for_backward(inputs, weight)
        return functional.embedding(codes, table)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of inputs, weight and bias."""
        inputs, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ inputs, gradient.sum(0), None, None


def look_up(inputs: Tensor, codes: Tensor, codebook: Projected) -> Tensor:
    """Projected vectors `[N, D]` of codes `[N]`, with gradients to inputs `[N, d]` and projection."""
    projection = codebook.out_proj
    if torch.compiler.is_compiling():  # compiled code rounds differently in any case
        return projection(inputs)
    with torch.no_grad():
        table = codebook.table()
    return cast(Tensor, ProjectedLookup.apply(inputs, projection.weight, projection.bias, codes, table))
