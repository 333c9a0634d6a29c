"""Feature-wise linear modulation (FiLM) of latents by a condition, and its absence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Condition = str | Tensor | None


class Unconditioned(nn.Module):
    """Identity from latents `[B, D, F]` to `[B, D, F]`, for a codec without conditions.

    Original to this project.
    """

    names: tuple[str, ...] = ()
    default: int | None = None  # condition of calls that name none; None: the first

    def number(self, name: str) -> int:
        """Index of a condition; ValueError with the names for another."""
        if not self.names:
            raise ValueError(f"condition {name!r}: this codec was trained without conditions")
        if name not in self.names:
            raise ValueError(f"condition must be {' or '.join(self.names)}, got {name!r}")
        return self.names.index(name)

    def modulate(self, latents: Tensor, index: Tensor) -> Tensor:
        """Modulate latents by valid indexes `[B, 1]` or `[B, F]`."""
        return latents

    def forward(self, latents: Tensor, condition: Condition = None) -> Tensor:
        """Return the latents; ValueError for a condition."""
        if condition is not None:
            self.number(str(condition))
        return latents


class FiLM(Unconditioned):
    """Scale and shift latents `[B, D, F]` to `[B, D, F]` by values of a condition: `gamma * x + beta`.

    The condition is one of `names` and may change from frame to frame; the first is the default. `gamma`
    starts at 1 and `beta` at 0. Source: Perez et al. 2018 (1709.07871), eq. 2; between encoder and quantizer
    as in SoundStream (2107.03312), section III-F.
    ValueError for fewer than two names, or equal ones.
    """

    def __init__(self, dim: int, names: Sequence[str] = ("as_is", "clean")):
        super().__init__()
        self.dim = dim
        if len(set(names)) < max(2, len(names)):
            raise ValueError(f"names must be two or more different conditions, got {list(names)}")
        self.names = tuple(names)
        self.gamma = nn.Parameter(torch.ones(len(names), dim))
        self.beta = nn.Parameter(torch.zeros(len(names), dim))

    def forward(self, latents: Tensor, condition: Condition = None) -> Tensor:
        """Modulate latents `[B, D, F]`; `condition` is a name, or int64 indexes `[B]` or `[B, F]`.

        ValueError for an unknown name, another shape, or an index beyond the names.
        """
        if not isinstance(condition, Tensor):
            index = (self.default or 0) if condition is None else self.number(condition)
            return self.gamma[index, :, None] * latents + self.beta[index, :, None]
        batch, _, frames = latents.shape
        if condition.dtype != torch.int64 or condition.shape not in ((batch,), (batch, frames)):
            raise ValueError(
                f"condition must be int64 [{batch}] or [{batch}, {frames}], got {condition.dtype} "
                f"{list(condition.shape)}"
            )
        on_cpu = condition.device.type == "cpu"  # elsewhere the comparison would wait for the device
        if on_cpu and not 0 <= int(condition.min()) <= int(condition.max()) < len(self.names):
            raise ValueError(f"condition must be 0 to {len(self.names) - 1}, got {condition.tolist()}")
        return self.modulate(latents, condition if condition.ndim == 2 else condition[:, None])

    def modulate(self, latents: Tensor, index: Tensor) -> Tensor:
        """Modulate latents by valid indexes `[B, 1]` or `[B, F]`."""
        return self.gamma[index].transpose(1, 2) * latents + self.beta[index].transpose(1, 2)
