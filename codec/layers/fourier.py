"""Short-time Fourier transform and its inverse as layers."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.audio.spectrogram import overlap_add
from codec.layers.base import Context, Layer
from codec.layers.conv import split_padding
from codec.layers.streaming import Chain, Pointwise, StreamingLayer, Widened
from codec.layers.streaming_convolution import Convolution, Upsampling

FLOOR = 1e-4  # of a magnitude; windows have unit energy, so white noise keeps its level: -80 dBFS
MOST_LEVEL = 5.0  # of a log magnitude, against overflow


class STFTFeatures(Layer):
    """Audio `[B, C, T]` to features `[B, T / hop, C * 5 * bins]` of its STFT, zero-padded.

    The five features of a bin are the log magnitude, the real and imaginary part compressed to
    magnitude^`power`, so that quiet bins count next to loud ones (0.3 in ESC, arXiv 2404.19441, §3.1), and
    both uncompressed, so that a linear layer on the features can be a linear map of the samples. Frames of a
    causal layer depend on no sample after their hop.
    """

    def __init__(self, channels: int, window: int, hop: int, causal: bool, power: float = 0.3):
        super().__init__()
        check_window(window, hop)
        self.channels, self.hop, self.power = channels, hop, power
        self.left, self.right = split_padding(window - hop, causal)
        self.window: Tensor
        hann = torch.hann_window(window)
        self.register_buffer("window", hann / torch.linalg.vector_norm(hann), persistent=False)

    @property
    def num_features(self) -> int:
        """Number of features per frame."""
        return 5 * self.channels * (len(self.window) // 2 + 1)

    def forward(self, audio: Tensor) -> Tensor:
        """Transform frames and compress bins, in float32."""
        with torch.autocast(audio.device.type, enabled=False):
            padded = functional.pad(at_least_float32(audio), (self.left, self.right))
            frames = padded.unfold(-1, len(self.window), self.hop) * self.window.to(padded)
            spectrum = torch.view_as_real(torch.fft.rfft(frames))  # [B, C, F, bins, 2]
            return self.compress(spectrum.transpose(1, 2).transpose(3, 4).flatten(2, 3)).to(audio.dtype)

    def compress(self, parts: Tensor) -> Tensor:
        """Features of spectra `[B, F, C, 2, bins]`, or of the same flattened to `[B, F, C * 2 * bins]`."""
        bins = len(self.window) // 2 + 1
        parts = parts.reshape(*parts.shape[:2], self.channels, 2, bins)
        # In units of the floor, because converters to ONNX drop the addition of a constant like FLOOR^2.
        energy = parts.square().sum(3, keepdim=True) / FLOOR**2 + 1
        logs = energy.log() / math.log(FLOOR**-2) - 0.5  # -0.5 for silence to about 0.5
        compressed = parts * (energy ** ((self.power - 1) / 2) * FLOOR ** (self.power - 1))
        return torch.cat([4 * logs, compressed, 3 * parts], 3).flatten(2)

    @property
    def rate(self) -> Fraction:
        """One frame every `hop` samples."""
        return Fraction(1, self.hop)

    @property
    def context(self) -> Context:
        """Samples under the window, except the hop of the frame itself."""
        return Context(self.left, self.right)

    def stream(self) -> StreamingLayer:
        """Transform as a convolution with its basis, in float32."""
        basis = per_channel(fourier_basis(at_least_float32(self.window)), self.channels)
        steps = Convolution(basis, None, self.hop, 1, self.left, self.right)
        return widened(Chain([steps, Pointwise(Compression(self))]), self.window.dtype)

    def exported(self) -> nn.Module:
        """Transform as a convolution, which every runtime has."""
        return ConvolvedFeatures(self)


class Compression(nn.Module):
    """`STFTFeatures.compress` as a module."""

    def __init__(self, features: STFTFeatures):
        super().__init__()
        self.features = copy.deepcopy(features)

    def forward(self, parts: Tensor) -> Tensor:
        """Compress spectra `[B, F, C * 2 * bins]`."""
        return self.features.compress(parts)


class ConvolvedFeatures(nn.Module):
    """`STFTFeatures` as a convolution with the basis of the transform."""

    basis: Tensor

    def __init__(self, features: STFTFeatures):
        super().__init__()
        self.features = copy.deepcopy(features)
        self.register_buffer("basis", fourier_basis(features.window)[:, None])

    def forward(self, audio: Tensor) -> Tensor:
        """Transform and compress `[B, C, T]`."""
        padded = functional.pad(audio, (self.features.left, self.features.right))
        parts = functional.conv1d(padded.flatten(0, 1)[:, None], self.basis, stride=self.features.hop)
        parts = parts.unflatten(0, (audio.shape[0], audio.shape[1]))  # [B, C, 2 * bins, F]
        return self.features.compress(parts.permute(0, 3, 1, 2).flatten(2))


class InverseSTFT(Layer):
    """Frames `[B, F, C * 3 * bins]` to audio `[B, C, F * hop]` by windowed overlap-add.

    A bin is `exp(a) * (b + i c)` of its three inputs: `a` is the level, which has a range of 60 dB in speech,
    `b` and `c` are the phase, without a division by their norm. Vocos (arXiv 2306.00814, §3.3) predicts
    magnitude and phase angle. The synthesis window is the Hann window divided by the sum of squares of its
    overlaps. The first and last `window - hop` samples have fewer overlaps and fade; the network learns to
    compensate.
    """

    channels_last = True

    def __init__(self, channels: int, window: int, hop: int, causal: bool):
        super().__init__()
        check_window(window, hop)
        self.channels, self.hop = channels, hop
        surplus = window - hop
        self.left = 0 if causal else split_padding(surplus, causal)[0]
        hann = torch.hann_window(window)
        sums = hann.square().view(-1, hop).sum(0).repeat(window // hop)
        self.window: Tensor
        self.register_buffer("window", hann / sums, persistent=False)

    @property
    def num_inputs(self) -> int:
        """Number of inputs per frame."""
        return 3 * self.channels * (len(self.window) // 2 + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform frames back and add them up, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            parts = self.expand(at_least_float32(x))  # [B, F, C, 2, bins]
            spectrum = torch.complex(*parts.unbind(3))
            frames = torch.fft.irfft(spectrum, n=len(self.window)) * self.window.to(parts)
            return self.overlap_add(frames).to(x.dtype)

    def expand(self, x: Tensor) -> Tensor:
        """Real and imaginary parts `[B, F, C, 2, bins]` of frames `[B, F, C * 3 * bins]`."""
        x = x.reshape(*x.shape[:2], self.channels, 3, len(self.window) // 2 + 1)
        level, parts = x.split([1, 2], 3)
        return level.clamp(max=MOST_LEVEL).exp() * parts

    def overlap_add(self, frames: Tensor) -> Tensor:
        """Audio `[B, C, F * hop]` of windowed frames `[B, F, C, window]`."""
        length = frames.shape[1] * self.hop
        audio = overlap_add(frames.transpose(1, 2), self.hop)
        return audio[..., self.left : self.left + length]

    @property
    def rate(self) -> int:
        """`hop` samples per frame."""
        return self.hop

    @property
    def context(self) -> Context:
        """Frames whose windows overlap a hop."""
        surplus = len(self.window) - self.hop
        return Context(-(-(surplus - self.left) // self.hop), -(-self.left // self.hop))

    def stream(self) -> StreamingLayer:
        """Inverse transform as a transposed convolution with its basis, in float32."""
        basis = per_channel(inverse_basis(at_least_float32(self.window)), self.channels)
        steps = Chain([Pointwise(Expansion(self)), Upsampling(basis, None, self.hop, self.left)])
        return widened(steps, self.window.dtype)

    def exported(self) -> nn.Module:
        """Inverse transform as a matrix product."""
        return MultipliedInverse(self)


class Expansion(nn.Module):
    """`InverseSTFT.expand` as a module with outputs `[B, F, C * 2 * bins]`."""

    def __init__(self, inverse: InverseSTFT):
        super().__init__()
        self.inverse = copy.deepcopy(inverse)

    def forward(self, x: Tensor) -> Tensor:
        """Expand frames `[B, F, C * 3 * bins]`."""
        return self.inverse.expand(x).flatten(2)


class MultipliedInverse(nn.Module):
    """`InverseSTFT` with the inverse transform as a matrix product."""

    basis: Tensor

    def __init__(self, inverse: InverseSTFT):
        super().__init__()
        self.inverse = copy.deepcopy(inverse)
        self.register_buffer("basis", inverse_basis(inverse.window))

    def forward(self, x: Tensor) -> Tensor:
        """Transform frames `[B, F, C * 3 * bins]` back and add them up."""
        return self.inverse.overlap_add(self.inverse.expand(x).flatten(3) @ self.basis)


def check_window(window: int, hop: int) -> None:
    """Raise ValueError unless `window` is even and a multiple of `hop`, at least two hops (samples)."""
    if hop < 1 or window < 2 * hop or window % hop or window % 2:
        raise ValueError(
            f"a window must be even and a multiple of its hop, at least two hops; got window {window}, "
            f"hop {hop}: try {max(2, round(window / max(1, hop))) * max(1, hop)}"
        )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Tensor in float32, or in its own type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def widened(steps: Chain, dtype: torch.dtype) -> StreamingLayer:
    """Steps in float32 for a stream of a narrower type; others as they are, so that graphs have no casts."""
    wide = torch.promote_types(dtype, torch.float32)
    return steps if dtype == wide else Widened(steps, wide)


def fourier_basis(window: Tensor) -> Tensor:
    """Real and imaginary part of the windowed transform of each sample, `[2 * bins, window]`."""
    spectra = torch.fft.rfft(torch.diag(window.cpu().double()))  # [window, bins]
    return torch.cat([spectra.real, spectra.imag], 1).T.to(window)


def inverse_basis(window: Tensor) -> Tensor:
    """Windowed samples of each bin's real and imaginary part, `[2 * bins, window]`."""
    bins = torch.eye(len(window) // 2 + 1, dtype=torch.complex128)
    samples = torch.cat([torch.fft.irfft(bins, n=len(window)), torch.fft.irfft(1j * bins, n=len(window))])
    return (samples * window.cpu()).to(window)


def per_channel(basis: Tensor, channels: int) -> Tensor:
    """Kernels `[channels * N, channels, window]` that transform each channel separately."""
    eye = torch.eye(channels, device=basis.device, dtype=basis.dtype)
    return torch.einsum("nw,cd->cndw", basis, eye).flatten(0, 1)
