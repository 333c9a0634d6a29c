"""Acoustic tokenizer of VibeVoice: causal convolutions and ConvNeXt blocks at every rate."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codec.autoencoders.base import LayeredAutoencoder, require_positive
from codec.layers.base import Context, Layer
from codec.layers.conv import Layers
from codec.layers.convnext import DepthwiseConv, PointwiseMLP
from codec.layers.streaming import Chain, Pointwise, Skip, StreamingLayer
from codec.layers.streaming_convolution import DepthwiseConvolution

LAYER_SCALE = 1e-6  # initial factor of the blocks' outputs


class VibeVoice(LayeredAutoencoder):
    """Encoder `[B, C, T] -> [B, D, F]` and decoder back of VibeVoice (arXiv 2508.19205), all causal.

    Channels double from `channels` at the audio's rate with each of `strides`; each of these rates has a
    number of blocks in `depths`. The decoder is the encoder's mirror image.
    Raises ValueError for sizes below 1, and unless `depths` has one number more than `strides`.
    """

    def __init__(
        self,
        audio_channels: int = 1,
        latent_dim: int = 64,
        *,
        channels: int = 32,
        strides: Sequence[int] = (2, 2, 4, 5, 5, 8),
        depths: Sequence[int] = (3, 3, 3, 3, 3, 3, 8),
        kernel_size: int = 7,
        expansion: int = 4,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        require_positive(audio_channels=audio_channels, latent_dim=latent_dim, channels=channels)
        require_positive(kernel_size=kernel_size, expansion=expansion, strides=min(strides, default=1))
        if len(depths) != len(strides) + 1 or min(depths) < 0:
            raise ValueError(
                f"depths must be numbers of blocks, one more than strides, got {list(depths)} for "
                f"{list(strides)}"
            )
        self.audio_channels, self.latent_dim = audio_channels, latent_dim
        self.hop_length = math.prod(strides)
        layers = Layers(causal=True)
        widths = [channels * 2**level for level in range(len(depths))]

        def blocks(level: int) -> list[nn.Module]:
            return [Block(widths[level], kernel_size, expansion, epsilon) for _ in range(depths[level])]

        encoder = [layers.conv(audio_channels, channels, kernel_size), *blocks(0)]
        decoder = [*blocks(0), layers.conv(channels, audio_channels, kernel_size)]
        for level, stride in enumerate(strides, start=1):
            encoder += [layers.downsample(widths[level - 1], widths[level], stride), *blocks(level)]
            decoder = [*blocks(level), layers.upsample(widths[level], widths[level - 1], stride), *decoder]
        self.encoder = nn.Sequential(*encoder, layers.conv(widths[-1], latent_dim, kernel_size))
        self.decoder = nn.Sequential(layers.conv(latent_dim, widths[-1], kernel_size), *decoder)


class Block(Layer):
    """ConvNeXt block `[B, C, T] -> [B, C, T]` with a residual connection around each of its two halves."""

    def __init__(self, channels: int, kernel_size: int, expansion: int, epsilon: float):
        super().__init__()
        self.norm = nn.RMSNorm(channels, epsilon)
        self.mixer = DepthwiseConv(channels, kernel_size, causal=True)
        self.gamma = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        norm = nn.RMSNorm(channels, epsilon)
        self.mlp = PointwiseMLP(channels, expansion * channels, LAYER_SCALE, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Add the outputs of the convolution, then those of the linear maps."""
        frames = x.mT
        frames = frames + self.gamma * self.mixer(self.norm(frames))
        return (frames + self.mlp(frames)).mT

    @property
    def context(self) -> Context:
        """Samples under the depthwise kernel."""
        return self.mixer.context

    def stream(self) -> StreamingLayer:
        """Streaming form of both halves, the layer scale multiplied into the kernel."""
        norm, mixer = copy.deepcopy(self.norm).requires_grad_(False), self.mixer
        weight, bias = self.gamma[:, None, None] * mixer.weight, self.gamma * mixer.bias
        convolution = DepthwiseConvolution(weight, bias, mixer.left, mixer.right)
        around = Pointwise(nn.Identity())
        return Chain([Skip(Chain([Pointwise(norm), convolution]), around), Skip(self.mlp.stream(), around)])
