"""Accumulation and recomputed activations: the same step as at once, in less memory."""

import copy
import shutil
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from benchmark_training import BareTrainer, BareTraining
from composed import config, shrink
from test_training import assert_same, command, config_before_training, distance, last, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codec.audio import spectrogram
from codec.config import ConfigError, build
from codec.data.crops import Batch
from codec.discriminators.mdct import MultiResolutionMDCTDiscriminator
from codec.layers.recompute import recompute
from codec.losses.adversarial import Hinge
from codec.model.saving import build_codec

pytestmark = pytest.mark.filterwarnings("default")
BATCH, STEPS = 8, 3
PARTS, BLOCKS = "training.accumulate=4", "training.checkpoint_activations=true"
ENCODEC = ("loss=encodec", "loss.reconstruction.spectral.windows=[64,256]", "discriminator.windows=[256]")
CHANNEL = "training.stages=[{name: channel, steps: 9, bottleneck: channel, adversarial: true}]"


def training(*overrides: str) -> BareTraining:
    """A tiny codec with all that depends on a whole batch: adversary, moving averages, dropout, dead codes."""
    node = config(
        *("experiment=tiny", "optimizer=adamw", "optimizer.schedule.warmup_steps=0"),
        *("autoencoder.latent_dim=8", "autoencoder.encoder_channels=2", "autoencoder.decoder_channels=2"),
        *("training.adversarial_from=0", "training.revive_every=2", "training.average_decay=0.9"),
        *overrides,
    )
    shrink(node["quantizer"], {"codebook_size": 16, "num_quantizers": 3, "codebook_bits": 4})
    shrink(node["discriminator"], {"channels": 2})
    options = {name: value for name, value in node["training"].items() if not name.startswith("_")}
    options["stages"] = build(options["stages"], path="training.stages")
    torch.manual_seed(0)
    parts = [build(node[name], path=name) for name in ("discriminator", "loss", "optimizer")]
    module = BareTraining(build_codec(node["model"] | {"quantizer": node["quantizer"]}), *parts, **options)
    module.trainer = BareTrainer(module.configure_optimizers())
    return module


def train(module: BareTraining, steps: int = STEPS) -> list[dict[str, Any]]:
    """Train on noise; numbers of each step by name."""
    audio = 0.3 * torch.randn(STEPS, BATCH, 1, 1600, generator=torch.Generator().manual_seed(1))
    module.codec.quantizer.initialise(module.codec.latents(audio.flatten(0, 1)).detach().mT.flatten(0, 1))
    numbers = []
    for batch in audio[:steps]:
        step = module.training_step(Batch.of(batch, torch.arange(BATCH)), module.steps)["step"]
        numbers.append(step._asdict() | step.losses | module.gradient_norms)
        del numbers[-1]["losses"]
        module.steps += 1
    return numbers


@pytest.fixture
def in_float64(monkeypatch):
    """All arithmetic in float64, where rounding hides no mistake."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        for cached in (one for one in vars(spectrogram).values() if hasattr(one, "cache_clear")):
            cached.cache_clear()  # windows and filters of the other type
        if dtype == torch.float64:
            yield


@pytest.mark.parametrize(
    "options",
    [
        # A balancer, and features relative to their mean over the batch.
        (*ENCODEC, "quantizer.dropout=0.7", "quantizer.codebook.dead_threshold=0.9"),
        # Windows drawn by the loss; an entropy of the mean over the batch.
        ("loss=spectral", "discriminator=none", "quantizer=bsq"),
        # Noise, and a rate that all examples share.
        pytest.param(
            (*ENCODEC, "trainer.max_steps=null", CHANNEL),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(("loss=dac", "quantizer=factorized_rvq"), marks=pytest.mark.exhaustive),
    ],
)
def test_parts_of_a_batch_train_as_the_batch_does(in_float64, options):
    whole, parts = training(*options), training(*options, PARTS)
    torch.testing.assert_close(train(parts), train(whole), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-8, atol=1e-8)


class Memory(TorchDispatchMode):
    """Bytes of the tensors made within, now and at most."""

    bytes = peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not hasattr(storage := tensor.untyped_storage(), "counted"):
                storage.counted = True
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.free, storage.nbytes())
        return result

    def free(self, size: int) -> None:
        self.bytes -= size


def peak(*overrides: str) -> int:
    """Bytes of one training step, beside weights and optimizers."""
    module = training(*ENCODEC, "autoencoder.encoder_channels=8", "autoencoder.decoder_channels=8", *overrides)
    train(module, 1)
    audio = 0.3 * torch.randn(BATCH, 1, 3200)
    with Memory() as memory:
        module.training_step(Batch.of(audio, torch.arange(BATCH)), 1)
    return memory.peak


def test_memory_falls():
    whole, parts, blocks, both = peak(), peak(PARTS), peak(BLOCKS), peak(PARTS, BLOCKS)
    print(whole, parts, blocks, both)
    print(peak(PARTS.replace("4","2")),peak(PARTS.replace("4","8")))
    whole, blocks = peak("discriminator=none", "loss=mel"), peak("discriminator=none", "loss=mel", BLOCKS)
    print(whole, parts, blocks, both)
    assert 0
