"""The Gaussian channel: rates, errors and gradients against closed forms and finite differences."""

import math

import pytest
import torch
from test_stages import CODES, at, interrupted, staged
from test_training import assert_same, last

from codec.quantizers.channel import GaussianChannel, noise_for
from codec.quantizers.continuous import Identity
from codec.training.stages import Stage, stand_ins

CHANNEL = "{name: channel, steps: 3, bottleneck: channel, lr: 0.01}"
SCALES = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1, 0.0])


def latents(count: int, seed: int = 0) -> torch.Tensor:
    """Correlated Gaussian latents `[count, 6]` around 3, one direction empty."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    return torch.randn(count, 6, generator=generator) * SCALES @ turn.T + 3


def channel(pool: torch.Tensor, *bits: float) -> GaussianChannel:
    made = GaussianChannel(pool.shape[1], bits)
    made.initialise(pool)
    return made


@pytest.mark.parametrize("bits", [0.5, 4.0, 40.0])
def test_the_noise_leaves_the_bits_that_were_asked_for(bits):
    variances = SCALES.double() ** 2
    noise = noise_for(variances, bits)
    spent = torch.logdet(torch.eye(6) + torch.diag(variances) / noise) / (2 * math.log(2))
    assert float(spent) == pytest.approx(bits, rel=1e-9)


def test_latents_that_never_vary_are_refused():
    with pytest.raises(ValueError, match=r"latents do not vary: lower optimizer\.generator\.lr"):
        noise_for(torch.zeros(4).double(), 8.0)


def test_the_error_of_the_estimate_is_the_wiener_filter_s():
    inputs = latents(200_000)
    passed = channel(inputs, 2.0, 8.0)(inputs.T[None], 2, generator=torch.Generator().manual_seed(1)).latents
    variances = torch.linalg.eigvalsh(inputs.T.cov().double()).clamp(min=0)
    noise = noise_for(variances, 8.0)
    wanted = float((variances * noise / (variances + noise)).sum())
    assert float((passed[0].T - inputs).square().sum(1).mean()) == pytest.approx(wanted, rel=0.02)


def test_each_example_passes_at_its_own_rate():
    inputs = latents(40_000).view(2, 20_000, 6).mT
    made = channel(latents(40_000), 1.0, 6.0, 20.0)
    rates = torch.tensor([3, 1])
    passed = made(inputs, rates, generator=torch.Generator().manual_seed(1)).latents
    fine, coarse = (passed - inputs).square().sum(1).mean(1).tolist()
    assert fine < 0.1 * coarse
    alone = made(inputs[1:], 1, generator=torch.Generator().manual_seed(2)).latents - inputs[1:]
    assert coarse == pytest.approx(float(alone.square().sum(1).mean()), rel=0.05)


def test_without_a_generator_latents_pass_unchanged():
    inputs = latents(64).T[None]
    assert torch.equal(channel(latents(64), 4.0)(inputs).latents, inputs)


def test_the_gradient_is_that_at_a_fixed_rate():
    inputs = latents(30, seed=3).double() + torch.randn(30, 6, generator=torch.Generator().manual_seed(4))
    made = channel(inputs, 5.0).double()
    away = inputs - made.mean
    made.covariance.copy_(away.T @ away / len(away))  # the batch's, so that no average hides the gradient
    weights = torch.randn(30, 6, generator=torch.Generator().manual_seed(5)).double()
    noise = torch.empty(30, 6).double().normal_(generator=torch.Generator().manual_seed(6))
    variances, axes = torch.linalg.eigh(made.covariance.double())
    power = noise_for(variances, 5.0)
    wiener = (axes * (variances / (variances + power))) @ axes.T

    def brute_force(given: torch.Tensor) -> float:
        """The channel with its gain found by bisection for these latents alone."""
        moved = given - made.mean
        variances = torch.linalg.eigvalsh(moved.T @ moved / len(moved))
        gain = (power / noise_for(variances, 5.0)) ** 0.5
        return float((((gain * moved + power**0.5 * noise) @ wiener + made.mean) * weights).sum())

    leaf = inputs.clone().requires_grad_(True)
    passed = made.transmit(leaf[None], torch.tensor([0]), torch.Generator().manual_seed(6))
    (passed[0] * weights).sum().backward()
    assert leaf.grad is not None
    for row, column in ((0, 0), (7, 3), (29, 5)):
        step = torch.zeros_like(inputs)
        step[row, column] = 1e-4
        slope = (brute_force(inputs + step) - brute_force(inputs - step)) / 2e-4
        assert float(leaf.grad[row, column]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_averages_follow_the_latents_of_training():
    made, moved = channel(latents(4096), 4.0), latents(4096, seed=9) * 2
    for _ in range(300):
        made.update(made(moved.T[None]))
    torch.testing.assert_close(made.mean, moved.mean(0), rtol=0.01, atol=0.01)
    torch.testing.assert_close(made.covariance, moved.T.cov(), rtol=0.01, atol=0.02)


def test_a_channel_needs_a_quantizer_with_a_rate():
    stages = [Stage("a", 1, bottleneck="none"), Stage("b", 1, bottleneck="channel")]
    with pytest.raises(
        ValueError, match=r"has no codes: take another, or training\.stages\.1\.bottleneck=none$"
    ):
        stand_ins(stages, Identity(8))
    with pytest.raises(ValueError, match="bottleneck must be codes, channel, none, got 'noise'"):
        Stage("a", 1, bottleneck="noise")


def test_a_channel_stage_teaches_the_autoencoder_and_is_resumed_bit_for_bit(tmp_path, wavs):
    stages = (CHANNEL, CODES)
    assert staged(tmp_path / "whole", wavs, stages=stages) == 0
    states = {step: at(tmp_path / "whole", step)["state_dict"] for step in (1, 3, 4)}
    covariances = [state["stand_ins.channel.covariance"] for state in states.values()]
    assert not torch.equal(covariances[0], covariances[1]) and torch.equal(covariances[1], covariances[2])
    started = [bool(state["codec.quantizer.codebooks.0.initialised"]) for state in states.values()]
    assert started == [False, False, True]
    assert {"valid/mel", "train/mel"} <= set(logged_names(tmp_path / "whole"))
    for step in (2, 5):
        interrupted(tmp_path / str(step), wavs, step, stages=stages)
        assert staged(tmp_path / str(step), wavs, "resume=auto", stages=stages) == 0
        assert_same(last(tmp_path / "whole"), last(tmp_path / str(step)))


def test_a_channel_may_be_added_before_its_stage_begins(tmp_path, wavs):
    assert staged(tmp_path, wavs, stages=("{name: plain, steps: 3, bottleneck: none}",)) == 0
    stages = ("{name: plain, steps: 3, bottleneck: none}", CHANNEL)
    assert staged(tmp_path, wavs, "resume=auto", stages=stages) == 0
    assert "stand_ins.channel.covariance" in at(tmp_path, 6)["state_dict"]


def logged_names(folder) -> list[str]:
    return (folder / "run/metrics.csv").read_text().splitlines()[0].split(",")
