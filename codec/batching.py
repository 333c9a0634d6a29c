"""Several signals at once, or a part of one, with the results that each whole signal has alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from codec.config import ConfigError
from codec.layers import Conv1d, ConvTranspose1d
from codec.model import Codec

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


def encode_batch(
    codec: Codec, signals: Sequence[Tensor], num_quantizers: int | None = None, beam: int = 1
) -> list[Tensor]:
    """Codes int64 `[K, F_i]` of each signal `[C, T_i]`, the same as of that signal alone, in one batch.

    Shorter signals are filled up with zeros. A convolution that looks ahead would see what the layers before
    it make of those zeros; alone it sees zeros, so they are put back before each one.
    """
    hop = codec.hop_length
    frames = [-(-signal.shape[-1] // hop) for signal in signals]
    longest = max(frames) * hop
    device = next(codec.parameters()).device
    batch = torch.stack([functional.pad(s, (0, longest - s.shape[-1])) for s in signals]).to(device)
    lengths = torch.tensor(frames, device=device) * hop
    with zeros_beyond(codec.autoencoder.encoder, lengths, longest):
        codes = codec.encode(batch, num_quantizers, beam).cpu()
    return [one[:, :count] for one, count in zip(codes, frames, strict=True)]


@contextmanager
def zeros_beyond(encoder: nn.Module, lengths: Tensor, longest: int) -> Iterator[None]:
    """Let convolutions that look ahead see zeros beyond each item's length `[B]`, of `longest` samples."""

    def mask(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (x,) = inputs
        # Lengths are whole frames, and a layer's rate divides a frame.
        end = lengths * x.shape[-1] // longest
        return x.masked_fill((torch.arange(x.shape[-1], device=x.device) >= end[:, None])[:, None], 0)

    ragged = bool((lengths < longest).any())
    ahead = [m for m in encoder.modules() if isinstance(m, Conv1d) and looks_ahead(m)] if ragged else []
    hooks = [layer.register_forward_pre_hook(mask) for layer in ahead]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def looks_ahead(layer: Conv1d) -> bool:
    """Whether an output depends on inputs after its own place."""
    conv: Any = layer.conv
    (stride,), (dilation,), (kernel_size,) = conv.stride, conv.dilation, conv.kernel_size
    left = conv.padding[0] or layer.padding[0]
    return (kernel_size - 1) * dilation + 1 - stride > left


def decoder_reach(codec: Codec) -> tuple[int | None, int]:
    """Frames before and after its own that a sample of the decoded audio can depend on; None: all before."""
    reach, rate, recurrent = 0.0, 1, False
    for layer in codec.autoencoder.decoder.modules():
        conv: Any = getattr(layer, "conv", None)
        if isinstance(layer, Conv1d):
            reach += (conv.kernel_size[0] - 1) * conv.dilation[0] / rate
        elif isinstance(layer, ConvTranspose1d):
            reach += conv.kernel_size[0] / conv.stride[0] / rate
            rate *= conv.stride[0]
        recurrent |= isinstance(layer, nn.RNNBase)
    frames = math.ceil(reach / codec.quantizer.stride) + 1
    return None if recurrent else frames, frames


def decode_part(
    codec: Codec, read: Callable[[int, int], Tensor], n_frames: int, start: int, stop: int
) -> Iterator[Tensor]:
    """Audio `[C, T]` of frames `start` to `stop` of a signal, in pieces, as cut from the whole signal's.

    `read(a, b)` gives codes `[K, b - a]`; only frames that the part depends on are asked for.
    """
    before, after = decoder_reach(codec)
    first = 0 if before is None else max(0, start - before)
    last = min(n_frames, stop + after)
    device = next(codec.parameters()).device
    piece = max(1, round(PIECE_SECONDS * codec.frame_rate))
    if last - first <= piece:
        with exact_float32():
            audio = codec.decode(read(first, last)[None].to(device))[0]
        yield audio[:, (start - first) * codec.hop_length : (stop - first) * codec.hop_length]
        return
    position, begin, end = first * codec.hop_length, start * codec.hop_length, stop * codec.hop_length
    with codec.streaming() as stream:
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
    stream = codec.streaming()

    def encode(part: Tensor, final: bool = False) -> Tensor:
        with exact_float32():  # and not around a yield, which would take the caller along
            return stream.encode(part[None].to(device), final, num_quantizers, beam)[0].cpu()

    for block in blocks:
        yield from map(encode, block.split(piece, dim=1))
    yield encode(torch.zeros(codec.audio_channels, 0), final=True)
