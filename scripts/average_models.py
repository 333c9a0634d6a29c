"""Average the weights of codecs that were trained from the same weights: one model between all.

    python scripts/average_models.py runs/fine runs/broad:2 -o averaged

Model soups (arXiv:2203.05482). `:2` counts a model twice. Codebooks are averaged code by code, so the models
must have started from the same codebooks.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from codec.commands.errors import report_errors
from codec.config import ConfigError
from codec.model.codec import Codec
from codec.model.saving import load


def main() -> int:
    """Load, average and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL[:WEIGHT]", help="run, saved codec or checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, help="new folder for the averaged codec")
    options = parser.parse_args()
    if options.output.exists():
        raise ConfigError(f"{options.output} exists already: name a new folder")
    parts = [weighted(text) for text in options.models]
    codec = average([load(path) for path, _ in parts], [weight for _, weight in parts])
    codec.save(options.output)
    print(f"{options.output}: the average of {', '.join(options.models)}")
    return 0


def weighted(text: str) -> tuple[str, float]:
    """Path and weight of `PATH:WEIGHT`, or of a path alone, which counts once."""
    path, colon, number = text.rpartition(":")
    try:
        weight = float(number) if colon else 1.0
    except ValueError:
        return text, 1.0
    if not 0 < weight < float("inf"):
        raise ConfigError(f"{text}: a weight must be above 0")
    return (path, weight) if colon else (text, 1.0)


def average(codecs: list[Codec], weights: list[float]) -> Codec:
    """The first codec with the weighted mean of all codecs' tensors; ConfigError unless they are alike."""
    if any(codec.config != codecs[0].config for codec in codecs):
        raise ConfigError("the models differ in their config: only trainings of one architecture average")
    states = [codec.state_dict() for codec in codecs]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)

    def mean(name: str, first: Tensor) -> Tensor:
        tensors = [state[name] for state in states]
        if first.is_floating_point():
            return sum(share * tensor.double() for share, tensor in zip(shares, tensors, strict=True)).to(
                first.dtype
            )
        if any(not torch.equal(first, tensor) for tensor in tensors):
            raise ConfigError(f"the models differ in {name}, which has no average")
        return first

    codecs[0].load_state_dict({name: mean(name, first) for name, first in states[0].items()})
    return codecs[0]


if __name__ == "__main__":
    sys.exit(report_errors(main))
