"""Several signals at once, or a part of one, with the results that each whole signal has alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize

from codec.config import ConfigError
from codec.layers.streaming import NotStreamable
from codec.model import Codec
from codec.streaming import Stream

PIECE_SECONDS = 10.0  # of a long signal that is in memory at a time


def on_device(codec: Codec, device: str | None, environment: Mapping[str, str] = os.environ) -> Codec:
    """The codec on a device; by default a GPU if there is one, under torchrun this process's own."""
    default = f"cuda:{environment.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        return codec.to(device or default)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        raise ConfigError(f"--device {device or default}: {str(error).splitlines()[0]}") from error


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 and the same algorithm every time: rounding decides between codes that are equally near.

    In inference mode; weights that are computed from others, as with weight norm, are computed once.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.backends.cudnn.flags(deterministic=True, allow_tf32=False),
            torch.inference_mode(),
            parametrize.cached(),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class WholeSignal:
    """Codes a signal that arrives in pieces at its end, as a whole: for codecs without a streaming form.

    The interface is that of `codec.streaming.Stream` for one signal; memory grows with the signal.
    """

    def __init__(self, codec: Codec):
        self.codec = codec
        self.audio: list[Tensor] = []
        self.codes: list[Tensor] = []

    def encode(
        self, audio: Tensor, final: bool = False, num_quantizers: int | None = None, beam: int = 1
    ) -> Tensor:
        """Codes `[1, K, F]` of all audio `[1, C, T]` since the last end; none before `final`."""
        depth = self.codec.quantizer.check_depth(num_quantizers)
        self.audio += [audio] if audio.shape[2] else []
        if not final or not self.audio:
            return torch.zeros(1, depth, 0, dtype=torch.int64, device=audio.device)
        whole, self.audio = torch.cat(self.audio, 2), []
        return self.codec.encode(whole, num_quantizers, beam)

    def decode(self, codes: Tensor, final: bool = False) -> Tensor:
        """Audio `[1, C, T]` of all codes `[1, K, F]` since the last end; none before `final`."""
        self.codes += [codes] if codes.shape[2] else []
        if not final or not self.codes:
            return torch.zeros(1, self.codec.audio_channels, 0, device=codes.device)
        whole, self.codes = torch.cat(self.codes, 2), []
        return self.codec.decode(whole)


def stream_or_whole(codec: Codec) -> Stream | WholeSignal:
    """Stream of one signal, or its stand-in for a codec that cannot be streamed."""
    try:
        return codec.streaming()
    except NotStreamable:
        return WholeSignal(codec)


def encode_batch(
    codec: Codec, signals: Sequence[Tensor], num_quantizers: int | None = None, beam: int = 1
) -> list[Tensor]:
    """Codes int64 `[K, F_i]` of each signal `[C, T_i]`, the same as of that signal alone, in one batch.

    Shorter signals are filled up with zeros.
    """
    hop = codec.hop_length
    frames = [-(-signal.shape[-1] // hop) for signal in signals]
    longest = max(frames) * hop
    device = next(codec.parameters()).device
    batch = torch.stack([functional.pad(s, (0, longest - s.shape[-1])) for s in signals]).to(device)
    lengths = torch.tensor(frames, device=device) * hop
    codes = codec.quantizer.encode(codec.latents(batch, lengths), num_quantizers, beam).cpu()
    return [one[:, :count] for one, count in zip(codes, frames, strict=True)]


def decoder_reach(codec: Codec) -> tuple[int | None, int | None]:
    """Frames of codes before and after its own on which a decoded sample depends; None where unbounded."""
    before, after = (
        None if side is None else math.ceil(side / codec.quantizer.stride)
        for side in codec.autoencoder.decoder_context
    )
    return before, after


def decode_part(
    codec: Codec, read: Callable[[int, int], Tensor], n_frames: int, start: int, stop: int
) -> Iterator[Tensor]:
    """Audio `[C, T]` of frames `start` to `stop` of a signal, in pieces, as cut from the whole signal's.

    `read(a, b)` gives codes `[K, b - a]`; only frames that the part depends on are asked for.
    """
    before, after = decoder_reach(codec)
    first = 0 if before is None else max(0, start - before)
    last = n_frames if after is None else min(n_frames, stop + after)
    device = next(codec.parameters()).device
    piece = max(1, round(PIECE_SECONDS * codec.frame_rate))
    if last - first <= piece:
        with exact_float32():
            audio = codec.decode(read(first, last)[None].to(device))[0]
        yield audio[:, (start - first) * codec.hop_length : (stop - first) * codec.hop_length]
        return
    position, begin, end = first * codec.hop_length, start * codec.hop_length, stop * codec.hop_length
    stream = stream_or_whole(codec)
    for at in range(first, last, piece):
        upto = min(at + piece, last)
        with exact_float32():  # as in `encode_long`
            audio = stream.decode(read(at, upto)[None].to(device), final=upto == last)[0]
        yield audio[:, max(0, begin - position) : max(0, end - position)]
        position += audio.shape[1]


def encode_long(
    codec: Codec, blocks: Iterator[Tensor], num_quantizers: int | None = None, beam: int = 1
) -> Iterator[Tensor]:
    """Codes `[K, F]` of a signal that comes in blocks `[C, T]`, as of the whole signal; in pieces too."""
    device = next(codec.parameters()).device
    piece = max(1, round(PIECE_SECONDS * codec.sample_rate))
    stream = stream_or_whole(codec)

    def encode(part: Tensor, final: bool = False) -> Tensor:
        with exact_float32():  # and not around a yield, which would take the caller along
            return stream.encode(part[None].to(device), final, num_quantizers, beam)[0].cpu()

    for block in blocks:
        yield from map(encode, block.split(piece, dim=1))
    yield encode(torch.zeros(codec.audio_channels, 0), final=True)
