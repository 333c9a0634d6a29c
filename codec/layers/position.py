"""Residual convolutions and attention over a full signal, for the order of frames."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from codec.layers.base import Layer


class PositionNet(Layer):
    """Four residual blocks with one attention in their middle, on frames `[B, C, F] -> [B, C, F]`.

    WavTokenizer (arXiv 2408.16532, §3.3), whose ConvNeXt blocks follow it. Statistics of the `num_groups`
    groups of channels are those of all frames, so the context is unbounded and there is no streaming form.
    Raises ValueError for channels that are no multiple of `num_groups`.
    """

    def __init__(self, channels: int, *, num_groups: int = 32, epsilon: float = 1e-6):
        super().__init__()
        sizes = num_groups, channels, epsilon
        self.layers = nn.Sequential(
            ConvolutionBlock(*sizes),
            ConvolutionBlock(*sizes),
            AttentionBlock(*sizes),
            ConvolutionBlock(*sizes),
            ConvolutionBlock(*sizes),
            nn.GroupNorm(*sizes),
        )
        self.norm = nn.LayerNorm(channels, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """Map the frames of full signals."""
        return self.norm(self.layers(x).mT).mT


class ConvolutionBlock(nn.Module):
    """Two convolutions of 3 frames, each behind a group normalization and SiLU, beside a skip."""

    def __init__(self, num_groups: int, channels: int, epsilon: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, channels, epsilon)
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, channels, epsilon)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input `[B, C, F]`."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(hidden)))


class AttentionBlock(nn.Module):
    """Attention of one head between all frames, behind a group normalization, beside a skip."""

    def __init__(self, num_groups: int, channels: int, epsilon: float):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, epsilon)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input `[B, C, F]`."""
        normal = self.norm(x)
        # One head, as a dimension: converters to ONNX need it.
        heads = [layer(normal).mT[:, None] for layer in (self.q, self.k, self.v)]
        return x + self.proj_out(functional.scaled_dot_product_attention(*heads)[:, 0].mT)
