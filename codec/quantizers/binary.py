"""One bit per dimension: lookup-free (LFQ) and binary spherical (BSQ) quantization."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.distributed import all_reduce_with_gradient
from codec.quantizers.estimators import straight_through


class LFQCodebook(nn.Module):
    """The signs of `codebook_bits` projected dimensions, 2^bits implicit codes (MAGVIT-v2, arXiv 2310.05737).

    The entropy loss wants each frame sure of its bits and all frames together to use both values of each.
    It is computed bit by bit (BSQ, arXiv 2406.07548, eq. 10 to 12), exact for the first part and an upper
    bound for the second, in N x bits numbers instead of N x 2^bits.
    """

    straight_through_cascade = False

    basis: Tensor

    def __init__(
        self,
        dim: int,
        codebook_bits: int = 10,
        inverse_temperature: float = 10.0,
        diversity: float = 1.0,
        estimator: Callable[[Tensor, Tensor], Tensor] = straight_through,
    ):
        super().__init__()
        if not 1 <= codebook_bits <= 62:
            raise ValueError(f"codebook_bits must be 1 to 62, got {codebook_bits}")
        if inverse_temperature <= 0:
            raise ValueError(f"inverse_temperature must be positive, got {inverse_temperature}")
        self.codebook_size = 2**codebook_bits
        self.inverse_temperature, self.diversity = inverse_temperature, diversity
        self.estimator = estimator
        self.size = 1.0  # of each dimension of a code's vector
        self.in_proj = nn.Linear(dim, codebook_bits)
        self.out_proj = nn.Linear(codebook_bits, dim)
        self.register_buffer("basis", 2 ** torch.arange(codebook_bits), persistent=False)

    def embed(self, inputs: Tensor) -> Tensor:
        """What is compared with the codes, `[N, bits]`."""
        return self.in_proj(inputs)

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[N]` of inputs `[N, D]`: bit j is 1 where dimension j is positive."""
        return ((self.embed(inputs) > 0) * self.basis).sum(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        bits = (codes[..., None] // self.basis) % 2
        return self.out_proj((2.0 * bits - 1) * self.size)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, commitment per input `[N]` and the entropy loss of all."""
        embedded = self.embed(inputs)
        signs = torch.where(embedded.detach() > 0, self.size, -self.size)
        losses = {
            "commitment": (embedded - signs).square().mean(1),
            "entropy": self.entropy_loss(embedded, used),
        }
        return self.out_proj(self.estimator(embedded, signs)), ((signs > 0) * self.basis).sum(-1), losses

    def entropy_loss(self, embedded: Tensor, used: Tensor) -> Tensor:
        """Mean bit entropy of the frames plus `diversity` times what the mean bit's lacks, in nats per bit.

        softmax(-inverse_temperature * distance²) over the two values of a bit is a sigmoid of 4 t x.
        """
        logits = 4 * self.inverse_temperature * self.size * embedded
        probability = torch.sigmoid(logits)
        count = used.sum().to(embedded.dtype)
        each = ((functional.softplus(logits) - logits * probability).mean(1) * used).sum() / count.clamp(
            min=1
        )
        total = torch.cat([torch.where(used[:, None], probability, 0.0).sum(0), count[None]])
        if self.training:
            total = all_reduce_with_gradient(total)
        mean = (total[:-1] / total[-1].clamp(min=1)).clamp(1e-6, 1 - 1e-6)
        entropy = -(mean * mean.log() + (1 - mean) * (1 - mean).log())
        return each + self.diversity * (math.log(2) - entropy.mean())


class BSQCodebook(LFQCodebook):
    """Signs of a projection on the unit sphere, ±1/√bits each: the error is bounded (arXiv 2406.07548)."""

    def __init__(
        self,
        dim: int,
        codebook_bits: int = 10,
        inverse_temperature: float = 10.0,
        diversity: float = 1.0,
        estimator: Callable[[Tensor, Tensor], Tensor] = straight_through,
    ):
        super().__init__(dim, codebook_bits, inverse_temperature, diversity, estimator)
        self.size = codebook_bits**-0.5

    def embed(self, inputs: Tensor) -> Tensor:
        """The projected inputs `[N, bits]`, of length 1."""
        return functional.normalize(self.in_proj(inputs), dim=1)
