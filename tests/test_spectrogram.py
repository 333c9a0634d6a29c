"""The MDCT against its printed formula and against what makes it one: reconstruction from as many numbers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.spectrogram import mdct

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
