"""Results of one training step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """Detached outputs of one training step, for telemetry.

    `losses` are unweighted; `latents` `[B, D, F]` are the quantizer's inputs and `codes` `[B, K, F]` its
    codes; `replaced` is the number of revived codes per quantizer, None without a search for dead codes.
    """

    losses: dict[str, Tensor]
    latents: Tensor | None
    codes: Tensor
    replaced: Tensor | None
    finite: bool
