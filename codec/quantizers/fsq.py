"""Finite scalar quantization (arXiv 2309.15505): every dimension is rounded to a few levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codec.quantizers.base import straight_through


class FSQCodebook(nn.Module):
    """The grid of `levels` as an implicit codebook of their product; nothing to learn but the projections.

    `vectors` and codes are a bijection computed in int64, exact for any product below 2^63.
    """

    straight_through = False

    levels: Tensor
    basis: Tensor

    def __init__(self, dim: int, levels: Sequence[int] = (8, 5, 5, 5)):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be at least 2 in every dimension, got {list(levels)}")
        if math.prod(levels) >= 2**63:
            raise ValueError(f"the product of levels must be below 2^63, got {list(levels)}")
        self.codebook_size = math.prod(levels)
        project = dim != len(levels)
        self.in_proj = nn.Linear(dim, len(levels)) if project else nn.Identity()
        self.out_proj = nn.Linear(len(levels), dim) if project else nn.Identity()
        basis = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("levels", torch.tensor(list(levels)), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def bound(self, projected: Tensor) -> Tensor:
        """Squash `[N, d]` so that rounding gives `level` different integers per dimension (§3, eq. 1)."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(projected + torch.atanh(offset / half)) * half - offset

    def to_codes(self, integers: Tensor) -> Tensor:
        """Mixed-radix number `[...]` of the rounded dimensions `[..., d]`."""
        return ((integers.long() + self.levels // 2) * self.basis).sum(-1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[N]` of inputs `[N, D]`."""
        return self.to_codes(self.bound(self.in_proj(inputs)).round())

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        integers = (codes[..., None] // self.basis) % self.levels - self.levels // 2
        return self.out_proj(integers / (self.levels // 2))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`; no losses."""
        bounded = self.bound(self.in_proj(inputs))
        integers = bounded.detach().round()
        vectors = straight_through(bounded, integers) / (self.levels // 2)
        return self.out_proj(vectors), self.to_codes(integers), {}
