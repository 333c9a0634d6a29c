"""The contract of `Discriminator`, for every yaml in configs/discriminator."""

import functools

import pytest
import torch
from composed import config, options
from torch import Tensor

from codec.config import build
from codec.discriminators.base import Discriminator

NAMES = options("discriminator")
EVERY = pytest.mark.parametrize("name", NAMES)
JUDGING = pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])


@functools.cache
def built(name: str, channels: int = 1) -> Discriminator:
    torch.manual_seed(0)
    return build(config(f"discriminator={name}", f"channels={channels}")["discriminator"])


def noise(length: int, channels: int = 1, batch: int = 2) -> Tensor:
    return 0.3 * torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(length))


def tensors_of(output) -> list[Tensor]:
    return [output.logits, *output.features]


@EVERY
def test_it_is_a_discriminator(name):
    assert isinstance(built(name), Discriminator)


@JUDGING
@pytest.mark.parametrize("length", [1, 2, 37, 1500])
def test_audio_of_any_length_is_judged(name, length):
    with torch.no_grad():
        outputs = built(name)(noise(length))
    assert outputs
    for output in outputs:
        assert output.features
        for tensor in tensors_of(output):
            assert tensor.shape[0] == 2 and tensor.numel() > 0
            assert tensor.dtype == torch.float32 and tensor.isfinite().all()


@JUDGING
def test_every_sub_discriminator_hears_every_channel(name):
    audio = noise(1500, channels=2).requires_grad_()
    for output in built(name, 2)(audio):
        (gradient,) = torch.autograd.grad(output.logits.sum(), audio, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient.abs().amax(dim=-1) > 0).all()


@JUDGING
def test_every_parameter_is_trained(name):
    discriminator = built(name)
    loss = sum(output.logits.square().mean() for output in discriminator(noise(1500)))
    parameters = dict(discriminator.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    idle = [key for key, gradient in zip(parameters, gradients, strict=True) if not gradient.any()]
    assert not idle


@JUDGING
def test_an_example_s_judgement_does_not_depend_on_its_batch(name):
    # trainers judge real and coded audio in one batch
    audio = noise(1500)
    with torch.no_grad():
        together, alone = built(name)(audio), built(name)(audio[1:])
    for both, one in zip(together, alone, strict=True):
        for a, b in zip(tensors_of(both), tensors_of(one), strict=True):
            torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-5)


@JUDGING
def test_bf16_autocast_is_close_to_fp32(name):
    audio = noise(1500)
    with torch.no_grad():
        exact = built(name)(audio)
        with torch.autocast("cpu", torch.bfloat16):
            halved = built(name)(audio.bfloat16())
    for full, half in zip(exact, halved, strict=True):
        assert half.logits.dtype == torch.bfloat16  # the convolutions did run in half precision
        for a, b in zip(tensors_of(full), tensors_of(half), strict=True):
            assert (a - b.float()).abs().max() <= 0.05 * a.abs().max() + 0.01


def test_none_judges_nothing():
    nothing = built("none")
    assert nothing(noise(100)) == []
    assert not list(nothing.parameters())
