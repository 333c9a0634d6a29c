"""Token datasets: corpora as codes, written by `codec-encode`, read by `TokenDataset`."""

from codec.tokens.dataset import (
    TokenDataset,
    TokenError,
    TokenWindows,
    delay,
    flatten,
    padded,
    undelay,
    unflatten,
)

__all__ = ["TokenDataset", "TokenError", "TokenWindows", "delay", "flatten", "padded", "undelay", "unflatten"]
