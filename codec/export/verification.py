"""Whether an exported codec does what the codec does, before anything of it is kept."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.config import ConfigError
from codec.model import Codec
from codec.synthetic import speech

# Of two codes that are equally near either may be taken, so that not all have to agree.
EXACT_ERROR, EXACT_AGREEMENT = 1e-4, 0.98
SECONDS = 4.0  # of each voice that clips are cut from


def optional(module: str, extra: str = "export") -> Any:
    """A package of an extra; ConfigError with the command that installs it when it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = error.name or module
        raise ConfigError(f'{name} is not installed: pip install "neural-audio-codec[{extra}]"') from error


class Comparison(NamedTuple):
    """A sample's largest difference, the share of equal codes, the decoder's SNR in dB; of how many clips."""

    max_error: float
    agreement: float
    snr: float
    clips: int

    def __str__(self) -> str:
        return (
            f"{self.clips} clips: {self.agreement:.2%} of the codes agree, decoded audio within "
            f"{self.max_error:.2g} (SNR {self.snr:.1f} dB)"
        )

    def require(self, what: str, max_error: float = EXACT_ERROR, agreement: float = EXACT_AGREEMENT) -> None:
        """ConfigError unless both are kept to."""
        if not (self.max_error <= max_error and self.agreement >= agreement):
            raise ConfigError(
                f"{what} is not the codec that it was made from, nothing was kept: {self}; allowed are "
                f"{max_error:g} and {agreement:.2%}"
            )


def clip(codec: Codec, batch: int, samples: int) -> Tensor:
    """Speech-like audio `[batch, C, samples]`, the same at every call."""
    seconds = max(SECONDS, samples / codec.sample_rate)
    voices = [speech(seconds, codec.sample_rate, np.random.default_rng(seed)) for seed in range(batch)]
    audio = torch.from_numpy(np.stack(voices))[:, None, :]
    start = max(0, min(audio.shape[-1] - samples, audio.shape[-1] // 4))  # where a voice has begun
    signs = 1 - 2 * (torch.arange(codec.audio_channels) % 2)  # channels that differ
    return audio[..., start : start + samples] * signs[:, None]


@torch.no_grad()
def compare(
    codec: Codec,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    shapes: Sequence[tuple[int, int]],
    trimmed: int = 0,
) -> Comparison:
    """Let both code clips of `shapes` (batch, samples); `trimmed` last samples of the audio do not count.

    Decoders are compared on the codec's own codes, so that one code that fell on the other side of a tie
    does not hide what a decoder does.
    """
    equal = total = 0
    error, noise, signal = 0.0, 0.0, 0.0
    for batch, samples in shapes:
        audio = clip(codec, batch, samples)
        expected = codec.encode(audio)
        codes = encode(audio)
        if codes.shape != expected.shape or codes.dtype != torch.int64:
            raise ConfigError(f"codes are {codes.dtype} {list(codes.shape)}, not {list(expected.shape)}")
        equal += int((codes == expected).sum())
        total += expected.numel()
        reference, made = codec.decode(expected), decode(expected)
        length = reference.shape[-1] - trimmed
        difference = (made[..., :length] - reference[..., :length]).double()
        error = max(error, float(difference.abs().max()) if difference.isfinite().all() else float("inf"))
        noise += float(difference.square().sum())
        signal += float(reference.double().square().sum())
    snr = 10 * float(np.log10(max(signal, 1e-20) / max(noise, 1e-20)))
    return Comparison(error, equal / total, snr, len(shapes))
