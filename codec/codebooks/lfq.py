"""One bit per dimension: lookup-free (LFQ) and binary spherical (BSQ) quantization."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.codebooks.base import Codebook
from codec.codebooks.estimators import straight_through
from codec.codebooks.normalization import Standardize, regression, whitening_projection
from codec.system.distributed import all_reduce_with_gradient


class LFQCodebook(Codebook):
    """Signs of `codebook_bits` projections of inputs `[N, D]`, 2^bits implicit codes (LFQ, arXiv 2310.05737).

    The entropy loss is the mean entropy of the codes of single frames minus `diversity` times the entropy of
    their mean, as in MAGVIT-v2. It is computed in groups of at most ten bits (BSQ, arXiv 2406.07548, eq. 10
    to 12): exact for the first entropy and an upper bound for the second, in N x 2^10 values instead of
    N x 2^bits. Groups of one bit would not penalize correlated bits. The initial projections give
    uncorrelated bits.
    """

    LARGEST = 10  # bits per group

    straight_through_cascade = False

    pool_frames = 8192

    basis: Tensor

    def __init__(
        self,
        dim: int,
        codebook_bits: int = 10,
        inverse_temperature: float = 1.0,
        diversity: float = 1.0,
        estimator: Callable[[Tensor, Tensor], Tensor] = straight_through,
    ):
        super().__init__()
        if not 1 <= codebook_bits <= 62:
            raise ValueError(f"codebook_bits must be 1 to 62, got {codebook_bits}")
        if not inverse_temperature > 0 or not diversity >= 0:
            values = f"{inverse_temperature} and {diversity}"
            raise ValueError(f"inverse_temperature must be positive and diversity at least 0, got {values}")
        self.codebook_size = 2**codebook_bits
        self.inverse_temperature, self.diversity = inverse_temperature, diversity
        self.estimator = estimator
        self.size = 1.0  # absolute value in each dimension of a code's vector
        self.in_proj = nn.Linear(dim, codebook_bits)
        self.out_proj = nn.Linear(codebook_bits, dim)
        self.standardize = Standardize(dim)
        self.register_buffer("basis", 2 ** torch.arange(codebook_bits), persistent=False)
        self.register_buffer("initialised", torch.tensor(False))

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Fit the projections to a pool `[N, D]`: balanced, uncorrelated bits and least-squares vectors."""
        self.standardize.fit(pool)
        standard = self.standardize(pool)
        self.in_proj.weight.copy_(whitening_projection(standard, len(self.basis)))
        self.in_proj.bias.copy_(-(standard @ self.in_proj.weight.T).median(0).values)
        weight, bias = regression(self.signs(self.embed(pool)), standard)
        self.out_proj.weight.copy_(weight)
        self.out_proj.bias.copy_(bias)
        self.initialised.fill_(True)

    def embed(self, inputs: Tensor) -> Tensor:
        """Projected inputs `[N, bits]`."""
        return self.in_proj(self.standardize(inputs))

    def signs(self, embedded: Tensor) -> Tensor:
        """Nearest binary vectors `[N, bits]` of projected inputs `[N, bits]`."""
        return torch.where(embedded > 0, self.size, -self.size)

    def project(self, signs: Tensor) -> Tensor:
        """Vectors `[..., D]` of binary vectors `[..., bits]`."""
        return self.standardize.undo(self.out_proj(signs))

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[N]` of inputs `[N, D]`: bit j is 1 where dimension j is positive."""
        return ((self.embed(inputs) > 0) * self.basis).sum(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        bits = (codes[..., None] // self.basis) % 2
        return self.project((2.0 * bits - 1) * self.size)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, commitment per input `[N]` and the scalar entropy loss."""
        embedded = self.embed(inputs)
        signs = self.signs(embedded.detach())
        losses = {
            "commitment": (embedded - signs).square().mean(1),
            "entropy": self.entropy_loss(embedded, used),
        }
        return self.project(self.estimator(embedded, signs)), ((signs > 0) * self.basis).sum(-1), losses

    def entropy_loss(self, embedded: Tensor, used: Tensor) -> Tensor:
        """Mean entropy of frames plus `diversity` times the entropy deficit of their mean, in nats."""
        # softmax(-inverse_temperature * distance²) over the two values of a bit is a sigmoid of 4 t x.
        logits = 4 * self.inverse_temperature * self.size * embedded
        count = used.sum().to(embedded.dtype)
        # Entropy of a bit with logit l is log(1 + e^l) - l sigmoid(l), finite where p log p is not.
        bits = functional.softplus(logits) - logits * torch.sigmoid(logits)
        frame_entropy = (bits.sum(1) * used).sum() / count.clamp(min=1)
        joint = [self.joint(group) for group in logits.tensor_split(-(-len(self.basis) // self.LARGEST), 1)]
        total = torch.cat([torch.where(used[:, None], p, 0.0).sum(0) for p in joint] + [count[None]])
        if self.training:  # each process alone would underestimate the entropy of the mean
            total = all_reduce_with_gradient(total)
        mean = total[:-1] / total[-1].clamp(min=1)
        entropy = -torch.xlogy(mean, mean.clamp(min=1e-8)).sum()
        return frame_entropy + self.diversity * (len(self.basis) * math.log(2) - entropy)

    def joint(self, logits: Tensor) -> Tensor:
        """Joint probabilities `[N, 2^g]` of g independent bits with logits `[N, g]`."""
        joint = torch.ones_like(logits[:, :1])
        for logit in logits.unbind(1):
            one = torch.sigmoid(logit)[:, None]
            joint = torch.cat([joint * (1 - one), joint * one], 1)
        return joint


class BSQCodebook(LFQCodebook):
    """Signs of a projection of inputs `[N, D]` on the unit sphere, ±1/√bits each (BSQ, arXiv 2406.07548).

    The quantization error is bounded.
    """

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
        """Projected inputs `[N, bits]` of length 1."""
        return functional.normalize(super().embed(inputs), dim=1)
