"""Encoder of one autoencoder and decoder of another, at rates of their own."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor, nn

from codec.autoencoders.base import Autoencoder, LayeredAutoencoder
from codec.layers.sinc import Resample


class Halves(LayeredAutoencoder):
    """Autoencoder of two halves: a new decoder for the latents, and with them the codes, of another encoder.

    WavTokenizer (arXiv 2408.16532) has halves of this kind. Audio has `decoder_rate` (Hz); it is resampled to
    `encoder_rate` for the encoder, without a copy of the unused halves. `codes_of` is the id of the codec
    whose codes these are (`Codec.codec_id`). `latent_dim` is that of both halves, for configs that refer to
    it. An autoencoder that is no `LayeredAutoencoder` is used as it is, without streaming.
    ValueError for different channels or latents, a `decoder_rate` below `encoder_rate`, and hops of different
    durations.
    """

    def __init__(
        self,
        encoder: Autoencoder,
        decoder: Autoencoder,
        encoder_rate: int,
        decoder_rate: int,
        codes_of: str | None = None,
        latent_dim: int | None = None,
    ):
        super().__init__()
        for name in ("audio_channels", "latent_dim"):
            sizes = getattr(encoder, name), getattr(decoder, name)
            if sizes[0] != sizes[1]:
                raise ValueError(f"{name} is {sizes[0]} of the encoder and {sizes[1]} of the decoder")
        if latent_dim not in (None, encoder.latent_dim):
            raise ValueError(f"latent_dim is {latent_dim}, and {encoder.latent_dim} of both halves")
        if not 1 <= encoder_rate <= decoder_rate:
            raise ValueError(
                f"a decoder at {decoder_rate} Hz for an encoder at {encoder_rate} Hz: it needs at least that"
            )
        hop = encoder.hop_length * Fraction(decoder_rate, encoder_rate)
        frame = f"{encoder.hop_length} samples at {encoder_rate} Hz are {float(hop):g} at {decoder_rate} Hz"
        if hop.denominator > 1:
            step = encoder_rate // math.gcd(encoder_rate, encoder.hop_length)
            raise ValueError(f"{frame}, no hop: rates that fit are multiples of {step} Hz")
        if decoder.hop_length != hop:
            raise ValueError(
                f"{frame}, but the decoder's hop is {decoder.hop_length}: choose strides (times hop, "
                f"latent_stride, if there are) of the product {hop}"
            )
        self.audio_channels, self.latent_dim = decoder.audio_channels, decoder.latent_dim
        self.hop_length, self.codes_of = decoder.hop_length, codes_of
        rates = decoder_rate, encoder_rate
        resample = Resample(self.audio_channels, *rates) if hop != encoder.hop_length else nn.Identity()
        self.encoder = nn.Sequential(resample, half(encoder, "encoder"))
        self.decoder = nn.Sequential(half(decoder, "decoder"))


def half(autoencoder: Autoencoder, side: str) -> nn.Module:
    """Layers of the `encoder` or `decoder`; a `Method` of an autoencoder without layers."""
    if isinstance(autoencoder, LayeredAutoencoder):
        return getattr(autoencoder, side)
    return Method(autoencoder, side.removesuffix("r"))


class Method(nn.Module):
    """`encode` or `decode` of an autoencoder as a module, with a context and a stream of no kind."""

    def __init__(self, autoencoder: Autoencoder, name: str):
        super().__init__()
        self.autoencoder, self.name = autoencoder, name

    def forward(self, x: Tensor) -> Tensor:
        """Encode or decode."""
        return getattr(self.autoencoder, self.name)(x)
