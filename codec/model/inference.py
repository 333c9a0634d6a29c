"""Batches of signals, parts of signals and long signals, with the results of each full signal alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parametrize

from codec.config import ConfigError
from codec.layers.streaming import NotStreamable
from codec.model.codec import Codec
from codec.model.streaming import Side, Stream
from codec.system.device import default_device

PIECE_SECONDS = 10.0  # chunk of a long signal in memory


def on_device(codec: Codec, device: str | None) -> Codec:
    """Move the codec to a device, by default `default_device`; ConfigError for an absent one."""
    device = device or default_device()
    try:
        return codec.to(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build of torch without CUDA
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error


@contextmanager
def exact_float32() -> Iterator[None]:
    """Context without TF32 and with deterministic algorithms, because rounding decides between close codes.

    Runs in inference mode. Parametrized weights, as of weight norm, are computed once.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.backends.cudnn.flags(deterministic=True, allow_tf32=False),
            torch.inference_mode(),
            parametrize.cached(),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class WholeSignal:
    """Substitute for `codec.model.streaming.Stream` of one signal, for codecs without a streaming form.

    Collects the chunks and codes the full signal at its end, so memory grows with the signal.
    """

    def __init__(self, codec: Codec):
        self.codec = codec
        self.audio: list[Tensor] = []
        self.codes: list[Tensor] = []

    def encode(
        self, audio: Tensor, final: bool = False, num_quantizers: int | None = None, beam: int = 1
    ) -> Tensor:
        """Codes `[1, K, F]` of all audio `[1, C, T]` since the last end; none before `final`."""
        none = self.codec.quantizer.no_frames(1, num_quantizers, audio.device)
        self.audio += [audio] if audio.shape[2] else []
        if not final or not self.audio:
            return none
        signal, self.audio = torch.cat(self.audio, 2), []
        return self.codec.encode(signal, num_quantizers, beam)

    def decode(self, codes: Tensor, final: bool = False) -> Tensor:
        """Audio `[1, C, T]` of all codes `[1, K, F]` since the last end; none before `final`."""
        self.codes += [codes] if codes.shape[2] else []
        if not final or not self.codes:
            return torch.zeros(1, self.codec.audio_channels, 0, device=codes.device)
        signal, self.codes = torch.cat(self.codes, 2), []
        return self.codec.decode(signal)


def stream_or_whole(codec: Codec, side: Side) -> Stream | WholeSignal:
    """Stream of one signal, or `WholeSignal` if this side of the codec has no streaming form."""
    try:
        return codec.streaming().require(side)
    except NotStreamable:
        return WholeSignal(codec)


def encode_batch(
    codec: Codec, signals: Sequence[Tensor], num_quantizers: int | None = None, beam: int = 1
) -> list[Tensor]:
    """Codes int64 `[K, F_i]` of each signal `[C, T_i]`, in one zero-padded batch.

    The codes are equal to those of each signal alone.
    """
    hop = codec.hop_length
    frames = [-(-signal.shape[-1] // hop) for signal in signals]
    longest = max(2, *frames) * hop  # compiled code for one frame would be code of its own
    device = next(codec.parameters()).device
    batch = torch.stack([functional.pad(s, (0, longest - s.shape[-1])) for s in signals]).to(device)
    lengths = torch.tensor(frames, device=device) * hop
    codes = codec.quantizer.encode(codec.latents(batch, lengths), num_quantizers, beam).cpu()
    return [one[:, :count] for one, count in zip(codes, frames, strict=True)]


def decoder_reach(codec: Codec) -> tuple[int | None, int | None]:
    """Receptive field of a decoded sample, in frames of codes before and after its own; None if unbounded."""
    past, future = (
        None if side is None else math.ceil(side / codec.quantizer.stride)
        for side in codec.autoencoder.decoder_context
    )
    return past, future


def decode_part(
    codec: Codec, read: Callable[[int, int], Tensor], n_frames: int, start: int, stop: int
) -> Iterator[Tensor]:
    """Yield the audio of frames `start` to `stop` of a signal in chunks `[C, T]`.

    The audio is equal to a slice of the full signal's. `read(a, b)` returns codes `[K, b - a]` and is called
    only for frames in the receptive field of the part.
    """
    past, future = decoder_reach(codec)
    first = 0 if past is None else max(0, start - past)
    last = n_frames if future is None else min(n_frames, stop + future)
    device = next(codec.parameters()).device
    chunk = max(1, round(PIECE_SECONDS * codec.frame_rate))
    if last - first <= chunk:
        with exact_float32():
            audio = codec.decode(read(first, last)[None].to(device))[0]
        yield audio[:, (start - first) * codec.hop_length : (stop - first) * codec.hop_length]
        return
    position, first_sample, last_sample = (
        first * codec.hop_length,
        start * codec.hop_length,
        stop * codec.hop_length,
    )
    stream = stream_or_whole(codec, "decoder")
    for chunk_start in range(first, last, chunk):
        chunk_stop = min(chunk_start + chunk, last)
        with exact_float32():  # per chunk, as in `encode_long`
            audio = stream.decode(read(chunk_start, chunk_stop)[None].to(device), final=chunk_stop == last)[0]
        yield audio[:, max(0, first_sample - position) : max(0, last_sample - position)]
        position += audio.shape[1]


def encode_long(
    codec: Codec, blocks: Iterator[Tensor], num_quantizers: int | None = None, beam: int = 1
) -> Iterator[Tensor]:
    """Yield codes `[K, F]` of a signal in blocks `[C, T]`; joined they equal those of the full signal."""
    device = next(codec.parameters()).device
    chunk = max(1, round(PIECE_SECONDS * codec.sample_rate))
    stream = stream_or_whole(codec, "encoder")

    def encode(part: Tensor, final: bool = False) -> Tensor:
        with exact_float32():  # per chunk: held across `yield` it would also apply to the caller's code
            return stream.encode(part[None].to(device), final, num_quantizers, beam)[0].cpu()

    for block in blocks:
        yield from map(encode, block.split(chunk, dim=1))
    yield encode(torch.zeros(codec.audio_channels, 0), final=True)
