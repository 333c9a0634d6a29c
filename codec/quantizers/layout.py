"""Latents `[B, D, F]` as rows, one per frame, for a cascade of codebooks."""

from __future__ import annotations

from torch import Tensor


def rows(latents: Tensor) -> Tensor:
    """Reshape `[B, D, F]` to one row per frame, `[B * F, D]`."""
    # Without a copy the rows of one example, and all results from them, would stay transposed.
    return latents.permute(0, 2, 1).reshape(-1, latents.shape[1]).contiguous()


def subtract(residual: Tensor, vectors: Tensor, own: bool) -> Tensor:
    """Subtract, in place if `own`, because an allocation costs more than the arithmetic."""
    return residual.sub_(vectors) if own else residual - vectors


def columns(frames: Tensor, batch: int) -> Tensor:
    """Reshape `[B * F, D]` to `[B, D, F]`."""
    return frames.view(batch, -1, frames.shape[1]).permute(0, 2, 1)


def pooled(frames: Tensor, stride: int) -> Tensor:
    """Means `[N / stride, D]` of successive rows `[N, D]`."""
    return frames if stride == 1 else frames.view(-1, stride, frames.shape[1]).mean(1)


def spread(frames: Tensor, stride: int) -> Tensor:
    """Repeat each row of `[N, D]` `stride` times, `[N * stride, D]`."""
    return frames if stride == 1 else frames.repeat_interleave(stride, 0)
