"""Finite scalar quantization (FSQ, arXiv 2309.15505): every dimension is rounded to a few levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from codec.codebooks.base import Codebook
from codec.codebooks.estimators import straight_through
from codec.codebooks.normalization import RunningWhitening, whitening_projection


def check_levels(levels: Sequence[int]) -> int:
    """Number of points in a grid of `levels`; ValueError for levels below 2 or a number from 2^63."""
    if not levels or min(levels) < 2:
        raise ValueError(f"levels must be at least 2 in every dimension, got {list(levels)}")
    if math.prod(levels) >= 2**63:
        raise ValueError(f"the product of levels must be below 2^63, got {list(levels)}")
    return math.prod(levels)


class FSQCodebook(Codebook):
    """Grid of `levels` as an implicit codebook for inputs `[N, D]` (arXiv 2309.15505); learns projections.

    Vectors and codes are a bijection computed in int64, exact for any product of levels below 2^63. In
    addition to the paper, `whiten` whitens the projected inputs, so that an untrained encoder uses more than
    a few points. Intended for one stage; `ScaledFSQCodebook` is better for several. Raises ValueError for
    impossible levels.
    """

    straight_through_cascade = False
    learns = True
    pool_frames = 8192

    levels: Tensor
    basis: Tensor

    def __init__(
        self,
        dim: int,
        levels: Sequence[int] = (8, 5, 5, 5),
        whiten: bool = True,
        estimator: Callable[[Tensor, Tensor], Tensor] = straight_through,
    ):
        super().__init__()
        self.codebook_size = check_levels(levels)
        self.whiten = whiten
        self.estimator = estimator
        project = dim != len(levels)
        self.in_proj = nn.Linear(dim, len(levels)) if project else nn.Identity()
        self.out_proj = nn.Linear(len(levels), dim) if project else nn.Identity()
        self.whitening = RunningWhitening(len(levels))
        basis = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("levels", torch.tensor(list(levels)), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.register_buffer("initialised", torch.tensor(not whiten))

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Set the projection to the principal components of a pool `[N, D]`, and fit the whitening."""
        if isinstance(self.in_proj, nn.Linear):
            self.in_proj.weight.copy_(whitening_projection(pool, len(self.levels)))
        self.whitening.fit(self.in_proj(pool))
        self.initialised.fill_(True)

    def statistics(
        self, inputs: Tensor, codes: Tensor, so_far: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Moments of projected inputs `[N, D]`, except those with code −1, added to `so_far`."""
        sums, count = self.whitening.moments(self.in_proj(inputs), codes >= 0)
        return (sums, count) if so_far is None else (sums + so_far[0], count + so_far[1])

    def update(self, sums: Tensor, count: Tensor) -> None:
        """Update the whitening by `statistics` summed over the processes."""
        if self.whiten:
            self.whitening.learn(sums, count)

    def grid(self, inputs: Tensor) -> Tensor:
        """Coordinates `[N, d]` of inputs `[N, D]` in the grid, before rounding."""
        return self.bound(self.whitening(self.in_proj(inputs)))

    def bound(self, projected: Tensor) -> Tensor:
        """Bound `[N, d]` so that rounding gives `levels[d]` different integers per dimension (§3, eq. 1)."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(projected + torch.atanh(offset / half)) * half - offset

    def to_codes(self, integers: Tensor) -> Tensor:
        """Mixed-radix number `[...]` of the rounded dimensions `[..., d]`."""
        return ((integers.long() + self.levels // 2) * self.basis).sum(-1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[N]` of inputs `[N, D]`."""
        return self.to_codes(self.grid(inputs).round())

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        integers = (codes[..., None] // self.basis) % self.levels - self.levels // 2
        return self.out_proj(integers / (self.levels // 2))

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, D]`, codes `[N]`; no losses."""
        bounded = self.grid(inputs)
        integers = bounded.detach().round()
        vectors = self.estimator(bounded, integers) / (self.levels // 2)
        return self.out_proj(vectors), self.to_codes(integers), {}


class ScaledFSQCodebook(Codebook):
    """Uniform grid of `levels` with learned steps for inputs `[N, d]`: one stage of residual FSQ.

    The inputs of residual FSQ shrink from stage to stage. A step per dimension, fitted to the inputs of the
    stage and trained, keeps the levels in use (RFSQ, arXiv 2508.15860, the learnable scale). ValueError
    unless `dim` is the number of levels; `Projected` maps latents of other dimensions.
    """

    pool_frames = 4096

    levels: Tensor
    basis: Tensor

    def __init__(self, dim: int, levels: Sequence[int] = (8, 5, 5, 5)):
        super().__init__()
        self.codebook_size = check_levels(levels)
        if dim != len(levels):
            raise ValueError(f"levels must name all {dim} dimensions, got {list(levels)}")
        basis = [math.prod(levels[:index]) for index in range(len(levels))]
        self.steps = nn.Parameter(2.0 / torch.tensor(list(levels)))
        self.register_buffer("levels", torch.tensor(list(levels)), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.register_buffer("initialised", torch.tensor(False))

    def digits(self, inputs: Tensor, steps: Tensor) -> Tensor:
        """Nearest level `[N, d]` in every dimension; the grid is centered on 0."""
        middle = (self.levels - 1) / 2
        return torch.minimum((inputs / steps + middle).round().clamp(min=0), self.levels - 1)

    def to_codes(self, digits: Tensor) -> Tensor:
        """Mixed-radix number `[...]` of digits `[..., d]`."""
        return (digits.long() * self.basis).sum(-1)

    def from_digits(self, digits: Tensor) -> Tensor:
        """Vectors `[..., d]` of digits `[..., d]`."""
        return (digits - (self.levels - 1) / 2) * self.steps

    def encode(self, inputs: Tensor) -> Tensor:
        """Codes `[N]` of inputs `[N, d]`."""
        return self.to_codes(self.digits(inputs, self.steps))

    def candidates(self, inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Nearest code and codes that differ from it in one dimension, `[N, <= count]`, nearest first.

        The second result is their squared errors.
        """
        digits = self.digits(inputs, self.steps)
        error = inputs - self.from_digits(digits)
        neighbors = digits + torch.where(error >= 0, 1.0, -1.0)
        neighbors = torch.where(
            (neighbors >= 0) & (neighbors < self.levels), neighbors, 2 * digits - neighbors
        )
        cost = (inputs - self.from_digits(neighbors)).square() - error.square()
        order = cost.argsort(1)[:, : count - 1]
        change = ((neighbors - digits).long() * self.basis).gather(1, order)
        base, base_error = self.to_codes(digits)[:, None], error.square().sum(1, keepdim=True)
        return torch.cat([base, base + change], 1), torch.cat(
            [base_error, base_error + cost.gather(1, order)], 1
        )

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[..., d]` of codes `[...]`."""
        return self.from_digits((codes[..., None] // self.basis) % self.levels)

    def forward(
        self, inputs: Tensor, used: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Vectors `[N, d]`, codes `[N]` and the squared error per input `[N]`, the loss of the steps."""
        digits = self.digits(inputs, self.steps.detach())
        vectors = self.from_digits(digits)
        return vectors, self.to_codes(digits), {"codebook": (vectors - inputs).square().mean(1)}

    @torch.no_grad()
    def initialise(self, pool: Tensor) -> None:
        """Set each dimension's step to the one of 40 with the smallest squared error on a pool `[N, d]`."""
        widest = 2 * pool.abs().amax(0).clamp(min=1e-8) / (self.levels - 1)
        shares = torch.linspace(0.05, 1, 40, device=pool.device)
        middle = (self.levels - 1) / 2
        errors = []
        for share in shares:
            digits = self.digits(pool, share * widest)
            errors.append((pool - (digits - middle) * share * widest).square().mean(0))
        self.steps.copy_(shares[torch.stack(errors).argmin(0)] * widest)
        self.initialised.fill_(True)
