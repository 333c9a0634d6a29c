"""The contract tests of `codec.testing` on every yaml's part, on another package's, and on broken ones."""

import importlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import config, distinct, options, small_autoencoder, small_quantizer
from test_perceptual import PACKAGES
from torch import nn

from codec import codebooks
from codec.config import build
from codec.layers.base import Context
from codec.metrics.registry import METRICS
from codec.testing import (
    check_autoencoder,
    check_codebook,
    check_discriminator,
    check_loss,
    check_metric,
    check_quantizer,
    check_source,
)


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "elsewhere"))
    yield importlib.import_module("anothercodec.parts")
    for name in [name for name in sys.modules if name.startswith("anothercodec")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", distinct("quantizer"))
def test_quantizers(name):
    torch.manual_seed(0)
    check_quantizer(small_quantizer(name))


@pytest.mark.parametrize("name", options("autoencoder"))
def test_autoencoders(name):
    torch.manual_seed(0)
    check_autoencoder(build(config(f"autoencoder={name}", *small_autoencoder(name))["autoencoder"]))


@pytest.mark.parametrize("name", sorted(set(options("discriminator")) - {"none"}))
def test_discriminators(name):
    torch.manual_seed(0)
    check_discriminator(build(config(f"discriminator={name}")["discriminator"]))


CODEBOOKS = {
    "LFQCodebook": {"codebook_bits": 4},
    "BSQCodebook": {"codebook_bits": 4},
    "FSQCodebook": {"levels": [5, 5]},
    "ScaledFSQCodebook": {"levels": [3] * 16},
}


@pytest.mark.parametrize("name", sorted(set(codebooks.__all__) - {"Codebook", "rotation_trick"}))
def test_codebooks(name):
    torch.manual_seed(0)
    check_codebook(getattr(codebooks, name)(16, **CODEBOOKS.get(name, {"codebook_size": 32})), 16)


@pytest.mark.parametrize("name", options("loss"))
def test_losses(name):
    objective = build(config(f"loss={name}", "channels=2", "sample_rate=16000")["loss"])
    for loss in objective.reconstruction.values():
        check_loss(loss, audio_channels=2)


SLOW = {"visqol_speech", "visqol_audio", "dnsmos_p808"}  # tests of the registry score them too


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.exhaustive] if name in SLOW else []) for name in METRICS],
)
def test_metrics(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason="needs the extra `metrics`")
    check_metric(METRICS[name])


def test_parts_of_another_package(parts):
    torch.manual_seed(0)
    check_autoencoder(parts.PlainAutoencoder())
    check_codebook(parts.FrozenCodebook(16), 16)
    check_discriminator(parts.WaveDiscriminator())
    check_loss(parts.WaveformL2())
    check_metric(parts.PEAK_ERROR)
    check_source(parts.Clicks())


def test_broken_parts_are_named_by_their_rule(parts):
    class Moody(parts.FrozenCodebook):
        def encode(self, inputs):
            return super().encode(inputs) if len(inputs) > 24 else super().encode(inputs) * 0

    class Blind(parts.PlainAutoencoder):
        def decode(self, latents):
            return self.synthesis(latents)[..., :-1]

    class Liar(parts.PlainAutoencoder):
        @property
        def decoder_context(self):
            return Context(None, 0)

    class Constant(nn.Module):
        def forward(self, estimate, target):
            return estimate.sum() * 0 + 1

    def drawn(estimate, reference, rate):
        return np.abs(estimate - reference).max() * np.random.rand()

    class Shared(parts.Clicks):
        def open(self, id):
            self.file = getattr(self, "file", None) or super().open("0.wav")
            return self.file

    class Local(parts.Clicks):
        pass

    class Text(parts.Clicks):
        def open(self, id):
            return io.BytesIO(b"x" * self.sizes()[id])

    for check, broken, rule in (
        (lambda part: check_codebook(part, 16), Moody(16), "do not depend on the batch"),
        (check_autoencoder, Blind(), r"decode gives \[B, C, F"),
        (check_autoencoder, Liar(), "decoder_context: nothing earlier"),
        (check_loss, Constant(), "equal audio has a smaller loss"),
        (check_source, Shared(), "do not move each other"),
        (check_source, Text(count=2), "recordings are audio, 0.wav: not audio"),
        (check_source, Local(count=1), "a source is pickled for other processes: .*Local"),
        (check_metric, replace(parts.PEAK_ERROR, lower=False), "equal audio has a higher score"),
        (check_metric, replace(parts.PEAK_ERROR, load=lambda: drawn), "a score draws no random numbers"),
    ):
        with pytest.raises(AssertionError, match=rule):
            check(broken)
