"""Equal bitrate: give a quantizer as many stages, codes or levels as a target bitrate asks for."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from codec.config import ConfigError, build

# With more, a codebook could neither be searched nor its codes be counted one by one.
LARGEST_BITS = 18
MOST_STAGES = 128
SIZES = ("codebook_size", "codebook_sizes", "codebook_bits", "levels")
Path = tuple[str | int, ...]


class Knob(NamedTuple):
    """An option of a quantizer's config that changes its bitrate: where it lies and what it is."""

    path: Path
    value: Any

    @property
    def name(self) -> str:
        """The option as a user types it."""
        return ".".join(map(str, ("quantizer", *self.path)))


def at_bitrate(
    model: Mapping[str, Any], kbps: float, *, tolerance: float = 0.01, unlimited: bool = False
) -> dict[str, Any]:
    """The quantizer of a codec's config, changed so that the codec has `kbps` kbit/s nominally.

    Its own codebook size is kept if a number of stages (or groups) fits; else sizes go by powers of two and
    levels by the closest product. A single stage stays one. Of several branches the one with most stages
    changes. ConfigError when nothing is within `tolerance`, a share of the target, or when the quantizer has
    no codes, unless `unlimited` lets such a one pass, as the ceiling of a comparison.
    """
    if not kbps > 0 or not 0 < tolerance < 1:
        raise ValueError(f"kbps must be above 0 and tolerance between 0 and 1, got {kbps} and {tolerance}")
    quantizer = dict(model["quantizer"])
    measure = bitrate_of(model)
    base = measure(quantizer)
    if math.isinf(base):
        if unlimited:
            return quantizer
        raise ConfigError(
            "this quantizer has no codes, hence no bitrate; to have it as the ceiling of the "
            "comparison: sweep.unlimited=true"
        )
    target, best = kbps * 1000, (abs(base - kbps * 1000), base, quantizer)
    for candidate in itertools.chain([quantizer], candidates(quantizer, target, measure)):
        try:
            rate = measure(candidate)
        except ConfigError:  # sizes that this quantizer cannot have, as groups that do not divide dim
            continue
        if abs(rate - target) <= tolerance * target:
            return candidate
        best = min(best, (abs(rate - target), rate, candidate), key=lambda found: found[0])
    raise ConfigError(unreachable(quantizer, best[2], best[1], kbps))


def bitrate_of(model: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], float]:
    """Function that says the nominal bit/s of the codec with another quantizer, without its weights."""
    with torch.device("meta"):
        parts = {key: build(node, path=key) for key, node in model.items() if key != "quantizer"}

    def measure(quantizer: Mapping[str, Any]) -> float:
        with torch.device("meta"):
            return build({**parts, "quantizer": build(quantizer, path="quantizer")}).bitrate()

    return measure


def candidates(
    quantizer: dict[str, Any], target: float, measure: Callable[[Mapping[str, Any]], float]
) -> Iterator[dict[str, Any]]:
    """Configs near the target bit/s, those that keep most of the original first."""
    count, size = find_count(quantizer), find_size(quantizer)

    def fit_count(node: dict[str, Any]) -> dict[str, Any]:
        if not count:
            return node
        # Bits are affine in the number of stages, and in the bits of a stage.
        one, two = (measure(replaced(node, count.path, number)) for number in (1, 2))
        number = round(1 + (target - one) / (two - one)) if two > one else 1
        return replaced(node, count.path, min(max(number, 1), MOST_STAGES))

    fitted = fit_count(quantizer)
    yield fitted
    if not size:
        return
    if size.path[-1] != "levels":
        for value in sizes(size):
            yield fit_count(replaced(quantizer, size.path, value))
        return
    # The number of stages that suits the original levels best lets them change least.
    center = value_at(fitted, count.path) if count else 1
    for number in outward(center, 1, MOST_STAGES) if count else [None]:
        node = replaced(quantizer, count.path, number) if count else quantizer
        three, six = (measure(replaced(node, size.path, [8] * digits)) for digits in (1, 2))
        bits = 3 + 3 * (target - three) / (six - three)
        if bits >= 1:
            levels = closest_levels(min(bits, LARGEST_BITS), size.value)
            yield replaced(node, size.path, levels)


