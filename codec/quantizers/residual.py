"""Residual quantization: every stage codes what the stages before it left (SoundStream, Algorithm 1)."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.distributed import all_reduce_sum, broadcast, rank, world_size
from codec.quantizers.base import Quantized, Quantizer
from codec.quantizers.beam import beam_search
from codec.quantizers.codebook import Codebook
from codec.quantizers.derived import Derived
from codec.quantizers.estimators import straight_through
from codec.quantizers.frames import columns, pooled, rows, spread, subtract

MOST_CODES = 4096  # of a frame


class Residual(Quantizer):
    """Cascade of `num_quantizers` codebooks over latents `[B, D, F]`; one codebook is plain VQ.

    `codebook` makes one stage from `dim`; `codebook_sizes` gives each its own size, `shared` makes one serve
    all stages. `strides` (SNAC, arXiv 2410.14411) makes stage i see means of `strides[i]` latents; a frame of
    codes is as long as the largest, and holds stage i's codes one after the other, coarse stages first.
    `dropout` is the share of training examples that use only their first n codes, n drawn from `depths`,
    by default all (SoundStream §III-C: every example; DAC: half of them; EnCodec: a list of bandwidths, of
    which it draws one for a whole batch; here every example draws its own).
    A loss is the sum over stages of its mean over frames; frames that drop a stage count as 0 there.
    All arithmetic is float32, also under autocast. Raises ValueError for impossible sizes.
    """

    offsets: Tensor

    def __init__(
        self,
        dim: int,
        codebook: Callable[..., nn.Module],
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
        for name, given in (("strides", strides), ("codebook_sizes", codebook_sizes)):
            if given is not None and len(given) != num_quantizers:
                raise ValueError(
                    f"{name} must be num_quantizers = {num_quantizers} numbers, got {list(given)}"
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
        self.register_buffer("offsets", offsets, persistent=False)  # of each stage in the table of all
        self.dropout = dropout
        self.depths = tuple(range(1, self.num_quantizers + 1) if depths is None else depths)
        if not self.depths or not all(1 <= depth <= self.num_quantizers for depth in self.depths):
            raise ValueError(f"depths must be 1 to {self.num_quantizers} codes, got {list(self.depths)}")
        around = self.codebooks[0].straight_through_cascade
        if not around and getattr(estimator, "func", estimator) is not straight_through:
            raise ValueError("estimator has no effect on these codebooks: set codebook.estimator")
        self.estimator = estimator
        self.loss_weights = dict(loss_weights or {})
        self.tables: Derived[Tensor] = Derived()

    @property
    def stages(self) -> list:
        """The codebooks, first stage first."""
        return list(self.codebooks) * (len(self.strides) // len(self.codebooks))

    @property
    def learns(self) -> bool:
        """Whether the codebooks learn from statistics of what they were given."""
        return hasattr(self.codebooks[0], "statistics")

    @property
    def tabular(self) -> bool:
        """Whether every stage is a table of vectors."""
        return hasattr(self.codebooks[0], "table")

    def forward(
        self,
        latents: Tensor,
        num_quantizers: int | Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantize `[B, D, F]`; see `Quantizer.forward`."""
        self.check_latents(latents, num_quantizers, mask)
        with torch.autocast(latents.device.type, enabled=False):
            batch, frames = len(latents), latents.shape[-1] // self.stride
            inputs = rows(latents.float())
            depth, computed = self.depth_of_frames(num_quantizers, batch, frames, latents.device)
            if mask is not None:
                inputs = torch.where(mask.reshape(-1, 1).repeat_interleave(self.stride, 0), inputs, 0.0)
                depth = depth * mask.reshape(-1)
            # Where every frame uses every stage, nothing has to be masked.
            complete = self.stride == 1 or computed == self.num_quantizers
            whole = mask is None and not isinstance(num_quantizers, Tensor) and complete
            total, codes, losses = self.quantize(inputs, depth, computed, whole, generator)
            return Quantized(
                columns(total, batch), columns(codes, batch), losses, columns(inputs.detach(), batch)
            )

    def depth_of_frames(
        self, num_quantizers: int | Tensor | None, batch: int, frames: int, device: torch.device
    ) -> tuple[Tensor, int]:
        """How many codes each frame of codes `[B * F]` uses, and how many have to be computed."""
        if isinstance(num_quantizers, Tensor):
            return num_quantizers.repeat_interleave(frames), self.num_quantizers
        computed = self.check_depth(num_quantizers)
        return torch.full((batch * frames,), computed, device=device), computed

    def quantize(
        self, inputs: Tensor, depth: Tensor, computed: int, whole: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Run the cascade on rows `[B * F * stride, D]`: sums of vectors, codes `[B * F, K]`, losses."""
        around = bool(self.codebooks[0].straight_through_cascade)
        residual = inputs.detach() if around else inputs
        scale = 1 / (depth > 0).sum().clamp(min=1)
        total, pull = torch.zeros_like(inputs), torch.zeros_like(inputs)
        losses: dict[str, Tensor] = {}
        codes: list[Tensor] = []
        for first, stage, stride in self.levels(computed):
            count = self.stride // stride
            used = (depth[:, None] > first + torch.arange(count, device=depth.device)).reshape(-1)
            seen = pooled(residual, stride)
            vectors, chosen, errors = stage(seen, used, generator)
            codes.append(chosen.where(used, -1).view(len(depth), count))
            for name, error in errors.items():
                losses[name] = losses.get(name, 0) + (error * used).sum() * (scale / count)
            vectors = vectors.detach() if around else vectors
            left = subtract(seen, vectors, own=around and first > 0 and not errors)
            if around and "commitment" in self.loss_weights:
                counted = left if whole else left * used[:, None]
                squares = torch.dot(counted.flatten(), counted.flatten()) * (scale / (count * self.dim))
                losses["commitment"] = losses.get("commitment", 0) + squares
                pull += spread(counted, stride)
            kept = vectors if whole else vectors * used[:, None]
            total += spread(kept, stride)
            residual = left if stride == 1 else residual - spread(vectors, stride)
        if around:
            total = self.estimator(inputs, total)
            if "commitment" in losses:
                # The gradient of all stages' commitment in one tensor: each residual's derivative is 1.
                slope = torch.dot(inputs.flatten(), pull.flatten()) * (2 * scale / (self.dim * self.stride))
                losses["commitment"] = losses["commitment"] + (slope - slope.detach())
        return total, torch.cat(codes, 1)[:, :computed], losses

    def levels(self, computed: int | None = None) -> Iterator[tuple[int, Any, int]]:
        """The stages that the first `computed` codes come from: number of first code, codebook, stride."""
        first = 0
        for stage, stride, count in zip(self.stages, self.strides, self.per_frame, strict=True):
            if computed is None or first < computed:
                yield first, stage, stride
            first += count

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Quantizer dropout: codes that each example of a training batch uses, int64 `[B]`."""
        if self.dropout == 0:
            return None
        drawn = torch.tensor(self.depths)[torch.randint(len(self.depths), (batch,), generator=generator)]
        return drawn.where(torch.rand(batch, generator=generator) < self.dropout, self.num_quantizers)

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
            codes = []
            for first, stage, stride in self.levels(depth):
                chosen, count = stage.encode(pooled(residual, stride)), self.stride // stride
                codes.append(chosen.view(-1, count))
                if first + count < depth:
                    residual = subtract(residual, spread(stage.lookup(chosen), stride), own=first > 0)
            return columns(torch.cat(codes, 1)[:, :depth], len(latents))

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F * stride]` of codes `[B, k, F]`, any prefix k of a frame's codes.

        For a tracer, which needs a constant k, codes of -1 stand for those that are not there.
        """
        self.check_codes(codes)
        with torch.autocast(codes.device.type, enabled=False):
            if self.stride == 1 and not torch.compiler.is_compiling() and self.tabular:
                return columns(self.sum_of_vectors(codes), len(codes))
            frames = rows(codes)
            total: Tensor | None = None
            for first, stage, stride in self.levels(codes.shape[1]):
                count = self.stride // stride
                given = frames[:, first : first + count]
                chosen = functional.pad(given, (0, count - given.shape[1]), value=-1).reshape(-1)
                vectors = stage.lookup(chosen.clamp(min=0)) * (chosen >= 0)[:, None]
                total = spread(vectors, stride) if total is None else total + spread(vectors, stride)
            assert total is not None
            return columns(total, len(codes))

    def sum_of_vectors(self, codes: Tensor) -> Tensor:
        """Sum `[B * F, D]` of the vectors that codes `[B, k, F]` name, from one table of all stages'."""
        stages = list(self.codebooks)
        sources = [tensor for stage in stages for tensor in cast(Any, stage).sources()]
        table = self.tables(sources, lambda: torch.cat([cast(Any, stage).table() for stage in stages]))
        batch, depth, frames = codes.shape
        rows = codes.new_empty(batch, frames, depth)
        torch.add(codes.permute(0, 2, 1), self.offsets[:depth], out=rows)
        return functional.embedding_bag(rows.view(-1, depth), table, mode="sum")

    def pool_size(self) -> int:
        """Latents that the codebooks' start wants; 0 once they have started."""
        wanted = [
            stage.pool_frames * stride
            for stage, stride in zip(self.stages, self.strides, strict=True)
            if hasattr(stage, "pool_frames") and not bool(stage.initialised)
        ]
        return max(wanted, default=0)

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Fit stage after stage by k-means to what the stages before left of a pool `[N, D]`."""
        residual = pool[: len(pool) // self.stride * self.stride].float()
        started: list[Tensor] = []
        for _, stage, stride in self.levels():
            if not hasattr(stage, "pool_frames"):
                return
            inputs = pooled(residual, stride)
            # A shared codebook starts from what it will meet in all stages, as far as they are known.
            started = [*started, inputs] if len(self.codebooks) == 1 else [inputs]
            stage.initialise(torch.cat(started))
            # On a GPU sums of the same numbers may differ in their last bits from process to process.
            for tensor in stage.state_dict().values():
                if tensor.is_floating_point():
                    broadcast(tensor)
            residual = residual - spread(stage.lookup(stage.encode(inputs)), stride)

    @torch.no_grad()
    def update(self, quantized: Quantized) -> None:
        """Move the codebooks towards this batch's latents, summed over all processes."""
        if not self.learns:
            return
        found: dict[Any, tuple[Tensor, Tensor]] = {}  # a shared codebook collects from all stages
        with torch.autocast(quantized.inputs.device.type, enabled=False):
            for stage, inputs, codes in self.cascade(quantized):
                found[stage] = stage.statistics(inputs, codes, found.get(stage))
        totals = iter(all_reduce_sum([tensor for pair in found.values() for tensor in pair]))
        for stage, sums, counts in zip(found, totals, totals, strict=True):
            stage.update(sums, counts)

    @torch.no_grad()
    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Replace dead codes by stage inputs of the joint batch, or by twins of overused codes.

        All processes choose alike. A shared codebook takes inputs of its first stage.
        """
        replaced = torch.zeros(self.num_quantizers, dtype=torch.int64)
        if not isinstance(self.codebooks[0], Codebook):
            return replaced
        generator = torch.Generator().manual_seed(seed)
        with torch.autocast(quantized.inputs.device.type, enabled=False):
            candidates = [
                self.candidates(stage, inputs, codes, generator)
                for stage, inputs, codes in itertools.islice(self.cascade(quantized), len(self.codebooks))
            ]
        for (first, stage, _), candidate in zip(self.levels(), all_reduce_sum(candidates), strict=False):
            vectors, known = candidate[:, :-1], candidate[:, -1] > 0
            if stage.revive_from == "overused":
                vectors, known = stage.twins(seed), torch.ones_like(known)
            dead = stage.dead() & known & torch.isfinite(vectors).all(1)
            stage.replace(dead, vectors)
            replaced[first] = dead.sum()
        return replaced

    def candidates(
        self, stage: Codebook, inputs: Tensor, codes: Tensor, generator: torch.Generator
    ) -> Tensor:
        """For each code a random stage input of the joint batch and the flag 1, `[codebook_size, D + 1]`.

        A row that another process holds, or that dropped this stage, is zero here, its flag too.
        """
        picks = picked_rows(len(inputs) * world_size(), stage.codebook_size, generator)
        picks = picks.to(inputs.device) - rank() * len(inputs)
        local = picks.clamp(0, len(inputs) - 1)
        held = (picks >= 0) & (picks < len(inputs)) & (codes[local] >= 0)
        row = torch.cat([inputs[local], torch.ones_like(inputs[:1, :1]).expand(len(local), 1)], 1)
        return torch.where(held[:, None], row, 0.0)

    def cascade(self, quantized: Quantized) -> Iterator[tuple[Codebook, Tensor, Tensor]]:
        """Each stage with its inputs `[N, D]` and codes `[N]` in a batch that was quantized before."""
        residual, codes = rows(quantized.inputs.float()), rows(quantized.codes)
        for first, stage, stride in self.levels(codes.shape[1]):
            chosen = codes[:, first : first + self.stride // stride].reshape(-1)
            yield stage, pooled(residual, stride), chosen
            if first + self.stride // stride < codes.shape[1]:
                vectors = spread(stage.lookup(chosen.clamp(min=0)), stride)
                residual = subtract(residual, vectors, own=first > 0)


def picked_rows(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` row numbers below `total`, different ones as long as there are enough."""
    return torch.randperm(total, generator=generator).repeat(-(-count // total))[:count]
