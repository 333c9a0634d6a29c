"""Separate quantization of groups of channels: product and grouped quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from codec.quantizers.base import Quantized, Quantizer


class Grouped(Quantizer):
    """Splits the D channels of latents `[B, D, F]` into `num_groups` and quantizes each separately.

    Grouped residual VQ is from HiFi-Codec (arXiv 2305.02765). With plain codebooks this is product
    quantization (Jégou et al. 2011), or a codebook with several heads. `shared` uses one quantizer for all
    groups. Codes `[B, K, F]` are ordered by stage, coarse first: code `stage * num_groups + group`. Losses
    are means over groups. ValueError unless `num_groups` divides D.
    """

    def __init__(
        self, dim: int, quantizer: Callable[[int], Quantizer], num_groups: int = 2, shared: bool = False
    ):
        super().__init__()
        if num_groups < 1 or dim % num_groups:
            raise ValueError(f"num_groups must divide the {dim} latent dimensions, got {num_groups}")
        self.dim, self.num_groups, self.shared = dim, num_groups, shared
        quantizers = [quantizer(dim // num_groups) for _ in range(1 if shared else num_groups)]
        self.quantizers = nn.ModuleList(quantizers)
        self.codebook_sizes = tuple(size for size in quantizers[0].codebook_sizes for _ in range(num_groups))
        self.loss_weights = quantizers[0].loss_weights
        self.stride = quantizers[0].stride

    @property
    def parts(self) -> list:
        """Quantizers, one per group or one for all groups."""
        return list(self.quantizers)

    def split(self, latents: Tensor) -> list[Tensor]:
        """Inputs of each part from latents `[B, D, F]`: `[B, D / G, F]`, or `[B * G, D / G, F]` if shared."""
        groups = latents.unflatten(1, (self.num_groups, -1))
        return [groups.flatten(0, 1)] if self.shared else list(groups.unbind(1))

    def join(self, parts: list[Tensor]) -> Tensor:
        """Undo `split`."""
        if self.shared:
            return parts[0].unflatten(0, (-1, self.num_groups)).flatten(1, 2)
        return torch.cat(parts, 1)

    def split_codes(self, codes: Tensor) -> list[Tensor]:
        """Codes of each part from `[B, K, F]`; missing codes of a group are −1."""
        missing = -codes.shape[1] % self.num_groups
        padded = torch.nn.functional.pad(codes, (0, 0, 0, missing), value=-1)
        groups = padded.unflatten(1, (-1, self.num_groups)).transpose(1, 2)  # [B, G, stages, F]
        return [groups.flatten(0, 1)] if self.shared else list(groups.unbind(1))

    def join_codes(self, parts: list[Tensor]) -> Tensor:
        """Undo `split_codes`."""
        if self.shared:
            return parts[0].unflatten(0, (-1, self.num_groups)).transpose(1, 2).flatten(1, 2)
        return torch.stack([part[:, stage] for stage in range(parts[0].shape[1]) for part in parts], 1)

    def depths(self, num_quantizers: int | Tensor | None, batch: int, device: torch.device) -> list:
        """Number of stages for each part, an int or a tensor `[B]`; None for all stages."""
        if not isinstance(num_quantizers, Tensor):
            depth = self.check_depth(num_quantizers)
            if depth % self.num_groups == 0:
                return [depth // self.num_groups or None] * len(self.quantizers)
            num_quantizers = torch.full((batch,), depth, device=device)
        groups = torch.arange(self.num_groups, device=device)
        stages = (num_quantizers[:, None] - groups + self.num_groups - 1) // self.num_groups
        return [stages.flatten()] if self.shared else list(stages.unbind(1))

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Quantize all groups; see `Quantizer.forward`."""
        depths = self.depths(num_quantizers, len(latents), latents.device)
        mask = mask.repeat_interleave(self.num_groups, 0) if mask is not None and self.shared else mask
        results = [
            part(piece, depth, mask, generator)
            for part, piece, depth in zip(self.parts, self.split(latents), depths, strict=True)
        ]
        codes = self.join_codes([result.codes for result in results])
        if isinstance(num_quantizers, int):
            codes = codes[:, :num_quantizers]
        losses: dict[str, Any] = {
            name: sum(result.losses[name] for result in results) / len(results) for name in results[0].losses
        }
        return Quantized(self.join([result.latents for result in results]), codes, losses, latents.detach())

    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Codes `[B, num_quantizers, F]` of all groups, by stage."""
        self.check_finite(latents)
        depth = self.check_depth(num_quantizers)
        stages = -(-depth // self.num_groups) or None
        codes = [
            part.encode(piece, stages, beam)
            for part, piece in zip(self.parts, self.split(latents), strict=True)
        ]
        return self.join_codes(codes)[:, :depth]

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F]` of the first k codes `[B, k, F]`; a group without codes is zero."""
        stages, extra = divmod(codes.shape[1], self.num_groups)
        group_codes = self.split_codes(codes)
        if self.shared:
            group_codes = list(group_codes[0].unflatten(0, (-1, self.num_groups)).unbind(1))
        parts = self.parts * (self.num_groups // len(self.parts))
        latents = self.decode_groups(parts[:extra], group_codes[:extra], stages + 1)
        return torch.cat(latents + self.decode_groups(parts[extra:], group_codes[extra:], stages), 1)

    def decode_groups(self, parts: list, codes: list[Tensor], stages: int) -> list[Tensor]:
        """Latents of several groups from their first `stages` codes."""
        if not stages:
            batch, _, frames = codes[0].shape
            shape = (batch, self.dim // self.num_groups, frames * self.stride)
            return [torch.zeros(shape, device=codes[0].device)] * len(codes)
        if self.shared and codes:
            latents = parts[0].decode(torch.stack(codes, 1)[:, :, :stages].flatten(0, 1))
            return list(latents.unflatten(0, (-1, len(codes))).unbind(1))
        return [part.decode(part_codes[:, :stages]) for part, part_codes in zip(parts, codes, strict=True)]

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Random number of codes `[B]`: the draw of one part, times the number of groups."""
        stages = self.parts[0].draw_num_quantizers(batch, generator)
        return None if stages is None else stages * self.num_groups

    def pool_size(self) -> int:
        """Pool size of one part; a shared part gets one vector per group from each latent."""
        return -(-self.parts[0].pool_size() // (self.num_groups if self.shared else 1))

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Fit each part to its channels of the pool."""
        for part, piece in zip(self.parts, self.split(pool.T[None]), strict=True):
            part.initialise(piece.transpose(1, 2).flatten(0, 1))

    def records(self, quantized: Quantized) -> list[Quantized]:
        """Inputs and codes of each part."""
        pieces, codes = self.split(quantized.inputs), self.split_codes(quantized.codes)
        return [quantized._replace(inputs=x, codes=c) for x, c in zip(pieces, codes, strict=True)]

    def update(self, quantized: Quantized) -> None:
        """Update every part."""
        for part, record in zip(self.parts, self.records(quantized), strict=True):
            part.update(record)

    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Revive dead codes of every part; the counts of a shared part are in the first group."""
        counts = [
            part.revive(record, seed + number)
            for number, (part, record) in enumerate(zip(self.parts, self.records(quantized), strict=True))
        ]
        counts += [torch.zeros_like(counts[0])] * (self.num_groups - len(counts))
        return torch.stack(counts, 1).flatten()
