"""DAC's factorised codebook (arXiv 2306.06546, §3.2): few dimensions, cosine lookup, learned by gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from codec.quantizers.base import straight_through


class FactorizedCodebook(nn.Module):
    """Projects `[N, D]` to `codebook_dim`, takes the code with the largest cosine, projects back.

    The losses compare the projections before normalisation, as DAC's release does.
    """

    # Gradients pass through the projections, stage by stage; nothing is copied around the cascade.
    straight_through = False

    def __init__(self, dim: int, codebook_size: int = 1024, codebook_dim: int = 8):
        super().__init__()
        if codebook_size < 2 or codebook_dim < 1:
            got = f"{codebook_size} and {codebook_dim}"
            raise ValueError(f"codebook_size must be at least 2 and codebook_dim at least 1, got {got}")
        self.codebook_size = codebook_size
        self.in_proj = weight_norm(nn.Linear(dim, codebook_dim))
        self.out_proj = weight_norm(nn.Linear(codebook_dim, dim))
        self.vectors = nn.Parameter(torch.randn(codebook_size, codebook_dim))

    def nearest(self, projected: Tensor) -> Tensor:
        """Code `[N]` with the largest cosine; the length of `projected` does not change which."""
        return (projected @ functional.normalize(self.vectors, dim=1).T).argmax(1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[N]` of inputs `[N, D]`."""
        return self.nearest(self.in_proj(inputs))

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        return self.out_proj(functional.embedding(codes, self.vectors))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, and commitment and codebook error per input `[N]`."""
        projected = self.in_proj(inputs)
        codes = self.nearest(projected.detach())
        vectors = functional.embedding(codes, self.vectors)
        errors = {
            "commitment": (projected - vectors.detach()).square().mean(1),
            "codebook": (vectors - projected.detach()).square().mean(1),
        }
        return self.out_proj(straight_through(projected, vectors)), codes, errors
