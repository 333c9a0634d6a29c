"""Values of tensors that the host reads in a training step; on a GPU it waits for each of them."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import composed
import pytest
import torch
from benchmark_training import BareTrainer, BareTraining
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import codec
from codec.config import build
from codec.model.saving import build_codec

PACKAGE = str(Path(codec.__file__).parent)
# Their results depend on values, in number or kind. An index by a mask calls `nonzero` only on a GPU.
READING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
COPYING = {"tolist", "numpy", "cpu", "__array__"}


def place() -> str:
    """Innermost line of the package on the stack, as `file:function`."""
    frame = sys._getframe(2)
    while not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).stem}:{frame.f_code.co_name}"


class Reads(TorchDispatchMode):
    """Counts places that read values of tensors."""

    def __init__(self):
        super().__init__()
        self.places = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READING or masked or repeats:
            self.places[place()] += 1
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Counts places that copy tensors to the host, which on a CPU is no operation."""

    def __init__(self, places: Counter[str]):
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in COPYING:
            self.places[place()] += 1
        return func(*args, **(kwargs or {}))


def reads_of_a_step(*overrides: str) -> Counter[str]:
    """Places of the second step of an experiment, which has moments and dead codes."""
    config = composed.config("experiment=tiny", *SMALL, *overrides)
    options = {key: value for key, value in config["training"].items() if not key.startswith("_")}
    options |= {"stages": (), "adversarial_from": 0, "revive_every": 1}
    torch.manual_seed(0)
    parts = [build(config[name], path=name) for name in ("discriminator", "loss", "optimizer")]
    training = BareTraining(build_codec(config["model"]), *parts, **options)
    training.trainer = BareTrainer(training.configure_optimizers())
    audio = 0.1 * torch.randn(2, 1, 8000)
    training.train_on(audio)
    with Reads() as reads, Copies(reads.places):
        training.train_on(audio)
    return reads.places


NORMS = {"module:on_before_optimizer_step": 2}  # of generator and discriminator
SMALL = "autoencoder.encoder_channels=4", "autoencoder.decoder_channels=4", "quantizer.num_quantizers=2"


@pytest.mark.parametrize("overrides", [[], ["loss=encodec", "quantizer=rvq_stochastic"]])
def test_a_step_waits_for_the_gradients_norms_alone(overrides):
    assert reads_of_a_step(*overrides) == NORMS


def test_masks_and_values_are_seen():
    with Reads() as reads, Copies(reads.places):
        codec.metrics.signal.codebook_usage(torch.tensor([[[1, 0, 1]]]), [2])
    assert reads.places
