"""Token datasets: corpora as codes, written by `codec-encode`, read by `TokenDataset`."""

from codec.tokens.dataset import TokenDataset, TokenWindows
from codec.tokens.files import TokenError
from codec.tokens.views import delay, flatten, padded, undelay, unflatten

__all__ = ["TokenDataset", "TokenError", "TokenWindows", "delay", "flatten", "padded", "undelay", "unflatten"]
