"""The adversarial training step, written once for every codec."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from codec.data.crops import Batch
from codec.data.module import AudioDataModule
from codec.discriminators.base import Discriminator
from codec.layers.recompute import check_examples_apart, recompute
from codec.losses.objective import Objective
from codec.metrics.signal import SCORES
from codec.model.codec import Codec
from codec.quantizers.base import Bottleneck, Quantized
from codec.system.distributed import rank, world_size
from codec.training.adversary import discriminator_losses, frozen
from codec.training.adversary import generator_losses as adversarial_losses
from codec.training.average import follow
from codec.training.checkpoints import forget_best
from codec.training.compilation import compile_networks
from codec.training.optimization import Optimization, backward, clip_gradients, freeze_submodules, prepared
from codec.training.skipped import report_skipped
from codec.training.stages import (
    ENDLESS,
    Stage,
    check_stages,
    locate,
    plain,
    reconstruct,
    stand_ins,
    start_quantizer,
)
from codec.training.step import Step


class CodecTraining(lightning.LightningModule):
    """Trains a codec on reconstruction losses and, from step `adversarial_from`, against a discriminator.

    Each batch `[B, C, T]` is one generator forward to `[B, C, T]`, one discriminator step on its detached
    output, one generator step (SoundStream, arXiv 2107.03312), one codebook update and one `global_step`.
    All random draws are seeded with the data's seed and the step: a resumed run repeats an uninterrupted
    one. Submodules in `freeze` are not trained; a quantizer is frozen as a whole. With `stages`, `freeze` and
    the discriminator are set per stage, and each stage begins with fresh optimizers and averaged weights.
    `accumulate` parts of a batch pass the networks one after the other, in the memory of one part.
    `checkpoint_activations` recomputes the networks' blocks in the backward pass. Neither changes a step.
    """

    def __init__(
        self,
        codec: Codec,
        discriminator: Discriminator,
        objective: Objective,
        optimization: Optimization,
        *,
        adversarial_from: int = 0,
        average_decay: float = 0.999,
        revive_every: int = 10,
        max_skipped: int = 50,
        compile: bool | str = False,
        accumulate: int = 1,
        checkpoint_activations: bool = False,
        freeze: Sequence[str] = (),
        stages: Sequence[Stage] = (),
    ):
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # check_same_training compares, except for channels of later stages
        counts = revive_every, max_skipped, accumulate
        if min(adversarial_from + 1, *counts) < 1 or not 0 <= average_decay < 1:
            raise ValueError(
                "adversarial_from must be at least 0, revive_every, max_skipped, accumulate at least 1 and "
                f"average_decay in [0, 1), got {adversarial_from}, {counts} and {average_decay}"
            )
        if stages and (adversarial_from or freeze):
            raise ValueError(
                "stages set adversarial and freeze themselves: set adversarial_from=0 and freeze=[]"
            )
        self.has_discriminator = any(True for _ in discriminator.parameters())
        codec.quantizer.check_loss_weights()
        only_stage = Stage("", ENDLESS, freeze=freeze, adversarial=self.has_discriminator)
        self.stages = list(stages) or [only_stage]
        check_stages(self.stages, codec, objective, self.has_discriminator)
        self.schedules = [stage.course(optimization.schedule) for stage in self.stages]
        self.weights = [objective.reweighted(stage.weights or {}) for stage in self.stages]
        self.number, self.place = 0, 0  # index of the stage, and of the step within it
        self.codec = codec
        self.average = copy.deepcopy(codec).requires_grad_(False).eval()
        self.discriminator = discriminator
        self.objective = objective
        self.optimization = optimization
        self.adversarial_from = adversarial_from
        self.average_decay = average_decay
        self.revive_every, self.max_skipped, self.accumulate = counts
        self.stand_ins = stand_ins(self.stages, codec.quantizer)
        self.skipped_in_a_row = 0
        self.register_buffer("skipped", torch.tensor(0))
        self.gradient_norms: dict[str, float] = {}
        self.step_ended = time.monotonic()
        for network in (codec.autoencoder, discriminator):
            if accumulate > 1 or checkpoint_activations:
                check_examples_apart(network)
            if checkpoint_activations:
                recompute(network)
        self.has_graphs = compile_networks(codec, discriminator, compile)

    @property
    def stage(self) -> Stage:
        """Current training stage."""
        return self.stages[self.number]

    @property
    def quantizer(self) -> Bottleneck:
        """Bottleneck of the current stage."""
        return self.quantizer_of(self.stage, self.codec)

    def quantizer_of(self, stage: Stage, codec: Codec) -> Bottleneck:
        """Bottleneck of a stage: the codec's quantizer, or the module that replaces it without codes."""
        coded = stage.bottleneck == "codes"
        return codec.quantizer if coded else cast(Bottleneck, self.stand_ins[stage.bottleneck])

    @property
    def audio_data(self) -> AudioDataModule:
        """Data module of the trainer."""
        return cast(AudioDataModule, cast(Any, self.trainer).datamodule)

    def configure_optimizers(self) -> list[Optimizer]:
        """One optimizer for the codec and, if there is one, one for the discriminator."""
        discriminator = self.discriminator if self.has_discriminator else None
        half = self.trainer.precision == "16-mixed"
        generator = torch.nn.ModuleList([self.codec, self.objective])  # a loss may learn a projection
        return self.optimization.optimizers(generator, discriminator, half, bool(self.objective.balancer))

    def on_train_start(self) -> None:
        """Enter the stage of the current step."""
        self.enter_stage()
        self.step_ended = time.monotonic()

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Enter the next stage at its first step."""
        number, self.place = self.locate(self.global_step)
        if number != self.number:
            self.enter_stage()

    def locate(self, step: int) -> tuple[int, int]:
        """Index of the stage that contains a step of the run, and the step within it."""
        return locate([stage.steps for stage in self.stages], step)

    def enter_stage(self) -> None:
        """Freeze and weight as the stage requires; at its first step reset optimizers, balancer, average."""
        self.number, self.place = self.locate(self.global_step)
        freeze_submodules(self.codec, self.stage.frozen)
        self.objective.weights = self.weights[self.number]
        if self.stage.teaches_quantizer and self.quantizer.pool_size():
            start_quantizer(self.quantizer, self.codec, self.audio_data)
            self.average.load_state_dict(self.codec.state_dict())
        if self.place:
            return
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        if self.objective.balancer:
            self.objective.balancer.restart()
        # Frozen parts of the average must equal those with which the other parts are trained.
        self.average.load_state_dict(self.codec.state_dict())
        forget_best(self.trainer.checkpoint_callbacks)

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Record the end of a step, after checkpoints are saved."""
        self.step_ended = time.monotonic()

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """Train generator and discriminator on one batch."""
        if self.has_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        optimizers = self.players()
        fooling = self.stage.adversarial and self.global_step >= self.adversarial_from
        noise = torch.Generator(self.device).manual_seed(self.step_seed() + rank())
        depth = self.draw_num_quantizers(len(batch.audio))
        outputs = reconstruct(self.codec, self.quantizer, batch, depth, noise, self.accumulate)
        target, estimate, quantized = outputs.target, outputs.estimate, outputs.quantized
        assert quantized is not None
        losses: dict[str, Tensor] = {}
        finite = True
        players = self.discriminator, self.objective, target, estimate, self.accumulate
        if fooling and self.optimization.updates_discriminator(self.step_seed()):
            losses["discriminator"], finite = self.descend(
                optimizers[1], discriminator_losses(*players), self.accumulate
            )
        draws = torch.Generator().manual_seed(self.step_seed())
        outputs = replace(outputs, step=self.global_step, generator=draws)
        with frozen(self.discriminator):
            generator_losses = self.objective.reconstruction_losses(outputs, self.accumulate)
            if fooling:
                generator_losses |= adversarial_losses(*players)
            total = self.generator_total(generator_losses, estimate, quantized)
            finite = self.descend(optimizers[0], [total])[1] and finite
        losses |= generator_losses | quantized.losses
        replaced = self.after_step(quantized) if finite else self.count_skipped(losses, batch)
        self.audio_data.advance()
        detached = {name: loss.detach() for name, loss in losses.items()}
        return {"step": Step(detached, quantized.inputs, quantized.codes, replaced, finite)}

    def players(self) -> list[LightningOptimizer]:
        """Optimizers at this step's learning rate; only the generator's steps are counted."""
        factor = self.schedules[self.number].factor(self.place)
        return prepared(self.optimizers(), factor, self.stage.lr)

    def draw_num_quantizers(self, batch_size: int) -> Tensor | None:
        """Quantizer dropout: a `num_quantizers` `[B]` for this process's part of the joint batch."""
        generator = torch.Generator().manual_seed(self.step_seed())
        depths = self.codec.quantizer.draw_num_quantizers(batch_size * world_size(), generator)
        start = rank() * batch_size
        own = slice(start, start + batch_size)
        return None if depths is None else depths[own].to(self.device, non_blocking=True)

    def step_seed(self) -> int:
        """Seed of this step's random draws, the same on all processes."""
        return int(np.random.SeedSequence((self.audio_data.seed, self.global_step)).generate_state(1)[0])

    def generator_total(self, losses: dict[str, Tensor], estimate: Tensor, quantized: Quantized) -> Tensor:
        """Loss that the generator minimizes: the objective's and the quantizer's."""
        total = self.objective.total(losses, estimate)
        for name, loss in quantized.losses.items():
            total = total + self.codec.quantizer.loss_weights[name] * loss
        return total

    def descend(
        self, optimizer: LightningOptimizer, losses: Iterable[Tensor], parts: int = 1
    ) -> tuple[Tensor, bool]:
        """Take one optimizer step on a sum of `parts` losses; False if skipped, as a gradient was not finite.

        Returns the sum, too.
        """
        optimizer.zero_grad()
        total = backward(self, losses, parts)
        optimizer.step()
        return total, bool(np.isfinite(self.gradient_norms[self.player_name(optimizer.optimizer)]))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip an optimizer's gradients; drop them if not finite, so that the step changes nothing."""
        name = self.player_name(optimizer)
        limit = getattr(self.optimization, f"{name}_clip")
        # Gradients are already reduced over the processes, so all of them take the same branch.
        self.gradient_norms[name] = norm = float(clip_gradients(optimizer, limit))
        if not np.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)

    def player_name(self, optimizer: Optimizer) -> str:
        """Name of the network that an optimizer trains: `generator` or `discriminator`."""
        return "generator" if optimizer is self.trainer.optimizers[0] else "discriminator"

    @torch.no_grad()
    def after_step(self, quantized: Quantized) -> Tensor | None:
        """Update codebooks and averaged weights; returns the number of revived codes, see `Step`."""
        replaced = self.update_quantizer(quantized) if self.stage.teaches_quantizer else None
        steps = self.place + 1
        follow(self.average, self.codec, min(self.average_decay, steps / (steps + 10)))
        self.skipped_in_a_row = 0
        return replaced

    def update_quantizer(self, quantized: Quantized) -> Tensor | None:
        """Update the codebooks with one batch; every `revive_every` steps, revive dead codes."""
        self.quantizer.update(quantized)
        revives = self.stage.bottleneck == "codes" and self.global_step % self.revive_every == 0
        return self.quantizer.revive(quantized, self.step_seed()) if revives else None

    def count_skipped(self, losses: dict[str, Tensor], batch: Batch) -> None:
        """Count and report a skipped step; TrainingFailed after too many in a row."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        files = (path for number in batch.numbers.tolist() for path in self.audio_data.source(number))
        report_skipped(self.global_step, losses, files, self.skipped_in_a_row, self.max_skipped)

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Score the averaged codec on validation clips; returns the reconstruction `[B, C, T]`."""
        target = batch.target
        trained = self.stages[self.locate(max(self.global_step - 1, 0))[0]]
        quantizer = self.quantizer_of(trained, self.average)
        estimate = reconstruct(self.average, quantizer, batch).estimate.float()
        for metric in SCORES:
            # For best.ckpt; Telemetry logs it, at the step in the names of samples and checkpoints.
            mean = metric.score(estimate, target, self.codec.sample_rate).mean()
            how: dict[str, Any] = {"sync_dist": True, "on_epoch": True, "logger": False}
            self.log(f"valid/{metric.name}", mean, batch_size=len(target), **how)
        return estimate

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's plain config, for `codec.load`, and the stages."""
        checkpoint["model"] = self.codec.config
        checkpoint["stages"] = plain(self.stages)
