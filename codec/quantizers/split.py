"""Semantic and acoustic quantizer of the same latents in parallel (Mimi)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codec.quantizers.base import Quantized, Quantizer


class Split(Quantizer):
    """Quantizes the same latents `[B, D, F]` twice and adds the results: Mimi's split RVQ (arXiv 2410.00037).

    Semantic codes come first. The acoustic branch codes the latents, not the residual of the semantic branch,
    so that semantic codes need not serve the reconstruction. Each branch may have its own projection
    (`Projected`). Losses are sums over both. ValueError for different strides or weights of the same loss.
    """

    def __init__(self, dim: int, semantic: Callable[[int], Quantizer], acoustic: Callable[[int], Quantizer]):
        super().__init__()
        self.dim = dim
        self.semantic, self.acoustic = semantic(dim), acoustic(dim)
        if self.semantic.stride != self.acoustic.stride:
            raise ValueError(
                "semantic and acoustic must have the same number of latents per frame of codes (stride), got "
                f"{self.semantic.stride} and {self.acoustic.stride}"
            )
        self.stride = self.semantic.stride
        self.codebook_sizes = self.semantic.codebook_sizes + self.acoustic.codebook_sizes
        self.loss_weights = self.semantic.loss_weights | self.acoustic.loss_weights
        for name in self.semantic.loss_weights.keys() & self.acoustic.loss_weights.keys():
            if self.semantic.loss_weights[name] != self.acoustic.loss_weights[name]:
                raise ValueError(f"loss_weights.{name} must be the same for semantic and acoustic")

    def branches(self, codes: Tensor) -> list[tuple[Quantizer, Tensor]]:
        """Branches with their share of codes `[B, k, F]`, except branches without codes."""
        first = self.semantic.num_quantizers
        parts = [(self.semantic, codes[:, :first]), (self.acoustic, codes[:, first:])]
        return [(branch, branch_codes) for branch, branch_codes in parts if branch_codes.shape[1]]

    def depths(self, num_quantizers: int | Tensor | None) -> list:
        """Number of codes of each branch; one entry if all are semantic."""
        first = self.semantic.num_quantizers
        if num_quantizers is None:
            return [None, None]
        if isinstance(num_quantizers, Tensor):
            return [num_quantizers.clamp(max=first), (num_quantizers - first).clamp(min=0)]
        depth = self.check_depth(num_quantizers)
        return [min(depth, first)] + ([depth - first] if depth > first else [])

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Quantize with both branches; see `Quantizer.forward`."""
        results = [
            branch(latents, depth, mask, generator)
            for branch, depth in zip(
                (self.semantic, self.acoustic), self.depths(num_quantizers), strict=False
            )
        ]
        total = results[0].latents if len(results) == 1 else results[0].latents + results[1].latents
        losses: dict[str, Any] = {}
        for name, loss in itertools.chain.from_iterable(result.losses.items() for result in results):
            losses[name] = losses.get(name, 0) + loss
        codes = torch.cat([result.codes for result in results], 1)
        return Quantized(total, codes, losses, latents.detach(), tuple(results))

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Semantic, then acoustic codes `[B, num_quantizers, F]`."""
        depths = self.depths(num_quantizers)
        branches = zip((self.semantic, self.acoustic), depths, strict=False)
        return torch.cat([branch.encode(latents, depth, beam) for branch, depth in branches], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum of the branches' latents `[B, D, F]`."""
        latents = [branch.decode(branch_codes) for branch, branch_codes in self.branches(codes)]
        return latents[0] if len(latents) == 1 else latents[0] + latents[1]

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Number of codes `[B]`: all semantic codes plus the acoustic branch's random number."""
        depths = self.acoustic.draw_num_quantizers(batch, generator)
        return None if depths is None else depths + self.semantic.num_quantizers

    def pool_size(self) -> int:
        """Larger pool size of the two branches."""
        return max(self.semantic.pool_size(), self.acoustic.pool_size())

    def initialise(self, pool: Tensor) -> None:
        """Fit both branches to the pool."""
        self.semantic.initialise(pool)
        self.acoustic.initialise(pool)

    def update(self, quantized: Quantized) -> None:
        """Update both branches."""
        for branch, codes in self.branches(quantized.codes):
            branch.update(quantized._replace(codes=codes))

    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Revive dead codes of both branches."""
        counts = [
            branch.revive(quantized._replace(codes=codes), seed + number)
            for number, (branch, codes) in enumerate(self.branches(quantized.codes))
        ]
        return torch.cat(counts)
