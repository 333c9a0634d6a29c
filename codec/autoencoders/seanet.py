"""SEANet: the convolutional encoder–decoder of SoundStream, EnCodec, DAC and Mimi."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from codec.autoencoders.base import LayeredAutoencoder, require_positive
from codec.layers.base import Context, Layer, context_of, stream_of
from codec.layers.conv import Layers
from codec.layers.resample import Downsample, Upsample
from codec.layers.streaming import Skip, StreamingLayer


class ResidualUnit(Layer):
    """Residual unit `[B, C, T] -> [B, C, T]`: a dilated and a pointwise convolution beside a skip."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel_size: int,
        dilation: int,
        layers: Layers,
        convolutional_skip: bool,
    ):
        super().__init__()
        self.block = nn.Sequential(
            layers.activation(channels),
            layers.conv(channels, hidden, kernel_size, dilation=dilation),
            layers.activation(hidden),
            layers.conv(hidden, channels, 1),
        )
        self.skip = layers.conv(channels, channels, 1) if convolutional_skip else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input `[B, C, T]`."""
        return self.skip(x) + self.block(x)

    @property
    def context(self) -> Context:
        """Receptive field of the block; the skip is pointwise."""
        return context_of(self.block)

    def stream(self) -> StreamingLayer:
        """Streaming form of the block, with a delay line for the skip."""
        return Skip(stream_of(self.block), stream_of(self.skip))


class ResidualUnits(nn.Sequential):
    """Residual units `[B, C, T] -> [B, C, T]` of one encoder or decoder block, one per dilation.

    The defaults, kernel 7 and half the channels inside, give the parameter counts of SoundStream's Table I
    (arXiv 2107.03312).
    """

    def __init__(
        self,
        channels: int,
        layers: Layers,
        *,
        dilations: Sequence[int] = (1, 3, 9),
        kernel_size: int = 7,
        hidden_ratio: float = 0.5,
        convolutional_skip: bool = False,
    ):
        if min(dilations, default=1) < 1 or kernel_size < 1 or not hidden_ratio > 0:
            raise ValueError(
                "residual units need dilations and kernel_size of at least 1 and hidden_ratio above 0, got "
                f"{list(dilations)}, {kernel_size}, {hidden_ratio}"
            )
        hidden = max(1, round(channels * hidden_ratio))
        super().__init__(
            *(ResidualUnit(channels, hidden, kernel_size, d, layers, convolutional_skip) for d in dilations)
        )


class SEANet(LayeredAutoencoder):
    """Encoder `[B, C, T] -> [B, D, F]` and decoder back; `F = T / hop_length`.

    SoundStream (arXiv 2107.03312, Fig. 3). EnCodec (2210.13438, §3.1) and DAC (2306.06546) differ in the
    arguments only. Starting from `encoder_channels`, every downsampling doubles the channels. The decoder is
    the mirror image and ends with `decoder_channels`. `bounded` adds a tanh to the decoder.

    `bottleneck` builds a layer from a number of channels, such as EnCodec's LSTM, after the last block of the
    encoder and before the first of the decoder. `latent_layers` builds one on the latents, such as Mimi's
    Transformer (2410.00037, §3.3.1); `latent_stride` lowers the rate of the latents behind it. Raises
    ValueError for sizes below 1.
    """

    def __init__(
        self,
        audio_channels: int = 1,
        latent_dim: int = 256,
        *,
        encoder_channels: int = 32,
        decoder_channels: int = 32,
        strides: Sequence[int] = (2, 4, 5, 8),
        layers: Layers | None = None,
        residual_units: Callable[..., ResidualUnits] = ResidualUnits,
        bottleneck: Callable[[int], nn.Module] | None = None,
        latent_kernel_size: int = 3,
        latent_layers: Callable[[int], nn.Module] | None = None,
        latent_stride: int = 1,
        output_kernel_size: int = 7,
        bounded: bool = False,
    ):
        super().__init__()
        require_positive(
            audio_channels=audio_channels,
            latent_dim=latent_dim,
            encoder_channels=encoder_channels,
            decoder_channels=decoder_channels,
            strides=min(strides, default=0),
            latent_kernel_size=latent_kernel_size,
            latent_stride=latent_stride,
            output_kernel_size=output_kernel_size,
        )
        layers = layers or Layers()
        self.audio_channels = audio_channels
        self.latent_dim = latent_dim
        self.hop_length = math.prod(strides) * latent_stride

        channels = encoder_channels
        encoder: list[nn.Module] = [layers.conv(audio_channels, channels, 7)]
        for stride in strides:
            encoder += [residual_units(channels, layers), layers.activation(channels)]
            encoder += [layers.downsample(channels, 2 * channels, stride)]
            channels *= 2
        encoder += [bottleneck(channels)] if bottleneck else []
        encoder += [layers.activation(channels), layers.conv(channels, latent_dim, latent_kernel_size)]
        encoder += [latent_layers(latent_dim)] if latent_layers else []
        encoder += [Downsample(latent_dim, latent_stride, layers.causal)] if latent_stride > 1 else []
        self.encoder = nn.Sequential(*encoder)

        channels = decoder_channels * 2 ** len(strides)
        decoder: list[nn.Module] = []
        decoder += [Upsample(latent_dim, latent_stride, layers.causal)] if latent_stride > 1 else []
        decoder += [latent_layers(latent_dim)] if latent_layers else []
        decoder += [layers.conv(latent_dim, channels, 7)]
        decoder += [bottleneck(channels)] if bottleneck else []
        for stride in reversed(strides):
            decoder += [layers.activation(channels), layers.upsample(channels, channels // 2, stride)]
            channels //= 2
            decoder += [residual_units(channels, layers)]
        decoder += [layers.activation(channels), layers.conv(channels, audio_channels, output_kernel_size)]
        decoder += [nn.Tanh()] if bounded else []
        self.decoder = nn.Sequential(*decoder)
