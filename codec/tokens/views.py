"""Token orders of codes `[..., K, F]` for language models, each with its inverse, and padded batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def delay(codes: Tensor, fill: int) -> Tensor:
    """Delay codebook k by k frames: `[..., K, F] -> [..., K, F + K - 1]`, padded with `fill`.

    MusicGen's delay pattern (arXiv 2306.05284): each codebook of a frame is predicted one step after the
    codebook before it. `fill` must not be a code; e.g. the largest codebook size.
    """
    *batch, stages, frames = codes.shape
    delayed = codes.new_full((*batch, stages, frames + stages - 1), fill)
    for stage in range(stages):
        delayed[..., stage, stage : stage + frames] = codes[..., stage, :]
    return delayed


def undelay(delayed: Tensor) -> Tensor:
    """Inverse of `delay`: codes `[..., K, F]`; ValueError if there is no whole frame."""
    stages, steps = delayed.shape[-2:]
    frames = steps - stages + 1
    if frames < 0:
        raise ValueError(f"{steps} steps are fewer than the {stages - 1} by which the last stage is delayed")
    parts = [delayed[..., stage, stage : stage + frames] for stage in range(stages)]
    return torch.stack(parts, dim=-2)


def flatten(codes: Tensor, codebook_sizes: Sequence[int] | None = None) -> Tensor:
    """Interleave the codes frame by frame: `[..., K, F] -> [..., F * K]`.

    With `codebook_sizes` the codes of codebook k are offset by the sum of the sizes before it, for a
    vocabulary of `sum(codebook_sizes)` entries; ValueError for codes beyond their sizes.
    """
    if codebook_sizes is not None:
        first = offsets(codebook_sizes, codes.shape[-2], codes)
        require_codes(codes, codebook_sizes, "codes exceed the sizes of their stages: fill is no code here")
        codes = codes + first
    return codes.transpose(-1, -2).flatten(-2)


def unflatten(tokens: Tensor, num_quantizers: int, codebook_sizes: Sequence[int] | None = None) -> Tensor:
    """Inverse of `flatten` with the same arguments: codes `[..., K, F]`, cut to whole frames.

    With `codebook_sizes`, ValueError for a token of another codebook than that of its position.
    """
    length = tokens.shape[-1] // num_quantizers * num_quantizers
    codes = tokens[..., :length].unflatten(-1, (-1, num_quantizers)).transpose(-1, -2)
    if codebook_sizes is None:
        return codes
    codes = codes - offsets(codebook_sizes, num_quantizers, codes)
    require_codes(codes, codebook_sizes, "tokens lie outside the codebooks of their positions")
    return codes


def require_codes(codes: Tensor, codebook_sizes: Sequence[int], problem: str) -> None:
    """Raise ValueError unless codes `[..., K, F]` are below the sizes of their codebooks."""
    sizes = torch.tensor(list(codebook_sizes[: codes.shape[-2]]), device=codes.device)[:, None]
    if bool(((codes < 0) | (codes >= sizes)).any()):
        raise ValueError(problem)


def offsets(codebook_sizes: Sequence[int], stages: int, like: Tensor) -> Tensor:
    """Sum of the sizes before each codebook, `[K, 1]`; ValueError for fewer sizes than codebooks."""
    if len(codebook_sizes) < stages:
        raise ValueError(f"{stages} stages have only {len(codebook_sizes)} codebook sizes")
    sizes = torch.tensor([0, *codebook_sizes[: stages - 1]], dtype=like.dtype, device=like.device)
    return sizes.cumsum(0)[:, None]


def padded(codes: Sequence[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """Batch `[B, ..., F]` of codes or their views, padded with `fill`, and their lengths `[B]`.

    For a `DataLoader`: `collate_fn=partial(padded, fill=...)`.
    """
    lengths = torch.tensor([item.shape[-1] for item in codes])
    batch = codes[0].new_full((len(codes), *codes[0].shape[:-1], int(lengths.max())), fill)
    for row, item in zip(batch, codes, strict=True):
        row[..., : item.shape[-1]] = item
    return batch, lengths
