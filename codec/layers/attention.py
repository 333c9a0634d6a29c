"""Multi-head attention within a sliding window of frames, with rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rotations(positions: Tensor, size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[F, size / 2]` of rotary positions `[F]` (RoFormer, arXiv 2104.09864, §3.2.2).

    Angles are float64: in float32 they lose a thousandth of a radian within an hour.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # MPS has no float64
    halves = torch.arange(0, size, 2, device=positions.device, dtype=wide) / size
    angles = positions.to(wide)[:, None] * base**-halves
    return angles.cos().float(), angles.sin().float()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate pairs (i, i + D / 2) of the elements of heads `[B, H, F, D]`, in float32 at least."""
    first, second = heads.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1).to(heads.dtype)


def within(distance: Tensor, window: int, causal: bool) -> Tensor:
    """True where a key `distance` frames after its query is attended to."""
    return (distance > -window) & (distance <= 0 if causal else distance < window)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, window: int, causal: bool, valid: Tensor | None = None
) -> Tensor:
    """Attention of heads `[B, H, F, D]`, of each frame to the frames less than `window` away.

    `valid` `[B, F]` is False for frames that no other frame may attend to. Long signals are computed in
    blocks of `window` frames, so that time and memory are linear in F.
    """
    frames = queries.shape[2]
    if torch.compiler.is_exporting() or frames > 2 * window:
        return attend_in_blocks(queries, keys, values, window, causal, valid)
    places = torch.arange(frames, device=queries.device)
    distance = places - places[:, None]
    mask = within(distance, window, causal)
    if valid is not None:
        mask = (mask & valid[:, None] | (distance == 0))[:, None]
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def attend_in_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, window: int, causal: bool, valid: Tensor | None
) -> Tensor:
    """Attention of blocks of `window` queries to the keys of the same and the neighboring blocks."""
    batch, _, frames, _ = queries.shape  # `len` would fix the batch of an exported graph
    missing = -frames % window
    after = 0 if causal else window
    padding = (0, 0, window, missing + after)

    def blocks(x: Tensor) -> Tensor:  # [B, H, F, D] -> [B * N, H, window, D]
        return x.unflatten(2, (-1, window)).transpose(1, 2).flatten(0, 1)

    def surroundings(x: Tensor) -> Tensor:  # [B, H, F, D] -> [B * N, H, 2 or 3 * window, D]
        parts = functional.pad(x, padding).unflatten(2, (-1, window))
        count = (frames + missing) // window
        shifts = range(2 if causal else 3)
        joined = torch.cat([parts[:, :, shift : shift + count] for shift in shifts], 3)
        return joined.transpose(1, 2).flatten(0, 1)

    exists = torch.ones_like(queries[:, 0, :, 0], dtype=torch.bool) if valid is None else valid
    exists = surroundings(exists[:, None, :, None].to(queries.dtype))[..., 0] > 0  # [B * N, 1, keys]
    places = torch.arange(window, device=queries.device)
    distance = torch.arange(exists.shape[-1], device=queries.device) - window - places[:, None]
    mask = within(distance, window, causal) & exists[:, :, None] | (distance == 0)
    output = functional.scaled_dot_product_attention(
        blocks(functional.pad(queries, (0, 0, 0, missing))),
        surroundings(keys),
        surroundings(values),
        attn_mask=mask,
    )
    output = output.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
    return output[:, :, :frames]
