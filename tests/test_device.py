"""The device of commands that name none, and MPS, which has no float64; it was never run on a Mac."""

import platform
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.accelerators.mps import MPSAccelerator
from tokenized import small_codec
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codec.layers.attention import rotations
from codec.model.inference import on_device
from codec.quantizers.base import Bottleneck, Quantizer
from codec.system.device import default_device, device_name

WIDE = torch.float64, torch.complex128


class NoWideNumbers(TorchDispatchMode):
    """Refuses float64 on the meta device, as MPS does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype in WIDE:
                raise TypeError(f"{func}: {tensor.dtype} on the stand-in of MPS")
        return output


class ZerosOnTheHost(TorchFunctionMode):
    """Copies a meta tensor to the host as zeros, which meta tensors refuse."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu and args[0].is_meta:
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **(kwargs or {}))


@contextmanager
def stand_in(monkeypatch):
    """Meta device in place of MPS; checks of values, which it has not, are left out."""
    monkeypatch.setattr(Bottleneck, "check_finite", lambda self, latents: None)
    monkeypatch.setattr(Quantizer, "check_codes", lambda self, codes: None)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    with ZerosOnTheHost(), NoWideNumbers():
        yield torch.device("meta")


def test_the_default_is_a_gpu_then_mps_then_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert default_device() == "mps" and device_name(torch.device("mps")) == "mps"
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moved.append(device))
    on_device(torch.nn.Identity(), None)  # type: ignore[arg-type]
    on_device(torch.nn.Identity(), "cpu")  # type: ignore[arg-type]
    assert moved == ["mps", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device({"LOCAL_RANK": "3"}) == "cuda:3" and default_device({}) == "cuda:0"


def test_training_takes_mps_where_it_is(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    MPSAccelerator.is_available.cache_clear()  # Lightning asks once a process
    try:
        trainer = lightning.Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
        assert trainer.strategy.root_device.type == "mps"
    finally:
        MPSAccelerator.is_available.cache_clear()


@pytest.mark.parametrize(
    "options",
    [
        ["autoencoder=soundstream"],
        ["autoencoder=vocos_small", "autoencoder.causal=true"],
        ["quantizer=fsq"],
    ],
)
def test_no_float64_on_the_device(monkeypatch, options):
    codec = small_codec(*options)
    with stand_in(monkeypatch) as device, torch.inference_mode():
        codec = codec.to(device)
        hop = codec.hop_length
        audio = torch.zeros(2, 1, 20 * hop, device=device)
        lengths = torch.tensor([20, 13], device=device) * hop
        codes = codec.quantizer.encode(codec.latents(audio, lengths))
        assert codec.decode(codes).shape == audio.shape
        with codec.streaming() as stream:
            codes = stream.encode(audio[:1], final=True)
            assert stream.decode(codes, final=True).shape == audio[:1].shape


def test_the_stand_in_refuses_float64(monkeypatch):
    with stand_in(monkeypatch) as device, pytest.raises(TypeError, match="float64"):
        rotations(torch.arange(3, device=device), 4, 10000.0)  # MPS takes float32 there
