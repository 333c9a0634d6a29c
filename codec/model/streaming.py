"""Streaming encoder and decoder, equal to coding the full signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from codec.autoencoders.base import Autoencoder
from codec.layers.film import Condition, Unconditioned
from codec.layers.streaming import LONG, NotStreamable, State, StreamingLayer
from codec.quantizers.base import Bottleneck

PIECE = 16384  # samples; longer chunks are split on a CPU, so that the activations of a layer fit its cache


Side = Literal["encoder", "decoder"]
REMEDIES: dict[Side, str] = {
    "encoder": "encode whole signals, by Codec.encode or codec-encode",
    "decoder": "decode whole signals, by Codec.decode or codec-decode, or train a new decoder for the codes "
    "(weights=... inherit=[encoder,quantizer])",
}


class Refused(StreamingLayer):
    """Encoder or decoder without a streaming form; `rate` is its number of outputs per input."""

    def __init__(self, reason: str, rate: Fraction):
        super().__init__()
        self.reason, self.rate = reason, rate

    def count(self, inputs: int) -> int:
        """Number of outputs without any latency."""
        return int(inputs * self.rate)

    def forward(self, x: Tensor, state: State, final: bool = False) -> tuple[Tensor, State]:
        """Raise NotStreamable."""
        raise NotStreamable(self.reason)


def stream_of(make: Callable[[], StreamingLayer], side: Side, rate: Fraction) -> StreamingLayer:
    """Streaming form of one side of an autoencoder, or `Refused`."""
    try:
        return make()
    except NotStreamable as error:
        return Refused(f"the {side} has no stream ({error}): {REMEDIES[side]}", rate)


class Stream:
    """Streaming encoder and decoder for a batch of signals.

    Any chunking gives the same codes and audio as the full signals. Encoder and decoder have separate states:
    one stream may encode, decode, or both. If only one of them has a streaming form, the methods of the other
    raise NotStreamable, and its latency counts as 0. It holds a copy of the autoencoder's current weights.
    Use: `with model.streaming() as stream: codes = stream.encode(audio)`.
    ValueError for a batch below 1, NotStreamable if neither encoder nor decoder has a streaming form.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        quantizer: Bottleneck,
        sample_rate: int,
        batch: int = 1,
        conditioning: Unconditioned | None = None,
    ):
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.autoencoder, self.quantizer, self.batch = autoencoder, quantizer, batch
        self.hop_length = autoencoder.hop_length * quantizer.stride
        self.sample_rate, self.conditioning = sample_rate, conditioning or Unconditioned()
        hop = Fraction(autoencoder.hop_length)
        self.encoder = stream_of(autoencoder.streaming_encoder, "encoder", 1 / hop)
        self.decoder = stream_of(autoencoder.streaming_decoder, "decoder", hop)
        if isinstance(self.decoder, Refused):
            self.require("encoder")
        self.reset()

    def require(self, *sides: Side) -> Self:
        """The stream itself; NotStreamable if one of these sides has no streaming form."""
        for half in (getattr(self, side) for side in sides):
            if isinstance(half, Refused):
                raise NotStreamable(half.reason)
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples: one frame plus the look-ahead of encoder and decoder."""
        pushed = LONG // self.hop_length * self.hop_length
        frames = self.encoder.count(pushed) // self.quantizer.stride
        return self.hop_length + pushed - self.decoder.count(frames * self.quantizer.stride)

    @property
    def latency_ms(self) -> float:
        """Algorithmic latency in milliseconds."""
        return 1000 * self.latency / self.sample_rate

    def reset(self) -> None:
        """Start new signals."""
        parameter = next(self.autoencoder.parameters())
        self.pending = parameter.new_zeros(self.batch, 0, self.autoencoder.audio_channels)
        self.latents = parameter.new_zeros(self.batch, 0, self.autoencoder.latent_dim)
        self.encoder_state: State = self.encoder.initial(self.batch)
        self.decoder_state: State = self.decoder.initial(self.batch)

    def state(self) -> dict[str, Tensor]:
        """State of the stream as named tensors, for `load_state`."""
        parts = {"encoder": self.encoder_state, "decoder": self.decoder_state}
        tensors = {f"{part}.{i}": tensor for part, state in parts.items() for i, tensor in enumerate(state)}
        return {name: tensor.contiguous() for name, tensor in tensors.items()} | {
            "pending": self.pending.contiguous(),
            "latents": self.latents.contiguous(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a result of `state`; ValueError for one of another model or batch size."""
        current = self.state()
        mismatched = state.keys() ^ current.keys() or {
            name
            for name, tensor in current.items()
            if tensor.dtype != state[name].dtype or fixed_sizes(tensor) != fixed_sizes(state[name])
        }
        if mismatched:
            raise ValueError(f"the state is of another model or batch: {', '.join(sorted(mismatched)[:3])}")
        tensors = {name: state[name].to(tensor.device, copy=True) for name, tensor in current.items()}
        self.pending, self.latents = tensors["pending"], tensors["latents"]
        self.encoder_state = [tensors[f"encoder.{i}"] for i in range(len(self.encoder_state))]
        self.decoder_state = [tensors[f"decoder.{i}"] for i in range(len(self.decoder_state))]

    @torch.no_grad()
    def encode(
        self,
        audio: Tensor,
        final: bool = False,
        num_quantizers: int | None = None,
        beam: int = 1,
        condition: Condition = None,
    ) -> Tensor:
        """Codes `[B, K, F]`, `F >= 0`, of the frames that audio `[B, C, T]`, `T >= 0`, completes.

        `final` ends the signals: an incomplete last frame is padded with zeros, and all remaining frames are
        returned. Further audio starts new signals. `condition`, a name or indexes `[B]`, applies to the
        returned frames and may change from call to call.
        """
        shape = [self.batch, self.autoencoder.audio_channels]
        if audio.ndim != 3 or list(audio.shape[:2]) != shape or not audio.is_floating_point():
            raise ValueError(f"audio must be float [{shape[0]}, {shape[1]}, T], got {list(audio.shape)}")
        codes = self.quantizer.no_frames(self.batch, num_quantizers, audio.device)
        buffer = torch.cat([self.pending, audio.to(self.pending).transpose(1, 2)], 1)
        if final:
            buffer = functional.pad(buffer, (0, 0, 0, -buffer.shape[1] % self.hop_length))
        frames, pending = whole(buffer, self.hop_length)
        outputs, state = [self.latents], self.encoder_state
        for chunk, last in pieces(frames, PIECE // self.hop_length * self.hop_length, final):
            output, state = self.encoder(chunk, state, last)
            outputs.append(output)
        latents, remainder = whole(torch.cat(outputs, 1), self.quantizer.stride)
        if latents.shape[1]:
            conditioned = self.conditioning(latents.transpose(1, 2), condition)
            codes = self.quantizer.encode(conditioned, num_quantizers, beam)
        # Assigned last, so that a chunk that raises an error leaves the state unchanged.
        self.pending, self.latents = pending, remainder
        self.encoder_state = self.encoder.initial(self.batch) if final else state
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor, final: bool = False) -> Tensor:
        """Audio `[B, C, T]`, `T >= 0`, completed by codes `[B, k, F]`, `F >= 0`; `final` ends the signals."""
        if codes.ndim != 3 or len(codes) != self.batch:
            raise ValueError(f"codes must be [{self.batch}, K, F], got {list(codes.shape)}")
        latents = self.latents[:, :0]
        if codes.shape[2]:
            latents = self.quantizer.decode(codes).to(self.latents).transpose(1, 2)
        outputs = [self.pending[:, :0]]
        for chunk, last in pieces(latents, PIECE // self.hop_length, final):
            output, self.decoder_state = self.decoder(chunk, self.decoder_state, last)
            outputs.append(output)
        if final:
            self.decoder_state = self.decoder.initial(self.batch)
        return torch.cat(outputs, 1).transpose(1, 2)


def whole(signal: Tensor, unit: int) -> tuple[Tensor, Tensor]:
    """Split `[B, T, C]` into a multiple of `unit` and the remainder."""
    count = signal.shape[1] // unit * unit
    return signal[:, :count], signal[:, count:]


def pieces(signal: Tensor, length: int, final: bool) -> Iterator[tuple[Tensor, bool]]:
    """Yield chunks of `[B, T, C]` that fit a CPU's cache, each with a flag for the end of the signal.

    A final signal has at least one chunk, possibly empty.
    """
    chunks = signal.split(max(1, length) if signal.device.type == "cpu" else max(1, signal.shape[1]), 1)
    if final or signal.shape[1]:
        for number, chunk in enumerate(chunks, start=1):
            yield chunk, final and number == len(chunks)


def fixed_sizes(tensor: Tensor) -> list[int]:
    """Sizes of a state tensor that do not depend on the position in the signal."""
    sizes = list(tensor.shape)
    return [*sizes[:1], *sizes[2:]]
