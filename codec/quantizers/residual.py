"""Residual quantization: every stage codes the residual of the previous stages (SoundStream, Algorithm 1)."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.codebooks.base import Codebook
from codec.codebooks.beam import beam_search
from codec.codebooks.cache import CachedTable
from codec.codebooks.estimators import straight_through
from codec.quantizers import learning
from codec.quantizers.base import Quantized, Quantizer
from codec.quantizers.layout import columns, pooled, rows, spread, subtract

MOST_CODES = 4096  # codes per frame


class Residual(Quantizer):
    """Residual VQ: `num_quantizers` codebooks for latents `[B, D, F]`, codes `[B, K, F]`.

    SoundStream's cascade (arXiv 2107.03312, Algorithm 1).
    `codebook` builds one stage from `dim`. `codebook_sizes` are separate sizes of the stages; `shared` uses
    one codebook for all stages. With `strides` (SNAC, arXiv 2410.14411) stage i codes means of `strides[i]`
    latents. A frame of codes then has the largest stride, and its codes are ordered by stage, then time.
    `dropout` is the share of training examples that use only their first n codes, with n drawn from `depths`,
    by default 1 to K, for each example. It is 1 in SoundStream (§III-C) and 0.5 in DAC. EnCodec draws one of
    its bandwidths for the whole batch.
    A loss is the sum over stages of its mean over frames; a frame that drops a stage counts as 0.
    All arithmetic is float32, also under autocast. Raises ValueError for impossible sizes.
    """

    offsets: Tensor

    def __init__(
        self,
        dim: int,
        codebook: Callable[..., Codebook],
        *,
        num_quantizers: int = 8,
        codebook_sizes: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        shared: bool = False,
        dropout: float = 1.0,
        depths: Sequence[int] | None = None,
        estimator: Callable[[Tensor, Tensor], Tensor] = straight_through,
        loss_weights: Mapping[str, float] | None = None,
    ):
        super().__init__()
        if num_quantizers < 1:
            raise ValueError(f"num_quantizers must be at least 1, got {num_quantizers}")
        if num_quantizers > MOST_CODES:
            raise ValueError(f"num_quantizers must be at most {MOST_CODES}, got {num_quantizers}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a share of examples, 0 to 1, got {dropout}")
        for name, values in (("strides", strides), ("codebook_sizes", codebook_sizes)):
            if values is not None and len(values) != num_quantizers:
                raise ValueError(
                    f"{name} must be num_quantizers = {num_quantizers} numbers, got {list(values)}"
                )
        if shared and codebook_sizes is not None:
            raise ValueError("a shared codebook has one size: leave codebook_sizes out")
        options = inspect.signature(codebook).parameters.values()
        if codebook_sizes and not any(o.name == "codebook_size" or o.kind is o.VAR_KEYWORD for o in options):
            raise ValueError("codebook_sizes: these codebooks have no codebook_size to set; leave it out")
        sizes = [{"codebook_size": size} for size in codebook_sizes or ()] or [{}] * num_quantizers
        self.dim = dim
        self.codebooks = nn.ModuleList(codebook(dim, **size) for size in (sizes[:1] if shared else sizes))
        self.strides = tuple(strides or [1] * num_quantizers)
        self.stride = max(self.strides)
        if min(self.strides) < 1 or any(self.stride % stride for stride in self.strides):
            raise ValueError(f"strides must divide the largest of them, got {list(self.strides)}")
        self.per_frame = [self.stride // stride for stride in self.strides]
        if sum(self.per_frame) > MOST_CODES:
            raise ValueError(f"strides give {sum(self.per_frame)} codes a frame, at most {MOST_CODES} can be")
        self.codebook_sizes = tuple(
            stage.codebook_size
            for stage, n in zip(self.stages, self.per_frame, strict=True)
            for _ in range(n)
        )
        starts = [0] * len(self.strides) if shared else [0, *itertools.accumulate(self.codebook_sizes)]
        offsets = torch.tensor(starts[: len(self.strides)])
        self.register_buffer("offsets", offsets, persistent=False)  # first row of each stage in `tables`
        self.dropout = dropout
        self.depths = tuple(range(1, self.num_quantizers + 1) if depths is None else depths)
        if not self.depths or not all(1 <= depth <= self.num_quantizers for depth in self.depths):
            raise ValueError(f"depths must be 1 to {self.num_quantizers} codes, got {list(self.depths)}")
        copies_gradient = self.stages[0].straight_through_cascade
        if not copies_gradient and getattr(estimator, "func", estimator) is not straight_through:
            raise ValueError("estimator has no effect on these codebooks: set codebook.estimator")
        self.estimator = estimator
        self.loss_weights = dict(loss_weights or {})
        self.tables: CachedTable[Tensor] = CachedTable()

    @property
    def stages(self) -> list[Codebook]:
        """Codebooks in the order of stages."""
        return cast(list[Codebook], list(self.codebooks)) * (len(self.strides) // len(self.codebooks))

    @property
    def tabular(self) -> bool:
        """True if every stage is a table of vectors."""
        return all(stage.tabular for stage in self.stages)

    def quantize(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None,
        mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> Quantized:
        """Quantize `[B, D, F * stride]`; see `Quantizer.forward`."""
        batch, frames = len(latents), latents.shape[-1] // self.stride
        inputs = rows(latents.float())
        depth, computed = self.depth_of_frames(num_quantizers, batch, frames, latents.device)
        if mask is not None:
            # Masked frames become zeros of depth 0: no loss and no codebook statistic counts them.
            inputs = torch.where(mask.reshape(-1, 1).repeat_interleave(self.stride, 0), inputs, 0.0)
            depth = depth * mask.reshape(-1)
        # No mask is needed if every frame uses every stage.
        complete = self.stride == 1 or computed == self.num_quantizers
        all_frames = mask is None and not isinstance(num_quantizers, Tensor) and complete
        total, first, codes, losses = self.cascade(inputs, depth, computed, all_frames, generator)
        codes, detached = columns(codes, batch), columns(inputs.detach(), batch)
        branch = Quantized(columns(first, batch), codes[:, : self.per_frame[0]], {}, detached)
        return Quantized(columns(total, batch), codes, losses, detached, (branch,))

    def depth_of_frames(
        self, num_quantizers: int | Tensor | None, batch: int, frames: int, device: torch.device
    ) -> tuple[Tensor, int]:
        """Number of codes of each frame `[B * F]`, and the number of codes to compute."""
        if isinstance(num_quantizers, Tensor):
            return num_quantizers.repeat_interleave(frames), self.num_quantizers
        computed = self.check_depth(num_quantizers)
        return torch.full((batch * frames,), computed, device=device), computed

    def cascade(
        self,
        inputs: Tensor,
        depth: Tensor,
        computed: int,
        all_frames: bool,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Quantize rows `[B * F * stride, D]`: vectors, those of stage 1, codes `[B * F, K]`, losses."""
        copies_gradient = self.stages[0].straight_through_cascade
        # Detached stages, because a gradient through each of them would be K times that of one.
        residual = inputs.detach() if copies_gradient else inputs
        scale = 1 / (depth > 0).sum().clamp(min=1)
        total, commitments = torch.zeros_like(inputs), torch.zeros_like(inputs)
        leading = total
        losses: dict[str, Tensor] = {}
        codes: list[Tensor] = []
        for first, stage, stride in self.levels(computed):
            count = self.stride // stride
            used = (depth[:, None] > first + torch.arange(count, device=depth.device)).reshape(-1)
            stage_inputs = pooled(residual, stride)
            stage = stage.given(pooled(total, stride))
            vectors, stage_codes, errors = stage(stage_inputs, used, generator)
            codes.append(stage_codes.where(used, -1).view(len(depth), count))
            for name, error in errors.items():
                losses[name] = losses.get(name, 0) + (error * used).sum() * (scale / count)
            vectors = vectors.detach() if copies_gradient else vectors
            remainder = subtract(stage_inputs, vectors, own=copies_gradient and first > 0 and not errors)
            if copies_gradient and "commitment" in self.loss_weights:
                commitment = remainder if all_frames else remainder * used[:, None]
                squares = torch.dot(commitment.flatten(), commitment.flatten()) * (scale / (count * self.dim))
                losses["commitment"] = losses.get("commitment", 0) + squares
                commitments += spread(commitment, stride)
            masked_vectors = vectors if all_frames else vectors * used[:, None]
            total += (spread_vectors := spread(masked_vectors, stride))
            leading = leading if first else spread_vectors
            residual = remainder if stride == 1 else residual - spread(vectors, stride)
        if copies_gradient:
            total, leading = self.estimator(inputs, total), self.estimator(inputs, leading)
            if "commitment" in losses:
                # One tensor for the gradient of all stages' commitment: each residual's derivative is 1.
                slope = torch.dot(inputs.flatten(), commitments.flatten()) * (
                    2 * scale / (self.dim * self.stride)
                )
                losses["commitment"] = losses["commitment"] + (slope - slope.detach())
        return total, leading, torch.cat(codes, 1)[:, :computed], losses

    def levels(self, computed: int | None = None) -> Iterator[tuple[int, Codebook, int]]:
        """Stages of the first `computed` codes: number of first code, codebook, stride."""
        first = 0
        for stage, stride, count in zip(self.stages, self.strides, self.per_frame, strict=True):
            if computed is None or first < computed:
                yield first, stage, stride
            first += count

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Quantizer dropout: number of codes for each example of a training batch, int64 `[B]`."""
        if self.dropout == 0:
            return None
        depths = torch.tensor(self.depths)[torch.randint(len(self.depths), (batch,), generator=generator)]
        return depths.where(torch.rand(batch, generator=generator) < self.dropout, self.num_quantizers)

    @torch.no_grad()
    def encode(self, latents: Tensor, num_quantizers: int | None = None, beam: int = 1) -> Tensor:
        """Codes `[B, num_quantizers, F]` of latents `[B, D, F * stride]`; see `Quantizer.encode`."""
        self.check_finite(latents)
        if beam < 1:
            raise ValueError(f"beam must be at least 1, got {beam}")
        with torch.autocast(latents.device.type, enabled=False):
            residual, depth = rows(latents.float()), self.check_depth(num_quantizers)
            if beam > 1 and depth > 1:
                codes = beam_search(list(self.levels(depth)), residual, self.stride, depth, beam)
                return columns(codes, len(latents))
            codes, total = [], torch.zeros_like(residual)
            for first, codebook, stride in self.levels(depth):
                stage, count = codebook.given(pooled(total, stride)), self.stride // stride
                chosen = stage.encode(pooled(residual, stride))
                codes.append(chosen.view(-1, count))
                if first + count < depth:
                    vectors = spread(stage.lookup(chosen), stride)
                    residual = subtract(residual, vectors, own=first > 0)
                    total = total.add_(vectors) if codebook.conditional else total
            return columns(torch.cat(codes, 1)[:, :depth], len(latents))

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F * stride]` of codes `[B, k, F]`, the first k codes of each frame.

        A tracer needs a constant k: there codes of -1 fill missing stages.
        """
        self.check_codes(codes)
        with torch.autocast(codes.device.type, enabled=False):
            if self.stride == 1 and not torch.compiler.is_compiling() and self.tabular:
                return columns(self.sum_of_vectors(codes), len(codes))
            frames = rows(codes)
            total = torch.zeros(frames.shape[0] * self.stride, self.dim, device=codes.device)
            for first, stage, stride in self.levels(codes.shape[1]):
                count = self.stride // stride
                stage_codes = frames[:, first : first + count]
                missing = count - stage_codes.shape[1]
                padded_codes = functional.pad(stage_codes, (0, missing), value=-1).reshape(-1)
                stage = stage.given(pooled(total, stride))
                vectors = stage.lookup(padded_codes.clamp(min=0)) * (padded_codes >= 0)[:, None]
                total = total + spread(vectors, stride)
            return columns(total, len(codes))

    def sum_of_vectors(self, codes: Tensor) -> Tensor:
        """Sum `[B * F, D]` of the vectors of codes `[B, k, F]`, by one lookup in a table of all stages."""
        stages = self.stages[: len(self.codebooks)]
        sources = [tensor for stage in stages for tensor in stage.sources()]
        table = self.tables(sources, lambda: torch.cat([stage.table() for stage in stages]))
        batch, depth, frames = codes.shape
        rows = codes.new_empty(batch, frames, depth)
        torch.add(codes.permute(0, 2, 1), self.offsets[:depth], out=rows)
        return functional.embedding_bag(rows.view(-1, depth), table, mode="sum")

    def pool_size(self) -> int:
        """Number of latents that the codebooks need for `initialise`; 0 once initialized."""
        stages = zip(self.stages, self.strides, strict=True)
        return max((stage.pool_frames * stride for stage, stride in stages if stage.needs_pool), default=0)

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Initialize each stage by the residual that the previous stages leave of a pool `[N, D]`."""
        learning.initialise(self, pool)

    @torch.no_grad()
    def update(self, quantized: Quantized) -> None:
        """Update the codebooks by statistics of this batch, summed over all processes."""
        learning.update(self, quantized)

    @torch.no_grad()
    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Replace dead codes by stage inputs of the joint batch, or by twins of overused codes."""
        return learning.revive(self, quantized, seed)
