"""Residual quantization: every stage codes what the stages before it left (SoundStream, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from codec.distributed import all_reduce_sum, broadcast, rank, world_size
from codec.quantizers.base import Quantized, Quantizer, straight_through
from codec.quantizers.codebook import EMACodebook

# With fewer the first stages fit the k-means pool exactly and the later ones start on an exhausted residual.
POOL_FRAMES_PER_CODE = 16


class Residual(Quantizer):
    """Cascade of `num_quantizers` codebooks over latents `[B, D, F]`; one codebook is plain VQ.

    `codebook` makes one stage from `dim`. `dropout` is the share of training examples that use only their
    first n ~ U{1..K} stages (SoundStream §III-C: every example; DAC: half of them), drawn per example.
    A loss is the sum over stages of its mean over frames; frames that drop a stage count as 0 there.
    All arithmetic is float32, also under autocast. Raises ValueError for impossible sizes.
    """

    def __init__(
        self,
        dim: int,
        codebook: Callable[[int], nn.Module],
        *,
        num_quantizers: int = 8,
        dropout: float = 1.0,
        loss_weights: Mapping[str, float] | None = None,
    ):
        super().__init__()
        if num_quantizers < 1:
            raise ValueError(f"num_quantizers must be at least 1, got {num_quantizers}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a share of examples, 0 to 1, got {dropout}")
        self.dim = dim
        self.codebooks = nn.ModuleList(codebook(dim) for _ in range(num_quantizers))
        self.codebook_sizes = tuple(stage.codebook_size for stage in self.stages)
        self.dropout = dropout
        self.loss_weights = dict(loss_weights or {})

    @property
    def stages(self) -> list:
        """The codebooks, first stage first."""
        return list(self.codebooks)

    @property
    def averaged(self) -> bool:
        """Whether the codebooks learn by moving averages instead of gradients."""
        return isinstance(self.codebooks[0], EMACodebook)

    def forward(
        self, latents: Tensor, num_quantizers: int | Tensor | None = None, mask: Tensor | None = None
    ) -> Quantized:
        """Quantize `[B, D, F]`; see `Quantizer.forward`."""
        with torch.autocast(latents.device.type, enabled=False):
            batch, _, frames = latents.shape
            if isinstance(num_quantizers, Tensor):
                computed, depth = self.num_quantizers, num_quantizers.repeat_interleave(frames)
            else:
                computed = self.check_depth(num_quantizers)
                depth = torch.full((batch * frames,), computed, device=latents.device)
            inputs = residual = rows(latents.float())
            if mask is not None:
                inputs = residual = torch.where(mask.reshape(-1, 1), inputs, 0.0)
                depth = depth * mask.reshape(-1)
            scale = 1 / (depth > 0).sum().clamp(min=1)
            total, losses, codes = torch.zeros_like(inputs), {}, []
            for index, stage in enumerate(self.stages[:computed]):
                vectors, chosen, errors = stage(residual)
                used = depth > index
                residual = residual - vectors
                total = torch.addcmul(total, vectors, used[:, None].to(vectors.dtype))
                codes.append(chosen.where(used, -1))
                for name, error in errors.items():
                    losses[name] = losses.get(name, 0) + (error * used).sum() * scale
            if self.codebooks[0].straight_through:
                total = straight_through(inputs, total)
            return Quantized(
                columns(total, batch), columns(torch.stack(codes, 1), batch), losses, latents.detach()
            )

    def draw_num_quantizers(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Quantizer dropout: stages that each example of a training batch uses, int64 `[B]`."""
        if self.dropout == 0:
            return None
        drawn = torch.randint(1, self.num_quantizers + 1, (batch,), generator=generator)
        return drawn.where(torch.rand(batch, generator=generator) < self.dropout, self.num_quantizers)

    def encode(self, latents: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Codes `[B, num_quantizers, F]` of latents `[B, D, F]`."""
        with torch.autocast(latents.device.type, enabled=False):
            residual, codes = rows(latents.float()), []
            for stage in self.stages[: self.check_depth(num_quantizers)]:
                codes.append(stage.encode(residual))
                residual = residual - stage.lookup(codes[-1])
            return columns(torch.stack(codes, 1), len(latents))

    def decode(self, codes: Tensor) -> Tensor:
        """Latents `[B, D, F]` of codes `[B, k, F]`, any prefix k of the stages."""
        with torch.autocast(codes.device.type, enabled=False):
            total = self.stages[0].lookup(codes[:, 0])
            for index in range(1, codes.shape[1]):
                total = total + self.stages[index].lookup(codes[:, index])
            return total.permute(0, 2, 1)

    def pool_size(self) -> int:
        """Latents that k-means wants: 16 a code; 0 once initialised."""
        ready = not self.averaged or bool(self.stages[0].initialised)
        return 0 if ready else POOL_FRAMES_PER_CODE * max(self.codebook_sizes)

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Fit stage after stage by k-means to what the stages before left of a pool `[N, D]`."""
        residual = pool.float()
        for stage in self.stages if self.averaged else []:
            stage.initialise(residual)
            # On a GPU sums of the same numbers may differ in their last bits from process to process.
            broadcast(stage.vectors)
            broadcast(stage.usage)
            residual = residual - stage.lookup(stage.encode(residual))

    @torch.no_grad()
    def update(self, quantized: Quantized) -> None:
        """Move the codebooks towards this batch's latents, summed over all processes."""
        if not self.averaged:
            return
        statistics = [stage.statistics(inputs, codes) for stage, inputs, codes in self.cascade(quantized)]
        for stage, total in zip(self.stages, all_reduce_sum(statistics), strict=True):
            stage.update(total)

    @torch.no_grad()
    def revive(self, quantized: Quantized, seed: int) -> Tensor:
        """Replace dead codes by random stage inputs of the joint batch, the same ones on every process."""
        if not self.averaged:
            return super().revive(quantized, seed)
        generator = torch.Generator().manual_seed(seed)
        candidates = []
        for stage, inputs, codes in self.cascade(quantized):
            # A row that another process holds, or that dropped this stage, stays zero here; so does its flag.
            picks = picked_rows(len(inputs) * world_size(), stage.codebook_size, generator) - rank() * len(
                inputs
            )
            local = picks.to(inputs.device).clamp(0, len(inputs) - 1)
            held = ((picks >= 0) & (picks < len(inputs))).to(inputs.device) & (codes[local] >= 0)
            row = torch.cat([inputs[local], torch.ones_like(inputs[:1, :1]).expand(len(local), 1)], 1)
            candidates.append(torch.where(held[:, None], row, 0.0))
        replaced = []
        for stage, candidate in zip(self.stages, all_reduce_sum(candidates), strict=True):
            dead = stage.dead() & (candidate[:, -1] > 0) & torch.isfinite(candidate).all(1)
            stage.replace(dead, candidate[:, :-1])
            replaced.append(dead.sum())
        return torch.stack(replaced)

    def cascade(self, quantized: Quantized) -> Iterator[tuple[EMACodebook, Tensor, Tensor]]:
        """Each stage with its inputs `[N, D]` and codes `[N]` in a batch that was quantized before."""
        residual = rows(quantized.inputs.float())
        for stage, codes in zip(self.stages, rows(quantized.codes).unbind(1), strict=True):
            yield stage, residual, codes
            residual = residual - stage.lookup(codes.clamp(min=0))


def rows(latents: Tensor) -> Tensor:
    """`[B, D, F]` as one row a frame, `[B * F, D]`."""
    return latents.permute(0, 2, 1).reshape(-1, latents.shape[1])


def columns(frames: Tensor, batch: int) -> Tensor:
    """`[B * F, D]` back as `[B, D, F]`."""
    return frames.view(batch, -1, frames.shape[1]).permute(0, 2, 1)


def picked_rows(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` row numbers below `total`, different ones as long as there are enough."""
    return torch.randperm(total, generator=generator).repeat(-(-count // total))[:count]
