"""Optimizers, learning-rate schedules, gradient clipping and frozen submodules."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from codec.codebooks.base import Codebook


@dataclass(frozen=True)
class Exponential:
    """Linear warm-up, then decay by `gamma` per step; a pure function of the step, without state.

    DAC (arXiv 2306.06546) decays by 0.999996.
    """

    warmup_steps: int = 0
    gamma: float = 1.0

    def __post_init__(self):
        if self.warmup_steps < 0 or not 0 < self.gamma <= 1:
            raise ValueError(f"warmup_steps must be at least 0 and gamma in (0, 1], got {self}")

    def factor(self, step: int) -> float:
        """Share of the base learning rate at a step, from 0."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * self.gamma**step


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine from 1 to `final` at `total_steps` (None: at the stage's end).

    SGDR (arXiv 1608.03983) without restarts.
    """

    warmup_steps: int = 0
    total_steps: int | None = None
    final: float = 0.1

    def __post_init__(self):
        total = 1 if self.total_steps is None else self.total_steps
        if self.warmup_steps < 0 or total < 1 or not 0 <= self.final <= 1:
            raise ValueError(
                f"warmup_steps must be at least 0, total_steps at least 1 and final in [0, 1], got {self}"
            )

    def factor(self, step: int) -> float:
        """Share of the base learning rate at a step, from 0."""
        progress = min(1.0, step / (self.total_steps or math.inf))
        cosine = self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * cosine


@dataclass(frozen=True)
class Optimization:
    """Optimizer factories of generator and discriminator, one schedule, and a gradient norm limit each.

    `generator` and `discriminator` build an optimizer from parameters. A limit of 0 disables clipping. A
    step trains the discriminator with `discriminator_update_probability` (EnCodec, arXiv 2210.13438: 2/3),
    so that it does not overpower the generator.
    """

    generator: Callable[..., Optimizer]
    discriminator: Callable[..., Optimizer]
    schedule: Exponential | Cosine
    generator_clip: float = 1.0
    discriminator_clip: float = 10.0
    discriminator_update_probability: float = 1.0

    def __post_init__(self):
        if self.generator_clip < 0 or self.discriminator_clip < 0:
            raise ValueError("generator_clip and discriminator_clip must be at least 0 (0 clips nothing)")
        if not 0 < self.discriminator_update_probability <= 1:
            raise ValueError(
                "discriminator_update_probability must be above 0 and at most 1, got "
                f"{self.discriminator_update_probability}; discriminator=none trains without"
            )

    def optimizers(
        self, generator: nn.Module, discriminator: nn.Module | None, half: bool, balanced: bool
    ) -> list[Optimizer]:
        """One optimizer for codec and losses, one for a discriminator; `half` for fp16's loss scaling.

        MisconfigurationException for a balanced loss in fp16.
        """
        if half and balanced:
            raise MisconfigurationException(
                "the balancer takes gradients before fp16's loss scaling, and they underflow to 0: set "
                "trainer.precision=bf16-mixed, or loss.balancer=null"
            )
        # A fused optimizer unscales fp16 gradients itself, too late for clipping.
        options = {"fused": False} if half else {}
        players = [(self.generator, generator), (self.discriminator, discriminator)]
        return [make(module.parameters(), **options) for make, module in players if module is not None]

    def updates_discriminator(self, seed: int) -> bool:
        """True if the step with this seed trains the discriminator; the same on all processes."""
        return float(np.random.default_rng(seed).random()) < self.discriminator_update_probability


def set_learning_rate(optimizer: Optimizer, factor: float, base: float | None = None) -> None:
    """Set the learning rate to `factor` times `base`, None for the optimizer's own."""
    for group in optimizer.param_groups:
        group["lr"] = (optimizer.defaults["lr"] if base is None else base) * factor


def prepared(given: Any, factor: float, base: float | None) -> list[LightningOptimizer]:
    """Lightning's optimizers at `factor` times their learning rates, `base` for the first's if not None."""
    optimizers: list[LightningOptimizer] = given if isinstance(given, list) else [given]
    for optimizer, rate in zip(optimizers, (base, None), strict=False):
        set_learning_rate(optimizer.optimizer, factor, rate)
    for optimizer in optimizers[1:]:
        # Lightning counts each optimizer's steps; max_steps, checkpoints and logs must count batches.
        optimizer._on_before_step = optimizer._on_after_step = do_nothing
    return optimizers


def backward(module: LightningModule, losses: Iterable[Tensor], parts: int) -> Tensor:
    """Backpropagate a sum of `parts` losses, each before the next is computed; returns the sum, detached.

    DDP reduces the sum of the gradients once, in the last backward pass.
    """
    total = torch.zeros((), device=module.device)
    for number, loss in enumerate(losses, 1):
        waits = getattr(module.trainer.strategy, "block_backward_sync", nullcontext)
        with waits() if number < parts else nullcontext():
            module.manual_backward(loss)
        total = total + loss.detach()
    return total


def do_nothing() -> None:
    """Replacement for hooks that count steps."""


def learns(module: nn.Module) -> bool:
    """True if any of a module's parameters requires gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())


def clip_gradients(optimizer: Optimizer, limit: float) -> Tensor:
    """Scale an optimizer's gradients to a total norm of at most `limit`; returns the norm before clipping."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, limit if limit else math.inf)


def freeze_submodules(codec: nn.Module, names: Sequence[str]) -> None:
    """Require gradients of all submodules but `names`; ValueError for unknown names or if none remains.

    Frozen codebooks are not updated either, see `Codebook.frozen`.
    """
    codec.requires_grad_(True)
    modules = dict(codec.named_modules())
    for name in names:
        if not name or name not in modules:
            close = difflib.get_close_matches(name, modules, 1) or ["autoencoder.encoder"]
            choices = ", ".join(part for part in modules if part and part.count(".") < 2)
            raise ValueError(
                f"freeze: the codec has no part {name!r}; did you mean {close[0]}? "
                f"Parts: {choices}, and their submodules"
            )
        modules[name].requires_grad_(False)
    for name, module in modules.items():
        if isinstance(module, Codebook):
            module.frozen = any(f"{name}.".startswith(f"{part}.") for part in names)
    if not learns(codec):
        raise ValueError(f"freeze: {list(names)} leaves nothing that gradients train")
