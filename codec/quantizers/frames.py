"""Latents `[B, D, F]` as rows, one a frame, which a cascade of codebooks works on."""

from __future__ import annotations

from torch import Tensor


def rows(latents: Tensor) -> Tensor:
    """`[B, D, F]` as one row a frame, `[B * F, D]`."""
    # One example would stay transposed without a copy, and so would all that is computed from it.
    return latents.permute(0, 2, 1).reshape(-1, latents.shape[1]).contiguous()


def subtract(residual: Tensor, vectors: Tensor, own: bool) -> Tensor:
    """`residual - vectors`, in the residual's `own` memory: new memory costs more than the arithmetic."""
    return residual.sub_(vectors) if own else residual - vectors


def columns(frames: Tensor, batch: int) -> Tensor:
    """`[B * F, D]` back as `[B, D, F]`."""
    return frames.view(batch, -1, frames.shape[1]).permute(0, 2, 1)


def pooled(frames: Tensor, stride: int) -> Tensor:
    """Means `[N / stride, D]` of successive rows `[N, D]`."""
    return frames if stride == 1 else frames.view(-1, stride, frames.shape[1]).mean(1)


def spread(frames: Tensor, stride: int) -> Tensor:
    """Each row of `[N, D]` `stride` times, `[N * stride, D]`."""
    return frames if stride == 1 else frames.repeat_interleave(stride, 0)
