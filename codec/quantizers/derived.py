"""Tables computed from weights, kept while the weights stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class Derived(Generic[Value]):
    """Remembers what `compute` made, tensors, until one of the tensors it was made of is changed.

    Nothing is remembered while gradients are wanted or a compiler traces, nor of inference tensors, which
    do not tell when they change.
    """

    def __init__(self):
        self.key: list | None = None
        self.value: Value | None = None

    def __call__(self, sources: Sequence[Tensor], compute: Callable[[], Value]) -> Value:
        """The value of `compute()`, a function of `sources` alone."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return compute()
        if any(source.is_inference() for source in sources):
            return compute()
        key = [(source.data_ptr(), source._version) for source in sources]
        if key != self.key or self.value is None:
            with torch.inference_mode(False), torch.no_grad():
                self.key, self.value = key, compute()
        return self.value
