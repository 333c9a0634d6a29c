"""Spectrograms in fp32, outside autocast, for discriminators, losses and metrics.

All are laid out `[..., frames, bins]`, the memory order of the Fourier transform, so no copy is needed.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def pad_reflect(audio: Tensor, left: int, right: int) -> Tensor:
    """Pad `[B, C, T]` by reflection, or with zeros if T is too short for it."""
    mode = "reflect" if max(left, right) < audio.shape[-1] else "constant"
    return functional.pad(audio, (left, right), mode=mode)


@functools.cache
def hann_window(window: int, normalized: bool, device: torch.device) -> Tensor:
    """Periodic Hann window of `window` samples; `normalized` to unit energy preserves the level of noise."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        samples = torch.hann_window(window, device=device)
        return samples / torch.linalg.vector_norm(samples) if normalized else samples


@functools.cache
def mel_filters(sample_rate: int, window: int, n_mels: int, slaney: bool, device: torch.device) -> Tensor:
    """Mel filterbank `[bins, at most n_mels]` from 0 Hz to `sample_rate / 2`, without the empty filters.

    A filter narrower than the distance between two bins may contain no bin: 22 of 64 filters at a window of
    64 samples and 24 kHz. Its output would be constant and dilute a mean over bins.
    """
    with torch.inference_mode(False):
        low, center, high = mel_edges(sample_rate / 2, n_mels, slaney).unfold(0, n_mels, 1)
        hertz = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)[:, None]
        rising, falling = (hertz - low) / (center - low), (high - hertz) / (high - center)
        filters = torch.minimum(rising, falling).clamp(min=0)
        if slaney:  # unit area instead of unit peak
            filters = filters * 2 / (high - low)
        return filters[:, filters.amax(0) > 1e-6].to(device, torch.get_default_dtype())  # not 0: rounding


def mel_edges(highest: float, n_mels: int, slaney: bool) -> Tensor:
    """Frequencies in Hz, `[n_mels + 2]` in float64, at equal distances in mel from 0 Hz to `highest`.

    HTK's scale is 2595 log10(1 + f / 700). Slaney's (Auditory Toolbox, 1998) is linear up to 1 kHz, 15 mel,
    and grows by a factor of 6.4 in 27 mel above.
    """
    if not slaney:
        mels = torch.linspace(0, 2595 * math.log10(1 + highest / 700), n_mels + 2, dtype=torch.float64)
        return 700 * (10 ** (mels / 2595) - 1)
    growth = math.log(6.4) / 27
    last = highest * 15 / 1000 if highest < 1000 else 15 + math.log(highest / 1000) / growth
    mels = torch.linspace(0, last, n_mels + 2, dtype=torch.float64)
    return torch.where(mels < 15, mels * 1000 / 15, 1000 * torch.exp((mels - 15) * growth))


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Sum of frames `[..., F, window]` that begin every `hop` samples: `[..., (F - 1) * hop + window]`."""
    count, window = frames.shape[-2:]
    frames = functional.pad(frames, (0, -window % hop))
    blocks = frames.unflatten(-1, (-1, hop)).unbind(-2)
    last = len(blocks) - 1
    sums = torch.stack([functional.pad(block, (0, 0, i, last - i)) for i, block in enumerate(blocks)]).sum(0)
    return sums.flatten(-2)[..., : (count - 1) * hop + window]


class FramesTransform(torch.autograd.Function):
    """Fourier transform of windowed frames: audio `[..., T]` to complex `[..., F, bins]`.

    The gradient is one inverse transform of half the bins. torch's own gradient transforms all bins, in
    complex numbers, at four times the cost of the forward pass on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, audio: Tensor, window: Tensor, hop: int) -> Tensor:
        """Transform."""
        ctx.save_for_backward(window)
        ctx.hop, ctx.length = hop, audio.shape[-1]
        return torch.fft.rfft(audio.unfold(-1, len(window), hop) * window)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Adjoint: each bin's gradient counts once; an inverse transform doubles all but the ends."""
        (window,) = ctx.saved_tensors
        weight = torch.full_like(gradient[0, 0, 0].real, 0.5)
        weight[0] = 1
        weight[-1] = 1 if len(window) % 2 == 0 else 0.5
        frames = torch.fft.irfft(gradient * weight, n=len(window), norm="forward") * window
        audio = overlap_add(frames, ctx.hop)
        return functional.pad(audio, (0, ctx.length - audio.shape[-1])), None, None


