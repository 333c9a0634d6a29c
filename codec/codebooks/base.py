"""Contract of a codebook, one stage of a quantizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.codebooks.beam import by_candidates


class Stage(Protocol):
    """Part of a codebook that codes and decodes, see `Codebook.given`."""

    encode: Callable[[Tensor], Tensor]
    lookup: Callable[[Tensor], Tensor]
    candidates: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    continuations: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    __call__: Callable[..., Any]


class Codebook(nn.Module):
    """Base class of stages: inputs `[N, D]` to codes `[N]`, and codes to vectors `[..., D]`.

    A subclass has a `codebook_size`, `encode`, `forward`, and either `lookup` or `table` with `sources`.
    Beam search needs `candidates`. A codebook with `pool_frames` starts from latents in `initialise` and has
    a buffer `initialised`. One that `learns` without gradients has `statistics` and `update`, one that
    `revives` has `dead`, `replace` and `twins`. Modules do not change in `encode`, `lookup` and `forward`.
    """

    codebook_size: int
    straight_through_cascade: bool = (
        True  # copy gradients past all stages; False: they pass through `forward`
    )
    tabular: bool = False  # `table` and `sources` exist
    conditional: bool = False  # vectors depend on the sum of earlier stages, see `given`
    learns: bool = False
    revives: bool = False
    frozen: bool = False  # neither updated nor revived
    revive_from: str = "frames"  # or "overused"
    pool_frames: int = 0  # latents that `initialise` needs
    initialised: Tensor

    def encode(self, inputs: Tensor) -> Tensor:
        """Code `[N]` for each of `[N, D]`."""
        raise NotImplementedError

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`, and losses by name, each `[N]` or a scalar.

        `used` `[N]` is False for inputs that count in no loss. All randomness comes from `generator`, None
        outside training.
        """
        raise NotImplementedError

    def given(self, total: Tensor) -> Stage:
        """Return the stage for inputs whose earlier stages sum to `total` `[..., D]`.

        That is the codebook itself, unless it is `conditional`; only then `total` needs to be the sum.
        """
        return self

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        return functional.embedding(codes, self.table())

    def table(self) -> Tensor:
        """All vectors `[K, D]`."""
        raise NotImplementedError

    def sources(self) -> list[Tensor]:
        """Tensors from which `table` is computed; a change of one invalidates cached tables."""
        raise NotImplementedError

    def candidates(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Codes `[N, <= count]` of the smallest errors, best first, and their squared errors."""
        raise ValueError(f"beam: {type(self).__name__} searches no alternatives; use beam=1")

    def continuations(self, inputs: Tensor, left: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Beam step: indices of paths and codes, `[N, count]` each, of the smallest errors, best first.

        `inputs` `[N, P, D]` are coded; `left` `[N, P]` is the squared residual of each of the P paths.
        """
        return by_candidates(self, inputs, left, count)

    @property
    def needs_pool(self) -> bool:
        """True if `initialise` has not run yet and has something to fit."""
        return self.pool_frames > 0 and not bool(self.initialised)

    def initialise(self, pool: Tensor) -> None:
        """Fit to a pool `[N, D]` of inputs, and set `initialised`."""

    def statistics(
        self, inputs: Tensor, codes: Tensor, so_far: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two tensors of sums over inputs `[N, D]`, except those with code −1, added to `so_far`."""
        raise NotImplementedError

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Learn from `statistics` summed over the processes."""
        raise NotImplementedError

    def dead(self) -> Tensor:
        """Mask `[K]` of dead codes."""
        raise NotImplementedError

    def replace(self, dead: Tensor, vectors: Tensor) -> None:
        """Give dead codes new vectors `[K, D]`."""
        raise NotImplementedError

    def twins(self, seed: int) -> Tensor:
        """New vectors `[K, D]` for dead codes: noisy copies of vectors that are used much."""
        raise NotImplementedError
