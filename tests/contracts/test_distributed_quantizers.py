"""Two processes, each with half of a batch, learn what one learns from all of it: every yaml."""

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from composed import distinct, small_quantizer
from torch import distributed, multiprocessing

from codec.quantizers.base import Quantizer

DIM, FRAMES, BATCH, STEPS = 16, 12, 8, 4


def batches(quantizer: Quantizer) -> list[torch.Tensor]:
    """What the processes see together: clustered latents, so that some codes die."""
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, BATCH, DIM, FRAMES * quantizer.stride)
    return list(
        3 * torch.randn(STEPS, 1, DIM, 1, generator=generator) + torch.randn(shape, generator=generator)
    )


def learn(quantizer: Quantizer, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Some steps of gradient descent, updates and revivals on this process's share."""
    if wanted := quantizer.pool_size():
        quantizer.initialise(torch.randn(wanted, DIM, generator=torch.Generator().manual_seed(2)))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True), *quantizer.parameters()], lr=0.1)
    share = BATCH // processes
    for step, batch in enumerate(batches(quantizer)):
        mine = batch[rank * share : (rank + 1) * share]
        drawn = quantizer.draw_num_quantizers(BATCH, torch.Generator().manual_seed(step))
        depths = None if drawn is None else drawn[rank * share : (rank + 1) * share]
        quantized = quantizer(mine, depths)
        loss = quantized.latents.square().mean() + sum(quantized.losses.values())
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        for parameter in quantizer.parameters() if processes > 1 else ():
            distributed.all_reduce(parameter.grad)
            parameter.grad /= processes
        optimizer.step()
        quantizer.update(quantized)
        quantizer.revive(quantized, step)
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def build(name: str) -> Quantizer:
    torch.manual_seed(0)
    return small_quantizer(name, DIM, most_stages=3).train()


def work(rank: int, port: int, folder: str) -> None:
    """One of two processes: all quantizers are built before the process group is, as Lightning does it."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent.parent))
    quantizers = {name: build(name) for name in distinct("quantizer")}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    learned = {name: learn(quantizer, rank, 2) for name, quantizer in quantizers.items()}
    torch.save(learned, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("learned")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct("quantizer"))
def test_two_processes_learn_as_one(name, learned):
    alone = learn(build(name), 0, 1)
    first, second = (one[name] for one in learned)
    assert first.keys() == second.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-5)
