"""Loss balancer: a weight is a loss's share of the gradient at the audio, independent of the loss's scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from codec.system.distributed import all_reduce_sum, world_size

TINY = 1e-12


class Balancer(nn.Module):
    """EnCodec's balancer (arXiv:2210.13438): g~_i = R * w_i / sum(w) * g_i / <||g_i||>.

    Scalar losses give one gradient `[B, C, T]`; g_i is that of loss i at the decoder's output. `<||g_i||>` is
    the average norm of one example's gradient, over the batch, all processes and, exponentially with `decay`
    and bias correction, over steps. R is `total_norm`. The averages are buffers, so they survive a resume.
    Each loss costs one backward pass through the discriminator.

        gradient = balancer.balance(losses, weights, audio)
        audio.backward(gradient)
    """

    def __init__(self, names: Sequence[str], total_norm: float = 1.0, decay: float = 0.999):
        super().__init__()
        if total_norm <= 0 or not 0 <= decay < 1:
            raise ValueError(f"need total_norm > 0 and 0 <= decay < 1, got {total_norm} and {decay}")
        self.total_norm, self.decay = total_norm, decay
        for name in names:
            self.register_buffer(f"norm_{name}", torch.zeros(2))  # decayed sum of norms, and of ones

    def balance(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], output: Tensor) -> Tensor:
        """Combined gradient of the scalar `losses` at `output` `[B, C, T]`; updates the averages.

        Weights are relative to the sum over `losses`, so a loss may join later. A gradient that is not finite
        is returned, for the caller to skip the step, but never enters the averages.
        """
        names = [name for name in losses if weights[name] > 0]
        if not names:
            return torch.zeros_like(output)
        gradients = [
            torch.autograd.grad(losses[name], output, retain_graph=True)[0].float() for name in names
        ]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1).mean() for g in gradients])
        norms = all_reduce_sum([norms])[0] / world_size()
        combined = torch.zeros_like(output, dtype=torch.float32)
        for name, gradient, norm in zip(names, gradients, norms.unbind(), strict=True):
            share = weights[name] / sum(weights[name] for name in names)
            combined = combined + gradient * (self.total_norm * share / self.track(name, norm))
        return combined.to(output.dtype)

    def restart(self) -> None:
        """Reset the averages before gradients of another scale."""
        for average in self.buffers():
            average.zero_()

    def track(self, name: str, norm: Tensor) -> Tensor:
        """Update the average norm of one loss and return it; a norm that is not finite is left out."""
        average = self.get_buffer(f"norm_{name}")
        next_average = self.decay * average + torch.stack([norm, torch.ones_like(norm)])
        average.copy_(torch.where(norm.isfinite(), next_average, average))
        return self.average(name)

    def average(self, name: str) -> Tensor:
        """Average gradient norm of one loss, a scalar for the logs."""
        total, steps = self.get_buffer(f"norm_{name}").unbind()
        return (total / steps.clamp(min=TINY)).clamp(min=TINY)
