"""Collectives over processes; rank and world size are read per call, as modules precede the process group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.nn import functional as nn_functional


def world_size() -> int:
    """Number of processes in the group; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def all_reduce_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum each tensor over all processes, in one all-reduce for all of them."""
    if world_size() == 1 or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def broadcast(tensor: Tensor) -> None:
    """Overwrite a tensor with that of rank 0."""
    if world_size() > 1:
        distributed.broadcast(tensor, 0)


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows `[N, ...]` of all processes in rank order: `[W * N, ...]`; N must be equal."""
    if world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def all_reduce_with_gradient(tensor: Tensor) -> Tensor:
    """Sum over all processes; differentiable with respect to every process's tensor."""
    if world_size() == 1:
        return tensor
    return nn_functional.all_reduce(tensor)
