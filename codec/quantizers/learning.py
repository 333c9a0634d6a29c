"""Learning of a residual cascade without gradients: start from latents, moving averages, dead codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from codec.codebooks.base import Codebook
from codec.quantizers.base import Quantized
from codec.quantizers.layout import pooled, rows, spread, subtract
from codec.system.distributed import all_reduce_sum, broadcast, rank, world_size


class Cascade(Protocol):
    """Codebooks of which each codes the residual of the previous ones; `Residual`."""

    stride: int

    @property
    def num_quantizers(self) -> int:
        """Number of codes per frame."""
        ...

    @property
    def stages(self) -> list[Codebook]:
        """Codebooks in the order of stages."""
        ...

    def levels(self, computed: int | None = None) -> Iterator[tuple[int, Codebook, int]]:
        """Stages of the first `computed` codes: number of first code, codebook, stride."""
        ...


def initialise(quantizer: Cascade, pool: Tensor) -> None:
    """Fit each stage that needs it to the residual that the previous stages leave of a pool `[N, D]`.

    A shared codebook is fitted to the inputs of all its stages so far.
    """
    shared = len(set(quantizer.stages)) == 1
    unfitted = {stage for stage in quantizer.stages if stage.needs_pool}
    residual = pool[: len(pool) // quantizer.stride * quantizer.stride].float()
    total = torch.zeros_like(residual)
    pools: list[Tensor] = []
    for _, stage, stride in quantizer.levels():
        inputs = pooled(residual, stride)
        pools = [*pools, inputs] if shared else [inputs]
        if stage in unfitted:
            stage.initialise(torch.cat(pools))
        # Sums of the same values on different GPUs may differ in their last bits.
        for tensor in stage.state_dict().values():
            if tensor.is_floating_point():
                broadcast(tensor)
        stage = stage.given(pooled(total, stride))
        vectors = spread(stage.lookup(stage.encode(inputs)), stride)
        residual, total = residual - vectors, total + vectors


def update(quantizer: Cascade, quantized: Quantized) -> None:
    """Update the codebooks that learn by statistics of this batch, summed over all processes."""
    learning = {stage for stage in quantizer.stages if stage.learns and not stage.frozen}
    if not learning:
        return
    statistics: dict[Codebook, tuple[Tensor, Tensor]] = {}  # of all stages for a shared codebook
    with torch.autocast(quantized.inputs.device.type, enabled=False):
        for _, stage, inputs, codes in stage_inputs(quantizer, quantized):
            if stage in learning:
                statistics[stage] = stage.statistics(inputs, codes, statistics.get(stage))
    totals = iter(all_reduce_sum([tensor for pair in statistics.values() for tensor in pair]))
    for stage, sums, counts in zip(statistics, totals, totals, strict=True):
        stage.update(sums, counts)


def revive(quantizer: Cascade, quantized: Quantized, seed: int) -> Tensor:
    """Replace dead codes; returns their number per code of a frame, int64 `[K]`.

    New vectors are random stage inputs of the joint batch, or twins of overused codes. The result is the same
    on all processes. A shared codebook takes inputs of its first stage.
    """
    replaced = torch.zeros(quantizer.num_quantizers, dtype=torch.int64, device=quantized.inputs.device)
    reviving = {stage for stage in quantizer.stages if stage.revives and not stage.frozen}
    if not reviving:
        return replaced
    generator = torch.Generator().manual_seed(seed)
    candidates: set[Codebook] = set()
    firsts: list[tuple[int, Codebook]] = []
    rows_of_stages: list[Tensor] = []
    with torch.autocast(quantized.inputs.device.type, enabled=False):
        for first, stage, inputs, codes in stage_inputs(quantizer, quantized):
            if stage in reviving - candidates:
                candidates.add(stage)
                firsts.append((first, stage))
                rows_of_stages.append(random_inputs(stage, inputs, codes, generator))
            if candidates == reviving:
                break
    for (first, stage), candidate in zip(firsts, all_reduce_sum(rows_of_stages), strict=True):
        vectors, available = candidate[:, :-1], candidate[:, -1] > 0
        if stage.revive_from == "overused":
            vectors, available = stage.twins(seed), torch.ones_like(available)
        dead = stage.dead() & available & torch.isfinite(vectors).all(1)
        stage.replace(dead, vectors)
        replaced[first] = dead.sum()
    return replaced


def random_inputs(stage: Codebook, inputs: Tensor, codes: Tensor, generator: torch.Generator) -> Tensor:
    """Random stage input of the joint batch per code, and the flag 1, `[codebook_size, D + 1]`.

    Rows of other processes, and rows that dropped this stage, are zero with the flag 0.
    """
    picks = random_rows(len(inputs) * world_size(), stage.codebook_size, generator)
    picks = picks.to(inputs.device, non_blocking=True) - rank() * len(inputs)
    local = picks.clamp(0, len(inputs) - 1)
    is_local = (picks >= 0) & (picks < len(inputs)) & (codes[local] >= 0)
    row = torch.cat([inputs[local], torch.ones_like(inputs[:1, :1]).expand(len(local), 1)], 1)
    return torch.where(is_local[:, None], row, 0.0)


def random_rows(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Random row numbers `[count]` below `total`, distinct if `count <= total`."""
    return torch.randperm(total, generator=generator).repeat(-(-count // total))[:count]


def stage_inputs(quantizer: Cascade, quantized: Quantized) -> Iterator[tuple[int, Codebook, Tensor, Tensor]]:
    """Yield number of first code, codebook, inputs `[N, D]` and codes `[N]` of each stage of a batch."""
    residual, codes = rows(quantized.inputs.float()), rows(quantized.codes)
    total = torch.zeros_like(residual)
    for first, codebook, stride in quantizer.levels(codes.shape[1]):
        stage_codes = codes[:, first : first + quantizer.stride // stride].reshape(-1)
        yield first, codebook, pooled(residual, stride), stage_codes
        if first + quantizer.stride // stride < codes.shape[1]:
            stage = codebook.given(pooled(total, stride))
            vectors = spread(stage.lookup(stage_codes.clamp(min=0)), stride)
            residual = subtract(residual, vectors, own=first > 0)
            total = total.add_(vectors) if codebook.conditional else total
