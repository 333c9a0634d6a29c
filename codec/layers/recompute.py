"""Less memory in training: networks recomputed in the backward pass, by part of a batch or by block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from codec.config import ConfigError

CONTAINERS = (nn.Sequential, nn.ModuleList)


def in_parts(function: Callable[..., Any], parts: int, *arguments: Tensor | None) -> list[Any]:
    """Results of a function for each of `parts` equal parts of a batch, tensors `[B, ...]` or None.

    The backward pass recomputes one part at a time, so that the activations of one part are in memory
    (checkpointing, arXiv 1604.06174). One part is computed once.
    """
    if parts == 1:
        return [function(*arguments)]
    check_divides(next(len(tensor) for tensor in arguments if tensor is not None), parts)
    pieces = [[None] * parts if tensor is None else tensor.chunk(parts) for tensor in arguments]
    return [checkpoint(function, *piece, use_reentrant=False) for piece in zip(*pieces, strict=True)]


def check_divides(examples: int, parts: int) -> None:
    """Raise ConfigError unless a batch has equal parts."""
    if examples % parts:
        raise ConfigError(
            f"training.accumulate={parts} does not divide a batch of {examples} crops into equal parts: "
            "change it, or data.batch_size, which all processes share"
        )


def mean_of_parts(
    losses: Callable[..., dict[str, Tensor]], parts: int, *arguments: Tensor
) -> dict[str, Tensor]:
    """Losses by name that are means over the examples of a batch, computed as in `in_parts`."""
    first, *others = in_parts(losses, parts, *arguments)
    if not others:
        return first
    return {
        name: torch.stack([loss, *(part[name] for part in others)]).mean() for name, loss in first.items()
    }


def recompute(network: nn.Module) -> None:
    """Store only the inputs of a network's blocks, and recompute each in the backward pass.

    Names of parameters, results and gradients stay the same (arXiv 1604.06174).
    """
    for block in blocks(network):
        # A partial of the bound method, unlike a closure, is copied with its module.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Modules with parts in the lists and sequences of a network, such as residual units."""
    for child in network.children():
        parts = list(child.children())
        if isinstance(child, CONTAINERS) or (parts and all(isinstance(part, CONTAINERS) for part in parts)):
            yield from blocks(child)
        elif parts:
            yield child


def check_examples_apart(network: nn.Module) -> None:
    """Raise ValueError for batch normalization, which differs in parts of a batch and counts twice."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"{name} is a {type(module).__name__}: its statistics mix the examples of a batch, so that "
                "accumulate and checkpoint_activations would change them; use another normalization"
            )
