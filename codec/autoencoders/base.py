"""Base class of autoencoders, and the autoencoder made of layers."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.layers.base import UNBOUNDED, Context, Layer, Padding, context_of, stream_of
from codec.layers.streaming import NotStreamable, StreamingLayer


class Autoencoder(nn.Module):
    """Audio `[B, C, T]` to latents `[B, D, F]` and back, `F = T / hop_length`.

    A subclass sets the three sizes and implements `encode` and `decode`. The other methods are for batching,
    streaming, partial decoding and exports. Their defaults are safe for any network: an unbounded context,
    ragged batches encoded one by one, no streaming form.
    """

    audio_channels: int
    latent_dim: int
    hop_length: int
    compiled: bool = False
    codes_of: str | None = None  # id of another codec with the same codes, see `Halves`

    def encode(self, audio: Tensor) -> Tensor:
        """Latents `[B, D, F]` of audio `[B, C, T]`, `T` a multiple of `hop_length`."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Audio `[B, C, F * hop_length]` of latents `[B, D, F]`."""
        raise NotImplementedError

    def encode_ragged(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Latents `[B, D, F]` of zero-padded signals, equal to those of each signal alone.

        `lengths` `[B]`, in samples, are multiples of `hop_length`. Latents beyond a length are undefined.
        """
        frames = audio.shape[-1] // self.hop_length
        latents = [
            self.encode(signal[None, :, :length])
            for signal, length in zip(audio, lengths.tolist(), strict=True)
        ]
        return torch.cat([functional.pad(part, (0, frames - part.shape[-1])) for part in latents])

    @property
    def encoder_context(self) -> Context:
        """Receptive field of a latent, in samples before and after its own hop; None if unbounded."""
        return UNBOUNDED

    @property
    def decoder_context(self) -> Context:
        """Receptive field of a sample, in latents before and after its own; None if unbounded."""
        return UNBOUNDED

    def streaming_encoder(self) -> StreamingLayer:
        """Streaming form of `encode` on `[B, T, C]`; NotStreamable without one."""
        raise NotStreamable(f"{type(self).__name__} has no streaming form")

    def streaming_decoder(self) -> StreamingLayer:
        """Streaming form of `decode` on `[B, F, D]`; NotStreamable without one."""
        raise NotStreamable(f"{type(self).__name__} has no streaming form")

    def export_form(self) -> Self:
        """Replace modules in place by equivalents for exported graphs; called on a frozen copy."""
        return self

    def compile_networks(self, **options: Any) -> None:
        """Compile `encode` and `decode`, each as one graph, with the options of `torch.compile`."""
        # Not `self.encoder.compile()`: for a Sequential that compiles each layer by itself, and at most
        # eight of a class.
        self.compiled = True
        self.encode = torch.compile(self.encode, **options)
        self.decode = torch.compile(self.decode, **options)


class LayeredAutoencoder(Autoencoder):
    """Autoencoder of two sequences of layers; contexts, streaming and exports follow from the layers.

    A subclass sets `encoder`, from `[B, C, T]` to `[B, D, F]`, and `decoder` back.
    """

    encoder: nn.Sequential
    decoder: nn.Sequential
    padding: Padding | None = None

    def encode(self, audio: Tensor) -> Tensor:
        """Latents `[B, D, F]` of audio `[B, C, T]`, `T` a multiple of `hop_length`."""
        return self.encoder(audio)

    def decode(self, latents: Tensor) -> Tensor:
        """Audio `[B, C, F * hop_length]` of latents `[B, D, F]`."""
        return self.decoder(latents)

    def encode_ragged(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Latents `[B, D, F]` of zero-padded signals in one batch, with masked non-causal layers."""
        if self.encoder_context.after is None:
            return super().encode_ragged(audio, lengths)
        # Masks take a fifth of the time. Of a compiled network one graph serves all batches.
        if not self.compiled and not bool((lengths.cpu() < audio.shape[-1]).any()):
            return self.encode(audio)
        self.padding = self.padding or Padding(self.encoder)
        with self.padding.beyond(lengths, audio.shape[-1]):
            return self.encode(audio)

    @property
    def encoder_context(self) -> Context:
        """Receptive field of a latent, in samples before and after its own hop; None if unbounded."""
        return context_of(self.encoder)

    @property
    def decoder_context(self) -> Context:
        """Receptive field of a sample, in latents before and after its own; None if unbounded."""
        return context_of(self.decoder)

    def streaming_encoder(self) -> StreamingLayer:
        """Streaming form of the encoder on `[B, T, C]`; NotStreamable for a layer without one."""
        return stream_of(self.encoder)

    def streaming_decoder(self) -> StreamingLayer:
        """Streaming form of the decoder on `[B, F, D]`; NotStreamable for a layer without one."""
        return stream_of(self.decoder)

    def export_form(self) -> Self:
        """Replace layers in place by their `exported` forms."""
        for parent in list(self.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, Layer):
                    setattr(parent, name, layer.exported())
        return self


def require_positive(**sizes: int) -> None:
    """Raise a ValueError that names every size below 1."""
    problems = [f"{name} must be at least 1, got {value}" for name, value in sizes.items() if value < 1]
    if problems:
        raise ValueError("; ".join(problems))
