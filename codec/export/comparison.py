"""Comparison of exported graphs with their codec: whole signals, fewer stages, steps, conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from codec.export.graphs import conditions
from codec.export.progress import log
from codec.export.streaming_graphs import run_steps
from codec.export.verification import Comparison, compare
from codec.model.codec import Codec


def lengths(codec: Codec) -> list[tuple[int, int]]:
    """Batch sizes and lengths for the comparison of whole-signal graphs, with whole and partial frames."""
    hop = codec.hop_length
    return [(1, 1), (1, hop), (1, hop + 1), (3, 7 * hop - 1), (2, 40 * hop), (1, 200 * hop + 3)]


def compare_whole(
    codec: Codec, encode: Callable[..., Tensor], decode: Callable[[Tensor], Tensor]
) -> dict[str, Comparison]:
    """Compare on whole signals with all stages, and the decoder also with each smaller number of stages.

    Each condition that is an input is compared.
    """
    log.info("comparing whole signals with the codec")
    comparisons = {
        f"whole signals{case}": compare(codec, call, decode, lengths(codec), condition=name)
        for case, name, call in by_condition(codec, encode)
    }
    stages = range(1, codec.quantizer.num_quantizers)
    if stages:
        log.info("comparing the decoder with fewer stages")
        shapes = [(1, 7 * codec.hop_length - 1)]
        comparisons["fewer stages"] = Comparison.worst(
            compare(codec, partial(codec.encode, num_quantizers=n), decode, shapes, stages=n) for n in stages
        )
    return comparisons


def by_condition(
    codec: Codec, encode: Callable[..., Any]
) -> Iterator[tuple[str, str | None, Callable[..., Any]]]:
    """Yield a suffix of the case, a condition, and `encode` with it as its second argument.

    Yields `encode` itself, and None, if the condition is no input.
    """
    if not conditions(codec):
        yield "", None, encode
    for number, name in enumerate(conditions(codec)):
        yield f", {name}", name, partial(called_with, encode, number)


def called_with(encode: Callable[..., Any], number: int, audio: Tensor, *state: Tensor) -> Any:
    """Call a graph with a condition for all of the batch."""
    return encode(audio, torch.full((len(audio),), number), *state)


def first(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
    """Return the only output of a function that returns a tuple."""
    return function(*inputs)[0]


def compare_steps(
    codec: Codec, steps: Mapping[str, Callable], states: Mapping[str, list[Tensor]], frames: int
) -> Comparison:
    """Compare step graphs, from the initial state, with the codec on the whole signal.

    Without `encoder_step`, the codes are the codec's.
    """
    log.info("comparing steps with the codec")
    hop = codec.hop_length
    decode = partial(run, steps["decoder_step"], states["decoder_step"], frames)
    shapes = [(1, frames * hop), (2, 24 * frames * hop)]
    if "encoder_step" not in steps:
        return compare(codec, codec.encode, decode, shapes)
    return Comparison.worst(
        compare(
            codec,
            partial(run, step, states["encoder_step"], frames * hop),
            decode,
            shapes,
            condition=name,
        )
        for _, name, step in by_condition(codec, steps["encoder_step"])
    )


def run(step: Callable, initial: list[Tensor], length: int, signal: Tensor) -> Tensor:
    """Call `run_steps`, with the signal as the last argument."""
    return run_steps(step, initial, signal, length)