def stft(audio: Tensor, window: int, hop: int, normalized: bool = False) -> Tensor:
    """STFT of padded audio `[B, C, T]`: complex `[B, C, (T - window) // hop + 1, window // 2 + 1]`."""
    samples = hann_window(window, normalized, audio.device)
    with torch.autocast(audio.device.type, enabled=False):
        flat = audio.float().flatten(0, 1)
        spectrum = torch.stft(flat, window, hop, window=samples, center=False, return_complex=True)
    return spectrum.transpose(1, 2).unflatten(0, audio.shape[:2])


def lean_stft(audio: Tensor, window: int, hop: int) -> Tensor:
    """`stft` with the gradient of `FramesTransform`, equal to torch's up to rounding."""
    if not audio.requires_grad or torch.compiler.is_compiling():
        return stft(audio, window, hop)
    with torch.autocast(audio.device.type, enabled=False):
        samples = hann_window(window, False, audio.device)
        return FramesTransform.apply(audio.float(), samples, hop)  # type: ignore[return-value]


@functools.cache
def mdct_basis(window: int, device: torch.device) -> Tensor:
    """Windowed cosines of the MDCT `[window, window // 2]`, orthonormal within and across frames."""
    bins = window // 2
    with torch.inference_mode(False):
        samples = torch.arange(window, dtype=torch.float64)[:, None] + 0.5
        phases = math.pi / bins * (samples + bins / 2) * (torch.arange(bins) + 0.5)
        sine = torch.sin(math.pi / window * samples)
        return (math.sqrt(2 / bins) * sine * phases.cos()).float().to(device)


def mdct(audio: Tensor, window: int) -> Tensor:
    """MDCT of padded audio `[B, C, T]`: real `[B, C, T // hop - 1, hop]` with hop = window / 2.

    Orthonormal lapped transform of Princen, Johnson and Bradley (ICASSP 1987) with a sine window: one
    coefficient per sample, of the same energy. `window` is even.
    """
    hop = window // 2
    basis = mdct_basis(window, audio.device)
    with torch.autocast(audio.device.type, enabled=False):
        blocks = audio.float()[..., : audio.shape[-1] // hop * hop].unflatten(-1, (-1, hop))
        # Frames overlap without copies: faster on a CPU than an FFT, with gradients, up to 640 samples.
        return blocks[..., :-1, :] @ basis[:hop] + blocks[..., 1:, :] @ basis[hop:]


def magnitude(audio: Tensor, window: int, normalized: bool = False) -> Tensor:
    """Magnitudes of the centered STFT of hop `window / 4`: `[B, C, T]` to `[B, C, T // hop + 1, bins]`."""
    return stft(pad_reflect(audio, window // 2, window // 2), window, window // 4, normalized).abs()


def mel(
    audio: Tensor, sample_rate: int, window: int, n_mels: int, slaney: bool = True, normalized: bool = False
) -> Tensor:
    """Mel magnitudes `[B, C, frames, at most n_mels]` of audio `[B, C, T]`; empty filters are left out.

    `slaney` selects Slaney's scale and unit-area filters (librosa, DAC) instead of the HTK scale and
    unit-peak filters (TensorFlow, torchaudio, SoundStream, EnCodec).
    """
    filters = mel_filters(sample_rate, window, n_mels, slaney, audio.device)
    with torch.autocast(audio.device.type, enabled=False):
        return magnitude(audio, window, normalized) @ filters
