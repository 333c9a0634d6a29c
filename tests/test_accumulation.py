"""Accumulation and recomputed activations: the same step as at once, in less memory."""

import copy
import os
import subprocess
import sys
import weakref
from typing import Any
from unittest import mock

import pytest
import torch
from benchmark_training import BareTrainer, BareTraining
from composed import config, shrink
from test_training import assert_same, command, config_before_training, distance, last, run
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codec.audio import spectrogram
from codec.config import ConfigError, build
from codec.data.crops import Batch
from codec.layers.recompute import check_examples_apart, in_parts, recompute
from codec.model.saving import build_codec
from codec.training.module import CodecTraining

pytestmark = pytest.mark.filterwarnings("default")
BATCH, STEPS = 8, 3
PARTS, BLOCKS = "training.accumulate=4", "training.checkpoint_activations=true"
ENCODEC = ("loss=encodec", "loss.reconstruction.spectral.windows=[64,256]", "discriminator.windows=[256]")
CHANNEL = "training.stages=[{name: channel, steps: 9, bottleneck: channel, adversarial: true}]"


def training(*overrides: str) -> BareTraining:
    """A tiny codec with all that depends on a whole batch: adversary, moving averages, dead codes."""
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
        norms = {f"norm_{name}": norm for name, norm in module.gradient_norms.items()}
        numbers.append(step._asdict() | step.losses | norms)
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
            if isinstance(tensor, torch.Tensor) and not hasattr(
                storage := tensor.untyped_storage(), "counted"
            ):
                storage.counted = True
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.free, storage.nbytes())
        return result

    def free(self, size: int) -> None:
        self.bytes -= size


def peak(*overrides: str) -> int:
    """Bytes of one training step, beside weights and optimizers."""
    module = training(
        *ENCODEC, "autoencoder.encoder_channels=8", "autoencoder.decoder_channels=8", *overrides
    )
    audio = 0.3 * torch.randn(BATCH, 1, 3200)
    with Memory() as memory:
        module.training_step(Batch.of(audio, torch.arange(BATCH)), 0)
    return memory.peak


def test_parts_and_blocks_take_less_memory():
    whole = peak()
    assert peak(PARTS) < whole / 4
    assert peak(BLOCKS) < 0.8 * whole


def test_blocks_are_recomputed_to_the_last_bit_under_the_same_names():
    stored, recomputed = training(*ENCODEC), training(*ENCODEC, BLOCKS)
    torch.testing.assert_close(train(recomputed, 2), train(stored, 2), rtol=0, atol=0)
    torch.testing.assert_close(recomputed.state_dict(), stored.state_dict(), rtol=0, atol=0)


def test_a_copy_recomputes_its_own_blocks():
    network = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), MLP()))
    recompute(network)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network[0][1].layer.weight.zero_()
    twin(torch.ones(1, 2)).sum().backward()
    assert twin[0][1].layer.weight.grad.any() and network[0][1].layer.weight.grad is None


class MLP(nn.Module):
    """A block."""

    def __init__(self):
        super().__init__()
        self.layer, self.activation = nn.Linear(2, 2), nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.layer(x))


def test_one_part_that_is_not_finite_skips_the_whole_step():
    module = training(*ENCODEC, PARTS)
    train(module, 1)
    before = copy.deepcopy(module.state_dict())
    audio = torch.randn(BATCH, 1, 1600)
    audio[5] = float("nan")
    assert not module.training_step(Batch.of(audio, torch.arange(BATCH)), 1)["step"].finite
    after = module.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name for name in changed if "balancer" not in name} == {"skipped"}  # it averages what is finite


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(tmp_path, wavs):
    options = ["training.accumulate=2", "training.adversarial_from=0", "quantizer.dropout=1.0"]
    whole = run(tmp_path / "whole", wavs, "trainer.max_steps=2", *options)
    run(tmp_path / "parts", wavs, "trainer.max_steps=1", *options)
    assert_same(whole, run(tmp_path / "parts", wavs, "trainer.max_steps=2", "resume=auto", *options))
    assert whole["global_step"] == 2 and whole["AudioDataModule"] == {"seen": 8}  # joint batches


def test_gradients_are_reduced_once_for_each_player(tmp_path, wavs, monkeypatch):
    counted, original = [], CodecTraining.on_train_start

    def average(state, bucket):
        counted.append(bucket.is_last())
        return allreduce_hook(None, bucket)

    def watch(module):
        original(module)
        module.trainer.strategy.model.register_comm_hook(None, average)

    options = ["training.accumulate=4", "training.adversarial_from=0", "trainer.max_steps=2"]
    alone = run(tmp_path / "alone", wavs, *options)
    monkeypatch.setattr(CodecTraining, "on_train_start", watch)
    try:
        with mock.patch.dict(os.environ):  # Lightning leaves ranks there, and later trainings wait
            ddp = run(tmp_path / "ddp", wavs, *options, "trainer=ddp", "trainer.devices=1")
    finally:
        torch.distributed.destroy_process_group()
    assert sum(counted) == 2 * 2  # steps times players
    assert_same(alone, ddp)


def test_impossible_parts_are_refused_before_anything_is_written(tmp_path, wavs):
    with pytest.raises(ConfigError, match=r"training.accumulate=3 does not divide a batch of 4 crops"):
        run(tmp_path, wavs, "training.accumulate=3")
    with pytest.raises(ConfigError, match=r"accumulate_grad_batches: cannot be set; use training.accumulate"):
        run(tmp_path, wavs, "+trainer.accumulate_grad_batches=2")
    with pytest.raises(ConfigError, match=r"accumulate at least 1"):
        run(tmp_path, wavs, "training.accumulate=0")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"accumulate=4 does not divide a batch of 6 crops"):
        in_parts(torch.relu, 4, torch.ones(6, 1))


def test_layers_that_mix_examples_are_named():
    network = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Sequential(nn.BatchNorm1d(1)))
    with pytest.raises(ValueError, match=r"^1\.0 is a BatchNorm1d: its statistics mix the examples"):
        check_examples_apart(network)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("how", ["training.compile=true", "trainer=ddp"])
def test_compiled_and_on_two_processes_too(tmp_path, wavs, how):
    options = ["trainer.max_steps=3", "optimizer.schedule.warmup_steps=0", "training.adversarial_from=0"]
    whole, start = run(tmp_path / "whole", wavs, *options), config_before_training(tmp_path / "start", wavs)
    options += ["training.accumulate=2", BLOCKS, how, *["trainer.devices=2"][: how == "trainer=ddp"]]
    arguments = command(tmp_path, wavs, *options, backend="aot_eager")
    script = tmp_path / "train.py"
    script.write_text(arguments[-1])
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert distance(whole, last(tmp_path)) < 0.02 * distance(whole, start)
