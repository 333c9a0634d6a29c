"""Whitening that follows a young encoder and comes to rest, and what it does for scalar quantizers."""

import torch
from torch import Tensor

from codec.codebooks.fsq import FSQCodebook
from codec.codebooks.normalization import RunningWhitening, whitening_projection
from codec.quantizers.residual import Residual


def speech_like(frames: int, scale: float, seed: int) -> Tensor:
    """Latents `[N, 16]` with 95 % of their variance in one direction, as those of a young encoder."""
    generator = torch.Generator().manual_seed(seed)
    strengths = torch.tensor([0.95, 0.02, 0.015] + [0.001] * 13).sqrt()
    axes = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    return scale * (torch.randn(frames, 16, generator=generator) * strengths) @ axes + 3 * scale


def follow(whitening: RunningWhitening, batches: int, source, masked: bool = False) -> None:
    for batch in range(batches):
        inputs = source(256, seed=batch)
        used = torch.rand(256) < 0.5 if masked else torch.ones(256, dtype=torch.bool)
        inputs[~used] = torch.nan
        whitening.learn(*whitening.moments(inputs, used))


def test_a_pool_becomes_white():
    whitening = RunningWhitening(16, ridge=1e-6)
    pool = speech_like(4000, 0.02, seed=1)
    whitening.fit(pool)
    white = whitening(pool)
    torch.testing.assert_close(white.mean(0), torch.zeros(16), rtol=0, atol=1e-3)
    torch.testing.assert_close(white.T.cov(), torch.eye(16), rtol=0, atol=2e-2)


def test_directions_weaker_than_the_ridge_stay_weak():
    whitening = RunningWhitening(2, ridge=0.01)
    pool = torch.randn(4000, 2) * torch.tensor([1.0, 1e-3])
    whitening.fit(pool)
    loud, quiet = whitening(pool).std(0)
    assert 0.95 < loud < 1.05 and quiet < 0.02


def test_a_young_encoder_is_followed_and_masked_frames_are_not():
    whitening = RunningWhitening(16)
    whitening.fit(speech_like(4000, 0.02, seed=1))
    follow(whitening, 200, lambda frames, seed: speech_like(frames, 2.0, seed), masked=True)
    white = whitening(speech_like(4000, 2.0, seed=9))
    assert (white.mean(0).abs() < 0.2).all() and 0.8 < white.std(0).amax() < 1.2


def test_it_comes_to_rest():
    whitening = RunningWhitening(16)
    whitening.fit(speech_like(4000, 1.0, seed=1))
    follow(whitening, 2500, lambda frames, seed: torch.randn(frames, 16))
    before = whitening.matrix.clone()
    follow(whitening, 50, lambda frames, seed: 10 * torch.randn(frames, 16))
    torch.testing.assert_close(whitening.matrix, before, rtol=0.2, atol=0.02)


def test_what_is_not_finite_teaches_nothing():
    whitening = RunningWhitening(4)
    whitening.fit(torch.randn(100, 4))
    before = {key: value.clone() for key, value in whitening.state_dict().items()}
    inputs = torch.randn(10, 4)
    inputs[3, 1] = torch.nan
    whitening.learn(*whitening.moments(inputs, torch.ones(10, dtype=torch.bool)))
    whitening.learn(*whitening.moments(inputs, torch.zeros(10, dtype=torch.bool)))
    for key, value in whitening.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_pool_that_is_all_silence_leaves_numbers_that_can_still_learn():
    assert torch.isfinite(whitening_projection(torch.zeros(50, 16), 4)).all()
    torch.manual_seed(0)
    quantizer = Residual(16, FSQCodebook, num_quantizers=1)
    quantizer.initialise(torch.ones(100, 16))
    for batch in range(100):
        quantizer.update(quantizer(speech_like(256, 1.0, seed=batch).T[None]))
    assert len(quantizer.encode(speech_like(20000, 1.0, seed=999).T[None]).unique()) > 200


def test_latents_that_all_say_the_same_still_use_the_grid():
    torch.manual_seed(0)
    quantizer = Residual(16, FSQCodebook, num_quantizers=1)
    plain = len(quantizer.encode(speech_like(20000, 0.02, seed=2).T[None]).unique())
    quantizer.initialise(speech_like(quantizer.pool_size(), 0.02, seed=1))
    started = len(quantizer.encode(speech_like(20000, 0.02, seed=2).T[None]).unique())
    grown = speech_like(20000, 2.0, seed=2).T[None]
    for batch in range(400):
        quantizer.update(quantizer(speech_like(256, 2.0, seed=batch).T[None]))
    assert plain < 20 and started > 900 and len(quantizer.encode(grown).unique()) > 900


def test_without_whitening_it_is_the_paper_s():
    torch.manual_seed(0)
    codebook = FSQCodebook(4, levels=[7, 5, 5, 5], whiten=False)
    quantizer = Residual(4, lambda dim: codebook, num_quantizers=1)
    assert quantizer.pool_size() == 0
    inputs = 3 * torch.randn(1, 4, 200)
    quantizer.update(quantizer(inputs))
    levels = torch.tensor([7, 5, 5, 5])
    # arXiv 2309.15505, §3: for odd levels f(z) = floor(L / 2) tanh(z), rounded; listing 1 widens it by 0.1 %.
    half = (levels - 1) * 1.001 / 2
    expected = (inputs[0].T.tanh() * half).round() / (levels // 2)
    assert torch.equal(quantizer(inputs).latents[0].T, expected)
