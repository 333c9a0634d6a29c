"""Losses between a codec and its discriminator, for a batch or for its parts one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from codec.discriminators.base import Discriminator
from codec.layers.recompute import mean_of_parts
from codec.losses.objective import Objective


def discriminator_losses(
    discriminator: Discriminator, objective: Objective, audio: Tensor, estimate: Tensor, parts: int = 1
) -> Iterator[Tensor]:
    """Yield parts of the discriminator loss of real and reconstructed audio `[B, C, T]`, which sum to it."""
    for real, fake in zip(audio.chunk(parts), estimate.detach().chunk(parts), strict=True):
        outputs = discriminator(torch.cat([real, fake]))
        batch = len(real)
        real_half = [one._replace(logits=one.logits[:batch], features=[]) for one in outputs]
        fake_half = [one._replace(logits=one.logits[batch:], features=[]) for one in outputs]
        yield objective.discriminator_loss(real_half, fake_half) / parts


def generator_losses(
    discriminator: Discriminator, objective: Objective, audio: Tensor, estimate: Tensor, parts: int = 1
) -> dict[str, Tensor]:
    """Adversarial and feature-matching losses of the estimate `[B, C, T]`, within `frozen`."""
    scales = feature_scales(discriminator, objective, audio, parts)

    def compare(audio: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        with parametrize.cached():
            with torch.no_grad():
                real = discriminator(audio)
            return objective.generator_losses(real, discriminator(estimate), scales)

    return mean_of_parts(compare, parts, audio, estimate)


@torch.no_grad()
def feature_scales(
    discriminator: Discriminator, objective: Objective, audio: Tensor, parts: int
) -> list[Tensor] | None:
    """Scales of a relative feature matching for all of a batch `[B, C, T]`; None where it needs none."""
    matching = objective.feature_matching
    if parts == 1 or not matching or not matching.relative or not objective.weights["feature_matching"]:
        return None
    rows = [torch.stack(matching.scales(discriminator(part))) for part in audio.chunk(parts)]
    return list(torch.stack(rows).mean(0))


@contextmanager
def frozen(discriminator: Discriminator) -> Iterator[None]:
    """Compute no gradients of a discriminator's weights, also where the backward pass recomputes it."""
    discriminator.requires_grad_(False)
    try:
        yield
    finally:
        discriminator.requires_grad_(True)
