"""Activations by name, and Snake with a memory-efficient gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from codec.layers.base import Context, Layer
from codec.layers.streaming import Pointwise, StreamingLayer


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """Periodic activation `x + sin²(αx) / α`, computed in one temporary; `x` where α is 0."""
    return (alpha * x).sin_().square_().mul_(1 / (alpha + 1e-9)).add_(x)


class SnakeGradient(torch.autograd.Function):
    """`snake` for `[B, C, T]` and α `[1, C, 1]` that stores only its input and output for the gradients.

    Both gradients follow from sin(2αx): dy/dx = 1 + sin(2αx) and α dy/dα = x sin(2αx) - (y - x). The next
    convolution stores y anyway, so a Snake costs one tensor of memory instead of five.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        """Activate."""
        y = snake(x, alpha)
        ctx.save_for_backward(x, y, alpha)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and α."""
        x, y, alpha = ctx.saved_tensors
        slope = (2 * alpha * x).sin_()
        alphas = (x - y).addcmul_(x, slope).mul_(gradient).sum((0, 2), keepdim=True) / (alpha + 1e-9)
        return slope.mul_(gradient).add_(gradient), alphas


class TimeMajorSnake(nn.Module):
    """`Snake` of `[B, T, C]` with α `[1, C, 1]`."""

    alpha: Tensor

    def __init__(self, alpha: Tensor):
        super().__init__()
        self.register_buffer("alpha", alpha.detach().transpose(1, 2).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Activate."""
        return x + torch.sin(self.alpha * x).square() * (1 / (self.alpha + 1e-9))


class Snake(Layer):
    """Periodic activation `x + sin²(αx) / α` with one α per channel (arXiv 2006.08195, as in DAC).

    Computed in fp32 at least, also for bf16 and fp16 inputs.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Activate `[B, C, T]`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        # A compiler fuses the formula and its gradient, and an exported graph needs no gradient.
        plain = torch.compiler.is_compiling() or not torch.is_grad_enabled()
        return (snake if plain else SnakeGradient.apply)(x.to(wide), self.alpha.to(wide)).to(x.dtype)

    @property
    def context(self) -> Context:
        """No other samples."""
        return Context(0, 0)

    def stream(self) -> StreamingLayer:
        """Snake of `[B, T, C]`."""
        return Pointwise(TimeMajorSnake(self.alpha))


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "elu": lambda channels: nn.ELU(),
    "leaky_relu": lambda channels: nn.LeakyReLU(0.2),
    "snake": Snake,
}
