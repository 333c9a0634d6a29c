"""Optimizers, learning-rate schedules and clipping of the two players; what does not learn at all."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Exponential:
    """Linear warm-up, then `gamma` per step: a pure function of the step, so a resume has nothing to load."""

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
    """Linear warm-up, then half a cosine from 1 down to `final` at `total_steps`, None for a stage's last."""

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
    """How generator and discriminator learn: optimizer factories, one schedule, a gradient norm limit each.

    `generator` and `discriminator` make an optimizer from parameters. A limit of 0 clips nothing. A step
    trains the discriminator with `discriminator_update_probability` (EnCodec, arXiv 2210.13438: 2/3), so
    that it does not win.
    """

    generator: Callable[[Iterable[nn.Parameter]], Optimizer]
    discriminator: Callable[[Iterable[nn.Parameter]], Optimizer]
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

    def updates_discriminator(self, seed: int) -> bool:
        """Whether the step with this seed trains the discriminator: the same answer on all processes."""
        return float(np.random.default_rng(seed).random()) < self.discriminator_update_probability


def set_learning_rate(optimizer: Optimizer, factor: float, base: float | None = None) -> None:
    """Put a schedule's factor on a base learning rate, None for the optimizer's own."""
    for group in optimizer.param_groups:
        group["lr"] = (optimizer.defaults["lr"] if base is None else base) * factor


def learns(module: nn.Module) -> bool:
    """Whether gradients train any of a module's parameters."""
    return any(parameter.requires_grad for parameter in module.parameters())


def clip_gradients(optimizer: Optimizer, limit: float) -> Tensor:
    """Scale an optimizer's gradients down to a total norm of `limit`; returns the norm before."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, limit if limit else math.inf)


def freeze_submodules(codec: nn.Module, names: Sequence[str]) -> None:
    """Let gradients train all of a codec but these parts; ValueError for unknown ones or if none is left."""
    codec.requires_grad_(True)
    modules = {name: module for name, module in codec.named_modules() if not name.startswith("quantizer.")}
    for name in names:
        if not name or name not in modules:
            close = difflib.get_close_matches(name, modules, 1) or ["autoencoder.encoder"]
            known = ", ".join(known for known in modules if known and known.count(".") < 2)
            raise ValueError(
                f"freeze: the codec has no part {name!r}; did you mean {close[0]}? It has {known}, and theirs"
            )
        modules[name].requires_grad_(False)
    if not learns(codec):
        raise ValueError(f"freeze: {list(names)} leaves nothing that gradients train")
