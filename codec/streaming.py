"""Audio in pieces of any size to codes and back, equal to coding the whole at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType

import torch
from torch import Tensor
from torch.nn import functional

from codec.autoencoders.base import Autoencoder
from codec.layers.streaming import LONG, State
from codec.quantizers.base import Quantizer

PIECE = 16384  # samples; longer pushes are cut on a CPU: what a layer makes of a piece stays in its cache


class Stream:
    """`batch` signals that arrive in pieces; the codes and the audio are those of the whole signals.

    The encoder's and the decoder's states are apart: one stream may encode, decode, or both. It is made of
    the weights as they are now. Use: `with model.streaming() as stream: codes = stream.encode(audio)`.
    """

    def __init__(self, autoencoder: Autoencoder, quantizer: Quantizer, sample_rate: int, batch: int = 1):
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.autoencoder, self.quantizer, self.batch = autoencoder, quantizer, batch
        self.hop_length = autoencoder.hop_length * quantizer.stride
        self.sample_rate = sample_rate
        self.encoder, self.decoder = autoencoder.streaming_encoder(), autoencoder.streaming_decoder()
        self.reset()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples: a frame to fill, and how far decoded audio then lies behind."""
        pushed = LONG // self.hop_length * self.hop_length
        frames = self.encoder.count(pushed) // self.quantizer.stride
        return self.hop_length + pushed - self.decoder.count(frames * self.quantizer.stride)

    @property
    def latency_ms(self) -> float:
        """Algorithmic latency in milliseconds."""
        return 1000 * self.latency / self.sample_rate

    def reset(self) -> None:
        """Begin new signals."""
        parameter = next(self.autoencoder.parameters())
        self.pending = parameter.new_zeros(self.batch, 0, self.autoencoder.audio_channels)
        self.latents = parameter.new_zeros(self.batch, 0, self.autoencoder.latent_dim)
        self.encoder_state: State = self.encoder.initial(self.batch)
        self.decoder_state: State = self.decoder.initial(self.batch)

    def state(self) -> dict[str, Tensor]:
        """All that the stream remembers, by name: for `load_state`, later or elsewhere."""
        parts = {"encoder": self.encoder_state, "decoder": self.decoder_state}
        named = {f"{part}.{i}": tensor for part, state in parts.items() for i, tensor in enumerate(state)}
        return {name: tensor.contiguous() for name, tensor in named.items()} | {
            "pending": self.pending.contiguous(),
            "latents": self.latents.contiguous(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned; ValueError when its shapes are of another model or batch."""
        begin = self.state()
        foreign = state.keys() ^ begin.keys() or {
            name
            for name, own in begin.items()
            if own.dtype != state[name].dtype or kept(own) != kept(state[name])
        }
        if foreign:
            raise ValueError(f"the state is of another model or batch: {', '.join(sorted(foreign)[:3])}")
        here = {name: state[name].to(own.device, copy=True) for name, own in begin.items()}
        self.pending, self.latents = here["pending"], here["latents"]
        self.encoder_state = [here[f"encoder.{i}"] for i in range(len(self.encoder_state))]
        self.decoder_state = [here[f"decoder.{i}"] for i in range(len(self.decoder_state))]

    @torch.no_grad()
    def encode(
        self, audio: Tensor, final: bool = False, num_quantizers: int | None = None, beam: int = 1
    ) -> Tensor:
        """Codes `[B, K, F]`, `F >= 0`, of the frames that audio `[B, C, T]`, `T >= 0`, completes.

        `final` ends the signals: a last part of a frame is filled with zeros, and all frames that are left
        come out. Further audio then begins new signals.
        """
        shape = [self.batch, self.autoencoder.audio_channels]
        if audio.ndim != 3 or list(audio.shape[:2]) != shape or not audio.is_floating_point():
            raise ValueError(f"audio must be float [{shape[0]}, {shape[1]}, T], got {list(audio.shape)}")
        depth = self.quantizer.check_depth(num_quantizers)
        arrived = torch.cat([self.pending, audio.to(self.pending).transpose(1, 2)], 1)
        if final:
            arrived = functional.pad(arrived, (0, 0, 0, -arrived.shape[1] % self.hop_length))
        ready, pending = whole(arrived, self.hop_length)
        found, state = [self.latents], self.encoder_state
        for piece, last in pieces(ready, PIECE // self.hop_length * self.hop_length, final):
            answer, state = self.encoder(piece, state, last)
            found.append(answer)
        latents, rest = whole(torch.cat(found, 1), self.quantizer.stride)
        if latents.shape[1]:
            codes = self.quantizer.encode(latents.transpose(1, 2), num_quantizers, beam)
        else:
            codes = torch.zeros(self.batch, depth, 0, dtype=torch.int64, device=latents.device)
        # Last of all: a piece that was refused has not been heard.
        self.pending, self.latents = pending, rest
        self.encoder_state = self.encoder.initial(self.batch) if final else state
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor, final: bool = False) -> Tensor:
        """Audio `[B, C, T]`, `T >= 0`, that codes `[B, k, F]`, `F >= 0`, determine; `final` ends it."""
        if codes.ndim != 3 or len(codes) != self.batch:
            raise ValueError(f"codes must be [{self.batch}, K, F], got {list(codes.shape)}")
        latents = self.latents[:, :0]
        if codes.shape[2]:
            latents = self.quantizer.decode(codes).transpose(1, 2)
        found = [self.pending[:, :0]]
        for piece, last in pieces(latents, PIECE // self.hop_length, final):
            answer, self.decoder_state = self.decoder(piece, self.decoder_state, last)
            found.append(answer)
        if final:
            self.decoder_state = self.decoder.initial(self.batch)
        return torch.cat(found, 1).transpose(1, 2)


def whole(signal: Tensor, unit: int) -> tuple[Tensor, Tensor]:
    """The whole units of `[B, T, C]`, and the rest."""
    count = signal.shape[1] // unit * unit
    return signal[:, :count], signal[:, count:]


def pieces(signal: Tensor, length: int, final: bool) -> Iterator[tuple[Tensor, bool]]:
    """`[B, T, C]` in pieces for a CPU's cache, and whether a piece, be it empty, ends the signal."""
    split = signal.split(max(1, length) if signal.device.type == "cpu" else max(1, signal.shape[1]), 1)
    if final or signal.shape[1]:
        for number, piece in enumerate(split, start=1):
            yield piece, final and number == len(split)


def kept(tensor: Tensor) -> list[int]:
    """The sizes of a state tensor that do not depend on how much has arrived."""
    sizes = list(tensor.shape)
    return [*sizes[:1], *sizes[2:]]
