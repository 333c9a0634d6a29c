"""Training objective: named losses and their weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from codec.discriminators.base import Outputs
from codec.layers.recompute import mean_of_parts
from codec.losses.adversarial import AdversarialLoss, FeatureMatching
from codec.losses.balancer import Balancer
from codec.losses.base import Forward, Loss
from codec.system.distributed import world_size


class LossGroup(nn.Module):
    """Several losses of one computation: a scalar for each of `names`, each with its own weight."""

    names: tuple[str, ...]

    def forward(
        self, estimate: Tensor, target: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Compare `[B, C, T]` with `[B, C, T]`; all randomness comes from a CPU `generator`."""
        raise NotImplementedError


class Objective(nn.Module):
    """Reconstruction losses by name, an adversarial loss, feature matching, and a weight for each.

    A reconstruction loss compares two audio tensors `[B, C, T]`, or is a `Loss` of the whole forward pass.
    Each is a scalar, a mean over examples. The sum is SoundStream's (arXiv 2107.03312), the balanced one
    EnCodec's (2210.13438). The keys of `weights` are the keys of `reconstruction` (of a `LossGroup` its
    names), "adversarial" and "feature_matching". A loss of weight 0 is not computed. `balancer`, a factory
    called with the names, scales gradients instead of losses. The quantizer has weights of its own for its
    losses. Raises ValueError with a line for every weight without a loss, loss without a weight
    and weight that is negative or not finite.
    """

    def __init__(
        self,
        reconstruction: dict[str, nn.Module],
        weights: dict[str, float],
        adversarial: AdversarialLoss | None = None,
        feature_matching: FeatureMatching | None = None,
        balancer: Callable[[Sequence[str]], Balancer] | None = None,
    ):
        super().__init__()
        others = {"adversarial": adversarial, "feature_matching": feature_matching}
        problems = list(find_problems(reconstruction, weights, others))
        if problems:
            raise ValueError("\n".join(problems))
        self.reconstruction = nn.ModuleDict(reconstruction)
        self.weights = dict(weights)
        self.adversarial, self.feature_matching = adversarial, feature_matching
        self.unbalanced = {name for name, loss in reconstruction.items() if isinstance(loss, Loss)}
        balanced = [name for name in weights if name not in self.unbalanced]
        self.balancer = balancer(balanced) if balancer else None

    @property
    def needs_discriminator(self) -> bool:
        """True if a loss with a weight above 0 needs a discriminator."""
        return has_adversarial_weight(self.weights)

    def reweighted(self, weights: Mapping[str, float]) -> dict[str, float]:
        """All weights, some replaced by `weights`; ValueError as in the constructor."""
        merged = {**self.weights, **weights}
        others = {"adversarial": self.adversarial, "feature_matching": self.feature_matching}
        problems = list(find_problems(dict(self.reconstruction.items()), merged, others))
        if problems:
            raise ValueError("\n".join(problems))
        return merged

    def reconstruction_losses(self, outputs: Forward, parts: int = 1) -> dict[str, Tensor]:
        """Unweighted scalar per name, of all losses but those of a discriminator.

        Losses of audio get `parts` of the batch one after the other, a `Loss` all of it.
        """
        losses: dict[str, Tensor] = {}
        for name, loss in self.reconstruction.items():
            if not any(self.weights[key] > 0 for key in names_of(name, loss)):
                continue
            if isinstance(loss, Loss):
                losses[name] = loss(outputs)
            else:
                compare = comparison(name, loss, outputs.generator)
                losses |= mean_of_parts(compare, parts, outputs.estimate, outputs.target)
        return {name: loss for name, loss in losses.items() if self.weights[name] > 0}

    def generator_losses(
        self, real: Outputs, fake: Outputs, scales: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Adversarial and feature-matching losses, unweighted; empty without a discriminator.

        `scales`: see `FeatureMatching`.
        """
        losses = {}
        if self.adversarial and fake and self.weights["adversarial"] > 0:
            losses["adversarial"] = self.adversarial.generator(fake)
        if self.feature_matching and fake and self.weights["feature_matching"] > 0:
            losses["feature_matching"] = self.feature_matching(real, fake, scales)
        return losses

    def discriminator_loss(self, real: Outputs, fake: Outputs) -> Tensor:
        """Discriminator loss, a scalar; ValueError without an adversarial loss or a discriminator."""
        if self.adversarial is None:
            raise ValueError("this objective has no adversarial loss to train a discriminator with")
        return self.adversarial.discriminator(real, fake)

    def total(self, losses: Mapping[str, Tensor], estimate: Tensor | None = None) -> Tensor:
        """Weighted sum of `losses`, a scalar; 0 without any. With a balancer `estimate` is their input.

        The gradient of the balanced total at the estimate is the balanced gradient.
        """
        if self.balancer and estimate is not None:
            balanced = {name: loss for name, loss in losses.items() if name not in self.unbalanced}
            gradient = self.balancer.balance(balanced, self.weights, estimate)
            # Examples are summed, not averaged as in other losses, but DDP averages the processes' gradients.
            total = (estimate * gradient).sum() * world_size()
            losses = {name: loss for name, loss in losses.items() if name in self.unbalanced}
            return total + self.weighted(losses) if losses else total
        return self.weighted(losses)

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum of losses times their weights, a scalar."""
        return sum((self.weights[name] * loss for name, loss in losses.items()), start=torch.zeros(()))


def comparison(
    name: str, loss: nn.Module, generator: torch.Generator | None
) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Function of estimate and target `[B, C, T]` to losses by name, with the same draws in every call."""
    state = generator.get_state() if generator else None

    def compare(estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        if not isinstance(loss, LossGroup):
            return {name: loss(estimate, target)}
        if generator is not None and state is not None:
            generator.set_state(state)
        return loss(estimate, target, generator)

    return compare


def names_of(name: str, loss: object) -> tuple[str, ...]:
    """Names of the scalars of one reconstruction loss: of a `LossGroup` its own, otherwise `name`."""
    return loss.names if isinstance(loss, LossGroup) else (name,)


def has_adversarial_weight(weights: Mapping[str, float]) -> bool:
    """Test for a weight above 0 of a loss that needs a discriminator."""
    return any(weights.get(name, 0) > 0 for name in ("adversarial", "feature_matching"))


def find_problems(
    reconstruction: Mapping[str, object], weights: Mapping[str, float], others: Mapping[str, object]
) -> Iterator[str]:
    """Yield one line for each error in the names or weights."""
    reconstruction_names = [key for name, loss in reconstruction.items() for key in names_of(name, loss)]
    names = [*reconstruction_names, *(name for name, loss in others.items() if loss is not None)]
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            yield f"weights.{name}: must be 0 or a positive number, got {weight}"
        if name in names:
            continue
        if name in others:
            yield f"weights.{name}: no loss of that name is computed; set {name}, or remove the weight"
        else:
            matches = difflib.get_close_matches(name, names, 1)
            yield f"weights.{name}: nothing produces this loss; " + (
                f"did you mean {matches[0]}?" if matches else f"known are {', '.join(names) or 'none'}"
            )
    for name in names:
        if name not in weights:
            yield f"weights.{name}: missing; {name} is computed, give it a weight (0 switches it off)"
    for name in sorted(set(reconstruction_names) & set(others)):
        yield f"reconstruction.{name}: this name is taken by the discriminator's losses; choose another"
    for name in sorted({name for name in reconstruction_names if reconstruction_names.count(name) > 1}):
        yield f"reconstruction: two losses are named {name}; leave one out"
