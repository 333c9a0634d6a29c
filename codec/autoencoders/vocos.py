"""Frame-domain autoencoder: STFT, ConvNeXt blocks on frames, inverse STFT."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from codec.autoencoders.base import LayeredAutoencoder, require_positive
from codec.layers.conv import Conv1d
from codec.layers.convnext import ChannelsFirst, ChannelsLast, ConvNeXtBlock, Merge, Projection, Split
from codec.layers.fourier import InverseSTFT, STFTFeatures


class Vocos(LayeredAutoencoder):
    """Encoder `[B, C, T] -> [B, D, F]` and decoder back on STFT frames, without convolutions at audio rate.

    Vocos (arXiv 2306.00814) as an autoencoder, as in VoCodec (2601.13055). The encoder has `blocks` of
    `channels[0]` on one frame per `hop` samples, then merges frames and adds further blocks for each of
    `strides`. The decoder is its mirror image. Latents have a lower rate than frames, as in ESC (2404.19441)
    and APCodec (2402.10533). A causal decoder may wait for `lookahead` frames of latents, in its first block.
    `bottleneck` builds a layer from a number of channels, after the last block of the encoder and before the
    first of the decoder. Latents enter the decoder by a convolution of `input_kernel_size` frames.
    `synthesis` builds the inverse transform; `epsilon` is that of the normalization before it.
    Raises ValueError for sizes below 1, windows that `hop` does not divide, lists of different lengths, and a
    look-ahead without `causal` or without a block.
    """

    def __init__(
        self,
        audio_channels: int = 1,
        latent_dim: int = 128,
        *,
        hop: int = 80,
        windows: Sequence[int] = (320, 320),
        channels: Sequence[int] = (224, 384),
        strides: Sequence[int] = (4,),
        encoder_blocks: Sequence[int] = (2, 2),
        decoder_blocks: Sequence[int] = (4, 2),
        blocks: Callable[..., nn.Module] = ConvNeXtBlock,
        bottleneck: Callable[[int], nn.Module] | None = None,
        causal: bool = False,
        lookahead: int = 0,
        input_kernel_size: int = 1,
        synthesis: Callable[..., InverseSTFT] = InverseSTFT,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        require_positive(audio_channels=audio_channels, latent_dim=latent_dim, hop=hop)
        require_positive(channels=min(channels, default=0), strides=min(strides, default=1))
        require_positive(input_kernel_size=input_kernel_size)
        check_levels(strides, channels, encoder_blocks, decoder_blocks, windows)
        if lookahead and not decoder_blocks[-1]:
            raise ValueError(f"lookahead={lookahead} needs a block: decoder_blocks end with 0")
        self.audio_channels, self.latent_dim = audio_channels, latent_dim
        self.hop_length = hop * math.prod(strides)

        def level(number: int, depths: Sequence[int], lookahead: int = 0) -> list[nn.Module]:
            scale = 1 / max(1, sum(depths))
            extra = [{"lookahead": lookahead} if lookahead else {}, *[{}] * depths[number]]
            options = [
                {"causal": causal, "layer_scale": scale, **extras} for extras in extra[: depths[number]]
            ]
            return [blocks(channels[number], **arguments) for arguments in options]

        features = STFTFeatures(audio_channels, windows[0], hop, causal)
        encoder = [features, Projection(features.num_features, channels[0], normalize=False)]
        encoder += level(0, encoder_blocks)
        for number, stride in enumerate(strides, start=1):
            encoder += [Merge(channels[number - 1], channels[number], stride), *level(number, encoder_blocks)]
        encoder += [ChannelsFirst(), bottleneck(channels[-1]), ChannelsLast()] if bottleneck else []
        encoder += [Projection(channels[-1], latent_dim), ChannelsFirst()]
        self.encoder = nn.Sequential(*encoder)

        inverse = synthesis(audio_channels, windows[1], hop, causal)
        decoder: list[nn.Module] = [ChannelsLast(), Projection(latent_dim, channels[-1], normalize=False)]
        if input_kernel_size > 1:
            conv = Conv1d(latent_dim, channels[-1], input_kernel_size, causal=causal)
            decoder = [conv, ChannelsLast()]
        decoder += [ChannelsFirst(), bottleneck(channels[-1]), ChannelsLast()] if bottleneck else []
        for number in range(len(strides), 0, -1):
            decoder += level(number, decoder_blocks, lookahead if number == len(strides) else 0)
            decoder += [Split(channels[number], channels[number - 1], strides[number - 1])]
        decoder += level(0, decoder_blocks, 0 if strides else lookahead)
        decoder += [Projection(channels[0], inverse.num_inputs, epsilon=epsilon), inverse]
        self.decoder = nn.Sequential(*decoder)


def check_levels(strides: Sequence[int], *lists: Sequence[int]) -> None:
    """Raise ValueError for channels, encoder and decoder blocks, and windows of a wrong number."""
    levels, (channels, encoder_blocks, decoder_blocks, windows) = len(strides) + 1, map(list, lists)
    lengths = [len(channels), len(encoder_blocks), len(decoder_blocks)]
    if lengths != [levels] * 3 or len(windows) != 2 or min(*encoder_blocks, *decoder_blocks) < 0:
        raise ValueError(
            f"{len(strides)} strides need {levels} channels, encoder_blocks and decoder_blocks each, and two "
            f"windows (encoder, decoder), got {channels}, {encoder_blocks}, {decoder_blocks} and {windows}"
        )
