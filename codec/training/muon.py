"""Muon, an optimizer for matrices, beside AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon for parameters of two dimensions, AdamW for convolutions, vectors and scalars.

    Muon moves a matrix `[M, N]` along the orthogonal matrix `[M, N]` nearest to its momentum (Jordan et al.
    2024). Steps are scaled to the size of AdamW's (arXiv 2502.16982, eq. 4): one learning rate serves both.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.8, 0.99),
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        fused: bool = True,
    ):
        parameters = list(params)
        matrices = [parameter for parameter in parameters if parameter.ndim == 2]
        others = [parameter for parameter in parameters if parameter.ndim != 2]
        rate: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self.rules: list[Optimizer] = []
        if matrices:
            self.rules.append(Muon(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw", **rate))
        if others:
            self.rules.append(AdamW(others, betas=(betas[0], betas[1]), fused=fused, **rate))
        super().__init__([group for rule in self.rules for group in rule.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters; returns the closure's loss, None without one."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for rule, group in zip(self.rules, self.param_groups, strict=True):
            # Loading a state replaces these objects.
            rule.param_groups, rule.state = [group], self.state
            rule.step()
        return loss
