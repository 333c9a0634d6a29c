"""Convolutions that keep `T` a whole number of frames, and the small blocks built from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm as apply_weight_norm


def split_padding(total: int, causal: bool) -> tuple[int, int]:
    """Samples to add before and after: all before when causal, else centred (the odd one before)."""
    left = total if causal else total - total // 2
    return left, total - left


class Conv1d(nn.Module):
    """Convolution `[B, C, T] -> [B, C', T / stride]` with zero padding, on the past alone when causal.

    `T` has to be a multiple of `stride`; `Codec` pads audio to whole frames. Zeros, not reflection, because
    reflected samples come from the future and a stream does not have them.
    """

    conv: nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = True,
        weight_norm: bool = False,
    ):
        super().__init__()
        left, right = split_padding((kernel_size - 1) * dilation + 1 - stride, causal)
        self.left, self.right = left, right
        # The convolution pads without a copy; fewer than stride more zeros at the end meet no kernel.
        inner = left if 0 <= left - right < stride else 0
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, inner, dilation)
        self.conv = conv
        if weight_norm:
            apply_weight_norm(conv)
        self.padding = (0, 0) if inner else (left, right)

    def forward(self, audio: Tensor) -> Tensor:
        """Convolve `[B, C, T]`."""
        return self.conv(functional.pad(audio, self.padding) if any(self.padding) else audio)


class ConvTranspose1d(nn.Module):
    """Transposed convolution `[B, C, F] -> [B, C', F * stride]`; causal means no output waits for the future.

    Trims exactly `kernel_size - stride` samples, so that odd strides keep their length (DAC's release loses
    a sample there).
    """

    conv: nn.ConvTranspose1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        causal: bool = True,
        weight_norm: bool = False,
    ):
        super().__init__()
        surplus = kernel_size - stride
        left, right = (0, surplus) if causal else split_padding(surplus, causal)
        self.left = left
        # The convolution's own padding trims both ends alike, its output_padding takes back what is too much.
        inner = left if 0 <= left - right < stride else 0
        conv = nn.ConvTranspose1d(
            in_channels, out_channels, kernel_size, stride, inner, left - right if inner else 0
        )
        self.conv = conv
        if weight_norm:
            apply_weight_norm(conv)
        self.trim = (0, 0) if inner else (left, right)

    def forward(self, latents: Tensor) -> Tensor:
        """Upsample `[B, C, F]`."""
        output = self.conv(latents)
        left, right = self.trim
        return output[..., left : output.shape[-1] - right]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` of `[..., K]` and weight `[N, K]`, without gradient.

    In float32 on a CPU oneDNN is up to twice as fast as the library behind `torch.nn.functional.linear`, and
    as precise; below some million products it is not, because it lays out the weights anew for every call.
    """
    plain = x.numel() * len(weight) < 2**20 or x.device.type != "cpu" or x.dtype != torch.float32
    if plain or torch.compiler.is_compiling() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """Periodic activation `x + sin²(αx) / α`, computed in one temporary; `x` where α is 0."""
    return (alpha * x).sin_().square_().mul_(1 / (alpha + 1e-9)).add_(x)


class SnakeGradient(torch.autograd.Function):
    """`snake` for `[B, C, T]` and α `[1, C, 1]` that keeps its input and output alone for the gradients.

    Both follow from sin(2αx): dy/dx = 1 + sin(2αx) and α dy/dα = x sin(2αx) - (y - x). The next convolution
    keeps y anyway, so a Snake costs one tensor of memory instead of five.
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


class Snake(nn.Module):
    """Periodic activation `x + sin²(αx) / α` with one α per channel (arXiv 2006.08195, as in DAC).

    Computed in fp32 at least, also for bf16 and fp16 inputs.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Activate `[B, C, T]`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        # A compiler fuses the formula and its gradient by itself, and what is exported needs no gradient.
        plain = torch.compiler.is_compiling() or not torch.is_grad_enabled()
        return (snake if plain else SnakeGradient.apply)(x.to(wide), self.alpha.to(wide)).to(x.dtype)


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "elu": lambda channels: nn.ELU(),
    "leaky_relu": lambda channels: nn.LeakyReLU(0.2),
    "snake": Snake,
}


class LSTM(nn.Module):
    """Recurrent layers over frames with a skip connection, `[B, C, F] -> [B, C, F]` (EnCodec, §3.1)."""

    def __init__(self, channels: int, num_layers: int):
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Run over the frames of `[B, C, F]`."""
        frames = latents.permute(2, 0, 1)
        return (self.lstm(frames)[0] + frames).permute(1, 2, 0)


class Layers:
    """How every layer of one network is made: causal or centred, weight-normalised or not, one activation."""

    def __init__(self, causal: bool = True, weight_norm: bool = False, activation: str = "elu"):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = ACTIVATIONS[activation]
        self.style = {"causal": causal, "weight_norm": weight_norm}

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, **options: int) -> Conv1d:
        """Make a convolution; options are `stride` and `dilation`."""
        return Conv1d(in_channels, out_channels, kernel_size, **options, **self.style)

    def upsample(self, in_channels: int, out_channels: int, stride: int) -> ConvTranspose1d:
        """Make a transposed convolution with the kernel of twice its stride that all SEANets use."""
        return ConvTranspose1d(in_channels, out_channels, 2 * stride, stride=stride, **self.style)

    def downsample(self, in_channels: int, out_channels: int, stride: int) -> Conv1d:
        """Make a strided convolution with a kernel of twice its stride."""
        return self.conv(in_channels, out_channels, 2 * stride, stride=stride)
