"""Transforms against printed formulas, torch's own gradients and perfect reconstruction."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.audio.spectrogram import hann_window, lean_stft, mdct, overlap_add

WINDOWS = pytest.mark.parametrize("window", [8, 10, 32, 100, 512])


def noise(channels: int, length: int, silent: int = 0) -> Tensor:
    """Audio `[2, channels, length]` with `silent` samples at both ends."""
    audio = torch.randn(2, channels, length, generator=torch.Generator().manual_seed(length))
    audio[..., :silent] = audio[..., length - silent :] = 0
    return audio


def inverse(spectrum: np.ndarray) -> np.ndarray:
    """Princen and Bradley's synthesis: windowed cosines `[..., window]`, overlapped by half and added."""
    bins = spectrum.shape[-1]
    n, k = np.arange(2 * bins), np.arange(bins)
    cosines = np.cos(np.pi / bins * np.outer(k + 0.5, n + 0.5 + bins / 2))
    frames = math.sqrt(2 / bins) * (spectrum @ cosines) * np.sin(np.pi * (n + 0.5) / (2 * bins))
    audio = np.zeros((*spectrum.shape[:-2], (spectrum.shape[-2] + 1) * bins))
    for frame in range(spectrum.shape[-2]):
        audio[..., frame * bins : (frame + 2) * bins] += frames[..., frame, :]
    return audio


@WINDOWS
def test_mdct_is_its_double_sum(window):
    bins = window // 2
    audio = noise(2, 3 * bins + bins - 1)  # what does not fill a hop at the end is left out
    found = mdct(audio, window)
    assert found.shape == (2, 2, 2, bins) and found.dtype == torch.float32
    for frame in range(2):
        for k in range(0, bins, max(1, bins // 16)):
            expected = sum(
                audio[..., frame * bins + n].double()
                * math.sin(math.pi * (n + 0.5) / window)
                * math.cos(math.pi / bins * (n + 0.5 + bins / 2) * (k + 0.5))
                for n in range(window)
            ) * math.sqrt(2 / bins)
            torch.testing.assert_close(found[..., frame, k].double(), expected, atol=2e-5, rtol=0)


@WINDOWS
def test_aliases_of_adjacent_frames_cancel(window):
    bins = window // 2
    audio = noise(1, 7 * bins)
    restored = inverse(mdct(audio, window).double().numpy())
    # The first and the last hop are in one frame only
    np.testing.assert_allclose(restored[..., bins:-bins], audio[..., bins:-bins], atol=1e-5)
    assert not np.allclose(restored[..., :bins], audio[..., :bins], atol=0.1)


@WINDOWS
def test_mdct_keeps_energy(window):
    audio = noise(2, 6 * window, silent=window // 2)
    energies = mdct(audio, window).square().sum(dim=(2, 3))
    torch.testing.assert_close(energies, audio.square().sum(dim=2), rtol=1e-5, atol=0)


def test_mdct_is_not_halved_by_autocast():
    audio = noise(1, 1600)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mdct(audio, 32), mdct(audio.double(), 32))
        assert mdct(audio, 32).dtype == torch.float32
    torch.testing.assert_close(inverse(mdct(audio, 32).double().numpy())[0, 0, 800], audio[0, 0, 800].item())


@pytest.mark.parametrize(
    ("window", "hop", "length"), [(64, 16, 301), (60, 20, 200), (32, 32, 96), (9, 4, 50)]
)
def test_the_gradient_of_the_stft_is_torchs(window, hop, length):
    audio = noise(3, length).requires_grad_()
    ours = lean_stft(audio, window, hop)
    samples = hann_window(window, False, audio.device)
    plain = torch.stft(audio.flatten(0, 1), window, hop, window=samples, center=False, return_complex=True)
    theirs = plain.transpose(1, 2).unflatten(0, (2, 3))
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(theirs)
    gradients = [torch.autograd.grad(spectrum, audio, weights)[0] for spectrum in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("window", "hop"), [(8, 2), (7, 3), (4, 4), (5, 8)])
def test_frames_are_added_where_they_begin(window, hop):
    frames = torch.randn(2, 6, window, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 5 * hop + window)
    for number in range(6):
        expected[:, number * hop : number * hop + window] += frames[:, number]
    torch.testing.assert_close(overlap_add(frames, hop), expected)
