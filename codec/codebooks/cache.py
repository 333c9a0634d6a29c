"""Tables computed from weights, kept while the weights stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class CachedTable(Generic[Value]):
    """Cache of tensors computed from other tensors, invalidated by a change of any source.

    No cache with gradients enabled, during compilation, or for inference tensors, which have no version
    counter.
    """

    def __init__(self):
        self.key: list | None = None
        self.value: Value | None = None

    def __call__(self, sources: Sequence[Tensor], compute: Callable[[], Value]) -> Value:
        """Value of `compute()`, which must be a function of `sources` alone."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return compute()
        if any(source.is_inference() for source in sources):
            return compute()
        key = [(source.data_ptr(), source._version) for source in sources]
        if key != self.key or self.value is None:
            with torch.inference_mode(False), torch.no_grad():
                self.key, self.value = key, compute()
        return self.value
