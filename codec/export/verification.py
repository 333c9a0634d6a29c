"""Verification of an exported codec against the original."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.audio.synthetic import speech
from codec.config import ConfigError
from codec.metrics.signal import MEL_WINDOWS, mel_distance
from codec.model.codec import Codec

SECONDS = 4.0  # length of each voice from which clips are cut


def optional(module: str, extra: str = "export") -> Any:
    """Import a package of an extra; ConfigError with the install command if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = error.name or module
        raise ConfigError(f'{name} is not installed: pip install "neural-audio-codec[{extra}]"') from error


class Limits(NamedTuple):
    """Limits for the fields of a `Comparison`."""

    max_error: float = float("inf")
    agreement: float = 0.0
    snr: float = float("-inf")
    rise: float = float("inf")


# Ties between equally near codes may break either way, so less than 100 % agreement is required.
EXACT = Limits(max_error=1e-4, agreement=0.98)


class Comparison(NamedTuple):
    """Comparison of an export with its codec.

    Largest error of a decoded sample, share of equal codes (of latents, see `agreeing`), SNR of the
    decoder in dB, number of clips, and relative increase of the mel distance to the clips.
    """

    max_error: float
    agreement: float
    snr: float
    clips: int
    rise: float = 0.0

    @classmethod
    def worst(cls, several: Iterable[Comparison]) -> Comparison:
        """Combine comparisons: the worst of each value, and the total number of clips."""
        errors, agreements, ratios, clips, rises = zip(*several, strict=True)
        return cls(max(errors), min(agreements), min(ratios), sum(clips), max(rises))

    def __str__(self) -> str:
        rise = round(self.rise, 3) + 0.0  # no -0.0
        return (
            f"{self.clips} clips: {self.agreement:.2%} of the codes or latents agree, decoded audio within "
            f"{self.max_error:.2g} (SNR {self.snr:.1f} dB), mel distance to the clips {rise:+.1%}"
        )

    def require(self, what: str, limits: Limits = EXACT) -> None:
        """Raise ConfigError unless all limits are met."""
        checks = {
            f"{limits.agreement:.0%} of the codes": self.agreement >= limits.agreement,
            f"audio within {limits.max_error:g}": self.max_error <= limits.max_error,
            f"SNR {limits.snr:g} dB": self.snr >= limits.snr,
            f"mel distance {limits.rise:+.0%}": self.rise <= limits.rise,
        }
        missed = [limit for limit, passes in checks.items() if not passes]
        if missed:
            raise ConfigError(
                f"{what} is not the codec that it was made from, nothing was kept: {self}; the limits are "
                f"{', '.join(missed)}"
            )


def clip(codec: Codec, batch: int, samples: int) -> Tensor:
    """Generate speech-like audio `[batch, C, samples]`, the same at every call."""
    seconds = max(SECONDS, samples / codec.sample_rate)
    voices = [speech(seconds, codec.sample_rate, np.random.default_rng(seed)) for seed in range(batch)]
    audio = torch.from_numpy(np.stack(voices))[:, None, :]
    start = max(0, min(audio.shape[-1] - samples, audio.shape[-1] // 4))  # after the onset of a voice
    signs = 1 - 2 * (torch.arange(codec.audio_channels) % 2)  # makes the channels differ
    return audio[..., start : start + samples] * signs[:, None]


@torch.no_grad()
def compare(
    codec: Codec,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    shapes: Sequence[tuple[int, int]],
    trimmed: int = 0,
    stages: int | None = None,
    condition: str | None = None,
) -> Comparison:
    """Code clips of `shapes` (batch, samples) with both; the `trimmed` last samples of the audio are ignored.

    All codes are of the first `stages`. Decoders are compared on the codec's codes, so that a tie that breaks
    the other way does not count as a decoding error. Mel distances are measured on each one's own codes.
    """
    equal = total = 0
    error, noise, signal = 0.0, 0.0, 0.0
    distances: list[tuple[float, float]] = []
    for batch, samples in shapes:
        audio = clip(codec, batch, samples)
        expected = codec.encode(audio, stages, condition=condition)
        codes = encode(audio)
        if codes.shape != expected.shape or codes.dtype != expected.dtype:
            raise ConfigError(
                f"codes or latents are {codes.dtype} {list(codes.shape)}, not {list(expected.shape)}"
            )
        equal += agreeing(codes, expected)
        total += expected.numel()
        reference, output = codec.decode(expected), decode(expected)
        length = reference.shape[-1] - trimmed
        difference = (output[..., :length] - reference[..., :length]).double()
        error = max(error, float(difference.abs().max()) if difference.isfinite().all() else float("inf"))
        noise += float(difference.square().sum())
        signal += float(reference.double().square().sum())
        estimate = output if torch.equal(codes, expected) else decode(codes)
        length = min(length, samples)
        if length >= max(MEL_WINDOWS):
            reference_distance, output_distance = (
                float(mel_distance(x[..., :length], audio[..., :length], codec.sample_rate).mean())
                for x in (reference, estimate)
            )
            distances.append((reference_distance, output_distance))
    snr = 10 * float(np.log10(max(signal, 1e-20) / max(noise, 1e-20)))
    return Comparison(error, equal / total, snr, len(shapes), relative_rise(distances))


def agreeing(coded: Tensor, expected: Tensor) -> int:
    """Number of equal codes, or of continuous latents within 1e-4 of their largest."""
    if not expected.is_floating_point():
        return int((coded == expected).sum())
    return int(((coded - expected).abs() <= 1e-4 * expected.abs().max()).sum())


def relative_rise(distances: Sequence[tuple[float, float]]) -> float:
    """Relative increase from the first to the second numbers; 0 for none, infinite for NaN."""
    reference, output = (sum(pair[side] for pair in distances) for side in (0, 1))
    rise = output / reference - 1 if reference else 0.0
    return rise if np.isfinite(rise) else float("inf")
