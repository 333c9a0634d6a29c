"""Muon beside AdamW."""

from __future__ import annotations

import copy

import torch
from torch import nn

from codec.training.muon import MuonAdamW
from codec.training.optimization import set_learning_rate


def network() -> nn.Module:
    """Two matrices, a convolution and their biases."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv1d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 8, 16), nn.GELU(), nn.Linear(16, 5))


def train(module: nn.Module, optimizers: list[torch.optim.Optimizer], first: int, steps: int) -> None:
    """Descend on a sum of squares of random inputs, one input a step."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        loss = module(torch.randn(7, 4, 10, generator=generator)).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def test_matrices_move_as_torch_muon_moves_them_and_the_rest_as_adamw():
    joint, separate = network(), network()
    train(joint, [MuonAdamW(joint.parameters(), lr=0.01, weight_decay=0.1)], 0, 6)
    matrices = [parameter for parameter in separate.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in separate.parameters() if parameter.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=0.01, betas=(0.8, 0.99), weight_decay=0.1, fused=True)
    train(separate, [muon, adamw], 0, 6)
    for one, other in zip(joint.parameters(), separate.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_of_a_matrix_has_the_root_mean_square_of_an_adamw_step():
    matrix = nn.Parameter(torch.zeros(64, 256))
    optimizer = MuonAdamW([matrix], lr=0.01, weight_decay=0)
    matrix.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    # AdamW's steps are about 0.2 times the learning rate (arXiv 2502.16982).
    torch.testing.assert_close(matrix.square().mean().sqrt().item(), 0.2 * 0.01, rtol=0.2, atol=0)


def test_training_goes_on_from_a_saved_state_bit_for_bit():
    module = network()
    optimizer = MuonAdamW(module.parameters(), lr=0.01)
    train(module, [optimizer], 0, 4)
    weights, state = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict())
    set_learning_rate(optimizer, 0.5)
    train(module, [optimizer], 4, 4)
    resumed = network()
    resumed.load_state_dict(weights)
    continued = MuonAdamW(resumed.parameters(), lr=0.01)
    continued.load_state_dict(state)
    set_learning_rate(continued, 0.5)
    train(resumed, [continued], 4, 4)
    for one, other in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
