"""Losses between a codec and its discriminator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from codec.discriminators.base import Discriminator
from codec.losses.objective import Objective


def discriminator_loss(
    discriminator: Discriminator, objective: Objective, audio: Tensor, estimate: Tensor
) -> Tensor:
    """Discriminator loss on real and reconstructed audio `[B, C, T]`, in one batch."""
    judgements = discriminator(torch.cat([audio, estimate.detach()]))
    batch = len(audio)
    real = [one._replace(logits=one.logits[:batch], features=[]) for one in judgements]
    fake = [one._replace(logits=one.logits[batch:], features=[]) for one in judgements]
    return objective.discriminator_loss(real, fake)


def generator_losses(
    discriminator: Discriminator, objective: Objective, audio: Tensor, estimate: Tensor
) -> dict[str, Tensor]:
    """Adversarial and feature-matching losses of the estimate `[B, C, T]`; the discriminator is frozen."""
    discriminator.requires_grad_(False)
    try:
        with parametrize.cached():
            with torch.no_grad():
                real = discriminator(audio)
            return objective.generator_losses(real, discriminator(estimate))
    finally:
        discriminator.requires_grad_(True)
