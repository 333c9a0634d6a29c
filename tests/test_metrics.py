"""Metrics against torchmetrics, against numbers of DAC's release, and against counting by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from codec.metrics.signal import (
    codebook_statistics,
    codebook_usage,
    count_codes,
    mel_distance,
    si_sdr,
    stft_distance,
)


def chirps(length: int) -> Tensor:
    """Two examples `[2, 1, length]` from a formula, so that other implementations can be fed the same."""
    t = torch.arange(length, dtype=torch.float64)
    tones = [torch.sin(2 * math.pi * 0.01 * (1 + b) * t + 1e-5 * t * t) for b in range(2)]
    return torch.stack([0.3 * tone + 0.1 * torch.sin(t * t * 0.37) for tone in tones])[:, None].float()


def pair() -> tuple[Tensor, Tensor]:
    target = chirps(3001)
    return target + 0.1 * chirps(3002)[..., 1:], target


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# SI-SDR


@pytest.mark.parametrize("zero_mean", [True, False])
def test_si_sdr_is_torchmetrics(zero_mean):
    target = noise(3, 2, 4000) + 0.1
    estimate = 0.5 * target + noise(3, 2, 4000, seed=1) * torch.tensor([0.001, 0.1, 1.0])[:, None, None]
    expected = scale_invariant_signal_distortion_ratio(estimate, target, zero_mean).mean(dim=1)
    torch.testing.assert_close(si_sdr(estimate, target, zero_mean), expected)


def test_si_sdr_is_the_level_of_independent_noise():
    target = noise(1, 1, 200_000)
    for decibels in (0, 10, 20):
        estimate = 3 * (target + noise(1, 1, 200_000, seed=1) * 10 ** (-decibels / 20))
        assert si_sdr(estimate, target) == pytest.approx(decibels, abs=0.1)


def test_si_sdr_of_silence_and_of_perfection_is_finite():
    target, silence = noise(1, 1, 500), torch.zeros(1, 1, 500)
    assert si_sdr(target, target) > 60
    for estimate, reference in ((silence, target), (target, silence), (silence, silence)):
        assert si_sdr(estimate, reference).isfinite().all()


def test_si_sdr_of_dac_s_release():
    estimate, target = pair()
    assert si_sdr(estimate, target).mean() == pytest.approx(27.644634, abs=1e-3)


# Distances


@pytest.mark.parametrize(("rate", "expected"), [(16000, 0.213835), (24000, 0.222206), (44100, 0.231118)])
def test_mel_distance_of_dac_s_release(rate, expected):
    assert mel_distance(*pair(), rate).mean() == pytest.approx(expected, rel=1e-4)


def test_stft_distance_of_dac_s_release():
    assert stft_distance(*pair()).mean() == pytest.approx(0.404742, rel=1e-4)


@pytest.mark.parametrize("distance", [lambda a, b: mel_distance(a, b, 24000), stft_distance])
def test_distances_are_per_example_and_zero_when_equal(distance):
    estimate, target = noise(3, 2, 900), noise(3, 2, 900, seed=1)
    estimate[1] = target[1]
    scores = distance(estimate, target)
    assert scores.shape == (3,)
    assert scores[1] == 0 and scores[0] > 0.1
    torch.testing.assert_close(scores[2:], distance(estimate[2:], target[2:]))
    assert distance(estimate[..., :1], target[..., :1]).isfinite().all()


def test_mel_distance_of_a_gain_is_its_logarithm_in_every_window():
    audio = noise(1, 1, 5000)
    assert mel_distance(0.1 * audio, audio, 24000) == pytest.approx(7 * 1.0, rel=1e-3)


@pytest.mark.parametrize("metric", [si_sdr, stft_distance, lambda a, b: mel_distance(a, b, 24000)])
def test_audio_of_different_shapes_is_refused(metric):
    with pytest.raises(ValueError, match="trim or pad"):
        metric(noise(1, 1, 100), noise(1, 1, 101))
    with pytest.raises(ValueError, match=r"\[B, C, T\]"):
        metric(noise(1, 100), noise(1, 100))


# Codebooks


def test_codebook_usage_counts_per_stage():
    codes = torch.tensor([[[0, 0, 1, 1], [2, 2, 2, 2]], [[0, 1, 0, 1], [2, 2, 2, 2]]])
    health = codebook_usage(codes, [4, 8])
    assert health["usage"].tolist() == [0.5, 0.125]
    assert health["perplexity"].tolist() == pytest.approx([2, 1])
    assert health["entropy"].tolist() == pytest.approx([0.5, 0])  # 1 of 2 bits, 0 of 3


def test_uniform_codes_reach_the_maximum():
    health = codebook_usage(torch.arange(1024).view(1, 1, -1), [1024])
    assert health["usage"].item() == 1
    assert health["perplexity"].item() == pytest.approx(1024)
    assert health["entropy"].item() == pytest.approx(1)


def test_perplexity_is_two_to_the_entropy_in_bits():
    counts = np.array([1, 7, 2, 0, 90])
    share = counts[counts > 0] / counts.sum()
    bits = -(share * np.log2(share)).sum()
    health = codebook_statistics([torch.from_numpy(counts)])
    assert health["perplexity"].item() == pytest.approx(2**bits)
    assert health["entropy"].item() * math.log2(5) == pytest.approx(bits)


def test_missing_codes_are_ignored():
    codes = torch.tensor([[[0, 1, -1, -1], [-1, -1, -1, -1]]])
    health = codebook_usage(codes, [2, 2])
    assert health["usage"].tolist() == [1, 0]
    assert health["perplexity"].tolist() == pytest.approx([2, 0])
    assert health["entropy"].tolist() == pytest.approx([1, 0])


def test_counts_of_batches_add_up():
    codes = torch.randint(0, 16, (4, 3, 50), generator=torch.Generator().manual_seed(0))
    sizes = [16, 32, 16]
    halves = [count_codes(part, sizes) for part in codes.split(2)]
    joint = codebook_usage(codes, sizes)
    summed = codebook_statistics([a + b for a, b in zip(*halves, strict=True)])
    for name, values in joint.items():
        torch.testing.assert_close(summed[name], values)


def test_codes_of_a_huge_codebook_are_counted_as_those_of_a_small_one():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (4, 1, 50), generator=generator)
    sizes = {"small": [16], "huge": [2**62]}
    counts = {
        name: [a + b for a, b in zip(*(count_codes(part, size) for part in codes.split(2)), strict=True)]
        for name, size in sizes.items()
    }
    small, huge = (codebook_statistics(counts[name]) for name in sizes)
    assert huge["perplexity"].item() == pytest.approx(small["perplexity"].item())
    # Shares of a larger whole.
    assert huge["usage"].item() * 2**58 == pytest.approx(small["usage"].item())
    assert huge["entropy"].item() * 62 / 4 == pytest.approx(small["entropy"].item())
    nothing = codebook_usage(torch.full((1, 1, 4), -1), [2**62])
    assert all(value.item() == 0 for value in nothing.values())
    with pytest.raises(ValueError, match=f"stage 0 has code {2**62}"):
        count_codes(torch.full((1, 1, 4), 2**62), [2**62])


def test_a_quantizer_without_stages_has_no_statistics():
    assert {
        name: len(values) for name, values in codebook_usage(torch.zeros(2, 0, 5).long(), []).items()
    } == {
        "usage": 0,
        "perplexity": 0,
        "entropy": 0,
    }


def test_impossible_codes_are_refused():
    with pytest.raises(ValueError, match="2 stages"):
        codebook_usage(torch.zeros(1, 1, 4).long(), [8, 8])
    with pytest.raises(ValueError, match="stage 1 has code 8"):
        codebook_usage(torch.full((1, 2, 4), 8), [9, 8])
