"""A semantic and an acoustic quantizer of the same latents, side by side (Mimi)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codec.quantizers.base import Quantized, Quantizer


class Split(Quantizer):
    """Quantizes the same latents `[B, D, F]` twice and adds the results: Mimi's split RVQ (arXiv 2410.00037).

    The semantic branch's codes come first. The acoustic branch codes the latents themselves, not what the
    semantic one left, so that those codes need not be semantic for its sake; the branches' projections
    (`Projected`) decide what each sees. Losses are sums over both.
    """

    def __init__(self, dim: int, semantic: Callable[[int], Quantizer], acoustic: Callable[[int], Quantizer]):
        super().__init__()
        self.dim = dim
        self.semantic, self.acoustic = semantic(dim), acoustic(dim)
        if self.semantic.stride != self.acoustic.stride:
            raise ValueError("semantic and acoustic must have as many latents per frame of codes")
        self.stride = self.semantic.stride
        self.codebook_sizes = self.semantic.codebook_sizes + self.acoustic.codebook_sizes
        self.loss_weights = self.semantic.loss_weights | self.acoustic.loss_weights
        for name in self.semantic.loss_weights.keys() & self.acoustic.loss_weights.keys():
            if self.semantic.loss_weights[name] != self.acoustic.loss_weights[name]:
                raise ValueError(f"loss_weights.{name} must be the same for semantic and acoustic")

    def branches(self, codes: Tensor) -> list[tuple[Quantizer, Tensor]]:
        """Each branch with its codes of `[B, k, F]`, if it has any."""
        first = self.semantic.num_quantizers
        parts = [(self.semantic, codes[:, :first]), (self.acoustic, codes[:, first:])]
        return [(branch, given) for branch, given in parts if given.shape[1]]

    def depths(self, num_quantizers: int | Tensor | None) -> list:
        """How many codes to ask of each branch; no second entry if the first has them all."""
        first = self.semantic.num_quantizers
        if num_quantizers is None:
            return [None, None]
        if isinstance(num_quantizers, Tensor):
            return [num_quantizers.clamp(max=first), (num_quantizers - first).clamp(min=0)]
        depth = self.check_depth(num_quantizers)
        return [min(depth, first)] + ([depth - first] if depth > first else [])

    def forward(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantize with both branches; see `Quantizer.forward`."""
        self.check_latents(latents, num_quantizers, mask)
        found = [
            branch(latents, depth, mask, generator)
            for branch, depth in zip(
                (self.semantic, self.acoustic), self.depths(num_quantizers), strict=False
            )
        ]
        total = found[0].latents if len(found) == 1 else found[0].latents + found[1].latents
        losses: dict[str, Any] = {}
        for name, loss in itertools.chain.from_iterable(one.losses.items() for one in found):
            losses[name] = losses.get(name, 0) + loss
        return Quantized(total, torch.cat([one.codes for one in found], 1), losses, latents.detach())

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Semantic codes, then acoustic ones."""
        depths = self.depths(num_quantizers)
        branches = zip((self.semantic, self.acoustic), depths, strict=False)
        return torch.cat([branch.encode(latents, depth, beam) for branch, depth in branches], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum of what the branches decode."""
        decoded = [branch.decode(given) for branch, given in self.branches(codes)]
        return decoded[0] if len(decoded) == 1 else decoded[0] + decoded[1]

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """All semantic codes, and as many acoustic ones as that branch draws."""
        drawn = self.acoustic.draw_num_quantizers(batch, generator)
        return None if drawn is None else drawn + self.semantic.num_quantizers

    def pool_size(self) -> int:
        """What the more demanding branch wants."""
        return max(self.semantic.pool_size(), self.acoustic.pool_size())

    def initialise(self, pool: Tensor) -> None:
        """Fit both branches to the pool."""
        self.semantic.initialise(pool)
        self.acoustic.initialise(pool)

    def update(self, quantized: Quantized) -> None:
        """Let both branches learn."""
        for branch, codes in self.branches(quantized.codes):
            branch.update(quantized._replace(codes=codes))

    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Let both branches revive."""
        counts = [
            branch.revive(quantized._replace(codes=codes), seed + number)
            for number, (branch, codes) in enumerate(self.branches(quantized.codes))
        ]
        return torch.cat(counts)