def sizes(size: Knob) -> Iterator[Any]:
    """Other values for the size of a codebook, by powers of two, the nearest first."""
    if size.path[-1] == "codebook_bits":
        yield from outward(size.value, 1, LARGEST_BITS)
    elif size.path[-1] == "codebook_size":
        yield from (2**bits for bits in outward(round(math.log2(size.value)), 1, LARGEST_BITS))
    else:
        for shift in outward(0, -LARGEST_BITS, LARGEST_BITS):
            scaled = [round(value * 2.0**shift) for value in size.value]
            if min(scaled) >= 2 and max(scaled) <= 2**LARGEST_BITS:
                yield scaled


def outward(center: int, low: int, high: int) -> Iterator[int]:
    """All integers of low..high, the nearest to the center first."""
    return iter(sorted(range(low, high + 1), key=lambda number: abs(number - center)))


def closest_levels(bits: float, original: list[int]) -> list[int]:
    """Levels whose product is closest to `2 ** bits`, from 5 up if possible (FSQ, arXiv:2309.15505, §4.1).

    Of equally close ones (within half a percent) those with the original number of dimensions.
    """
    found: list[tuple[tuple[float, ...], list[int]]] = []
    for low, high in itertools.combinations_with_replacement(range(2, 17), 2):
        for dimensions in range(1, math.ceil(bits) + 1):
            for number in range(dimensions if low != high else 1):
                levels = [high] * number + [low] * (dimensions - number)
                error = abs(sum(map(math.log2, levels)) / bits - 1)
                small, large = sum(level < 5 for level in levels), sum(level > 9 for level in levels)
                rank = (max(error, 0.005), small + large, abs(dimensions - len(original)), error)
                found.append((rank, levels))
    return min(found)[1]


def find_count(node: Mapping[str, Any]) -> Knob | None:
    """The number of stages if it is free: above 1, without strides or sizes of its own; else of groups."""
    stages = [
        knob
        for knob, parent in walk(node)
        if knob.path[-1] == "num_quantizers"
        and knob.value > 1
        and not parent.get("strides")
        and not parent.get("codebook_sizes")
    ]
    groups = [knob for knob, _ in walk(node) if knob.path[-1] == "num_groups" and knob.value > 1]
    several = any(parent.get("strides") or parent.get("codebook_sizes") for _, parent in walk(node))
    return (stages or ([] if several else groups) or [None])[0]


def find_size(node: Mapping[str, Any]) -> Knob | None:
    """The size of the codebooks; per stage where it is given so."""
    found = [knob for knob, _ in walk(node) if knob.path[-1] in SIZES and knob.value is not None]
    return min(found, key=lambda knob: knob.path[-1] != "codebook_sizes", default=None)


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Knob, Mapping[str, Any]]]:
    """Every option below a node and the mapping it is in; of several branches the one with most stages."""
    if isinstance(node, list):
        stages = [branch.get("num_quantizers", 1) for branch in node]
        last_largest = max(range(len(node)), key=lambda index: (stages[index], index))
        yield from walk(node[last_largest], (*path, last_largest))
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield Knob((*path, key), value), node
            if isinstance(value, Mapping) or (key == "quantizers" and value):
                yield from walk(value, (*path, key))


def value_at(node: Any, path: Path) -> Any:
    """What lies at a path of a nested config."""
    return functools.reduce(lambda parent, key: parent[key], path, node)


def replaced(node: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Copy of a nested config with another value at a path."""
    node = copy.deepcopy(node)
    value_at(node, path[:-1])[path[-1]] = value
    return node


def unreachable(quantizer: dict[str, Any], nearest: dict[str, Any], rate: float, kbps: float) -> str:
    """What the quantizer reaches instead of the target, and what to do."""
    knobs = [knob for knob in (find_count(nearest), find_size(nearest)) if knob]
    shown = ", ".join(f"{knob.name}={str(knob.value).replace(' ', '')}" for knob in knobs)
    single = [knob.name for knob, _ in walk(quantizer) if knob.path[-1] == "num_quantizers"]
    advice = (
        f"give it several stages ({single[0]}=2 or more), take a residual or grouped quantizer"
        if single and not find_count(quantizer)
        else "take another quantizer"
    )
    return (
        f"this quantizer cannot have {kbps:g} kbit/s; the nearest is {rate / 1000:.4g} kbit/s "
        f"with {shown or 'what it has'} (codebooks of at most 2^{LARGEST_BITS} codes): {advice}, or change "
        "sweep.kbps or the frame rate (autoencoder.strides)"
    )
