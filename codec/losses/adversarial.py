"""Adversarial losses on the outputs of several sub-discriminators, and feature matching.

Each loss is a mean over a logit or feature map, in fp32, then a mean or a sum over sub-discriminators.
SoundStream divides the sum over its four sub-discriminators by K = 3. "mean" is the true mean, so that a
weight means the same for any number of them. "sum" is DAC's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from codec.discriminators.base import Outputs

Reduction = Literal["mean", "sum"]


class AdversarialLoss(Protocol):
    """Interface of an adversarial loss; both methods take one `DiscriminatorOutput` per sub-discriminator."""

    def generator(self, fake: Outputs) -> Tensor:
        """Loss of the codec, low for audio that the discriminator takes for real."""
        ...

    def discriminator(self, real: Outputs, fake: Outputs) -> Tensor:
        """Loss of the discriminator, low for real and coded audio that it distinguishes."""
        ...


def check_reduction(reduction: Reduction) -> Reduction:
    """Return `reduction`; ValueError if it is neither "mean" nor "sum"."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum (over sub-discriminators), got {reduction!r}")
    return reduction


def reduce(values: list[Tensor], reduction: Reduction) -> Tensor:
    """Mean or sum of scalars; ValueError without any."""
    if not values:
        raise ValueError(
            "an adversarial loss needs a discriminator: choose one, or a loss without adversarial parts"
        )
    return torch.stack(values).mean() if reduction == "mean" else torch.stack(values).sum()


class Hinge:
    """Hinge loss (arXiv:2107.03312 eq. 1 and 2): max(0, 1 - D) for real and max(0, 1 + D) for coded audio.

    The codec's loss is max(0, 1 - D) as well, as printed by SoundStream and EnCodec, not -D. Logits D
    `[B, ...]` of each sub-discriminator give a scalar; `reduction` is over sub-discriminators.
    """

    def __init__(self, reduction: Reduction = "mean"):
        self.reduction: Reduction = check_reduction(reduction)

    def generator(self, fake: Outputs) -> Tensor:
        """Scalar; 1 for an undecided discriminator (D = 0)."""
        return reduce([functional.relu(1 - one.logits.float()).mean() for one in fake], self.reduction)

    def discriminator(self, real: Outputs, fake: Outputs) -> Tensor:
        """Scalar; 2 for an undecided discriminator (D = 0)."""
        losses = [
            functional.relu(1 - a.logits.float()).mean() + functional.relu(1 + b.logits.float()).mean()
            for a, b in zip(real, fake, strict=True)
        ]
        return reduce(losses, self.reduction)


class LeastSquares:
    """Least-squares loss (LSGAN, arXiv:1611.04076): targets 1 for the logits of real, 0 for coded audio.

    Logits `[B, ...]` of each sub-discriminator give a scalar. Used by HiFi-GAN and by DAC's released code;
    DAC's paper has the hinge loss.
    """

    def __init__(self, reduction: Reduction = "sum"):
        self.reduction: Reduction = check_reduction(reduction)

    def generator(self, fake: Outputs) -> Tensor:
        """Scalar: mean of (1 - D)^2."""
        return reduce([(1 - one.logits.float()).square().mean() for one in fake], self.reduction)

    def discriminator(self, real: Outputs, fake: Outputs) -> Tensor:
        """Scalar: mean of (1 - D(real))^2 plus mean of D(fake)^2."""
        losses = [
            (1 - a.logits.float()).square().mean() + b.logits.float().square().mean()
            for a, b in zip(real, fake, strict=True)
        ]
        return reduce(losses, self.reduction)


class FeatureMatching:
    """L1 distance between a discriminator's feature maps `[B, C, ...]` of real and of coded audio.

    As in SoundStream (arXiv:2107.03312); the result is a scalar.
    `reduction="mean"` averages over maps, then sub-discriminators (SoundStream, EnCodec); "sum" adds all maps
    (DAC). `relative` divides each map's distance by the mean of |D(real)| (EnCodec, arXiv:2210.13438), at
    least by `floor`: features near zero would otherwise raise the loss to tens of thousands. For a part of a
    batch, `scales` are the means of all of it.
    """

    def __init__(self, relative: bool = False, reduction: Reduction = "mean", floor: float = 1e-3):
        if floor <= 0:
            raise ValueError(f"floor must be positive, got {floor}")
        self.relative, self.floor = relative, floor
        self.reduction: Reduction = check_reduction(reduction)

    def __call__(self, real: Outputs, fake: Outputs, scales: Sequence[Tensor] | None = None) -> Tensor:
        """Scalar; gradients reach `fake` alone."""
        remaining = iter(self.scales(real) if scales is None else scales)
        distances = [
            reduce(
                [self.distance(x, y, remaining) for x, y in zip(a.features, b.features, strict=True)],
                self.reduction,
            )
            for a, b in zip(real, fake, strict=True)
        ]
        return reduce(distances, self.reduction)

    def distance(self, real: Tensor, fake: Tensor, scales: Iterator[Tensor]) -> Tensor:
        """Mean absolute difference of one map, relative to the next of `scales` if there is one."""
        real = real.detach().float()
        # The gradient of a mean has the default layout, that of a sum the map's, possibly channels last.
        distance = functional.l1_loss(fake.float(), real, reduction="sum") / real.numel()
        return distance / next(scales).clamp(min=self.floor) if self.relative else distance

    def scales(self, real: Outputs) -> list[Tensor]:
        """Mean of |D(real)| of each map of all sub-discriminators; empty unless `relative`."""
        maps = [one for output in real for one in output.features] if self.relative else []
        return [features.detach().float().abs().mean() for features in maps]
