"""Equal bitrate: fits a quantizer's number of stages, codes or levels to a target bitrate."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from codec.config import ConfigError, build

# Largest codebook of LFQ in the literature; no recording is long enough to measure the usage of a larger one.
LARGEST_BITS = 18
MOST_STAGES = 128
NEAR = 7  # powers of two, the original and three on each side, that are tried before other sizes
SIZES = ("codebook_size", "codebook_sizes", "codebook_bits", "levels")
Path = tuple[str | int, ...]
Config = dict[str, Any]


class Knob(NamedTuple):
    """Option of a quantizer's config that changes its bitrate: path, value and neighboring options."""

    path: Path
    value: Any
    siblings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the option on the command line."""
        return ".".join(map(str, ("quantizer", *self.path)))


def at_bitrate(
    model: Mapping[str, Any], kbps: float, *, tolerance: float = 0.01, unlimited: bool = False
) -> dict[str, Any]:
    """Quantizer of a codec's config, changed to a nominal bitrate of `kbps` kbit/s.

    The codebook size is kept if a number of stages or groups fits. Otherwise sizes are powers of two, or any
    number if those are too far, and levels have the closest product. A single stage stays single. Of several
    branches, the one with most stages changes. Raises ConfigError if no candidate is within `tolerance`, a
    share of the target, and for a quantizer without codes, unless `unlimited` accepts it as the ceiling of a
    comparison.
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
            "this quantizer has no codes, hence no bitrate; to include it as the ceiling of the "
            "comparison: sweep.unlimited=true"
        )
    target, best = kbps * 1000, (abs(base - kbps * 1000), base, quantizer)
    for candidate in itertools.chain([quantizer], Neighbors(quantizer, target, measure)):
        try:
            rate = measure(candidate)
        except ConfigError:  # impossible sizes, such as a number of groups that does not divide dim
            continue
        if abs(rate - target) <= tolerance * target:
            return candidate
        best = min(best, (abs(rate - target), rate, candidate), key=lambda entry: entry[0])
    raise ConfigError(unreachable(quantizer, best[2], best[1], kbps))


def bitrate_of(model: Mapping[str, Any]) -> Callable[[Config], float]:
    """Function from a quantizer's config to the nominal bit/s of the codec, computed without weights."""
    with torch.device("meta"):
        parts = {key: build(node, path=key) for key, node in model.items() if key != "quantizer"}

    def measure(quantizer: Config) -> float:
        with torch.device("meta"):
            return build({**parts, "quantizer": build(quantizer, path="quantizer")}).bitrate()

    return measure


class Neighbors:
    """Variants of a quantizer's config for a target in bit/s, the smallest changes first."""

    def __init__(self, quantizer: Config, target: float, measure: Callable[[Config], float]):
        self.quantizer, self.target, self.measure = quantizer, target, measure
        self.count = find_count(quantizer)
        self.size = find_size(quantizer, self.count)
        # A number of stages below the number of strides would drop the finest scale.
        self.fewest = len((self.count and self.count.siblings.get("strides")) or [0])

    def __iter__(self) -> Iterator[Config]:
        variant = self.fit_count(self.quantizer)
        yield variant
        if not self.size:
            return
        # The best number of stages for the original size needs the smallest change of size.
        if self.size.path[-1] == "levels":
            yield from (levels for node in self.other_counts(variant) for levels in self.fit_levels(node))
            return
        other_sizes = sizes(self.size)
        near_sizes = list(itertools.islice(other_sizes, NEAR))
        yield from (self.fit_count(self.resized(self.quantizer, value)) for value in near_sizes)
        # Other sizes before distant powers of two, which change the character: 20 stages of 4 codes.
        yield from self.fit_size(variant)
        yield from (self.fit_count(self.resized(self.quantizer, value)) for value in other_sizes)
        # The best number of groups may not divide the channels.
        yield from (levels for node in self.other_counts(variant) for levels in self.fit_size(node))

    def fit_count(self, node: Config) -> Config:
        """Variant with the number of stages of the closest bitrate."""
        if not self.count:
            return node
        steps = self.between(*(with_count(node, self.count, self.fewest + step) for step in (0, 1)))
        number = self.fewest if math.isnan(steps) else round(self.fewest + steps)
        return with_count(node, self.count, min(max(number, self.fewest), MOST_STAGES))

    def other_counts(self, node: Config) -> Iterator[Config]:
        """Variants with up to four times the number of stages, the closest numbers first."""
        if not self.count:
            return iter([node])
        number = value_at(node, self.count.path)
        numbers = outward(number, self.fewest, min(4 * number, MOST_STAGES))
        return (with_count(self.quantizer, self.count, number) for number in numbers)

    def fit_size(self, node: Config) -> Iterator[Config]:
        """Variant with the codebook size, of any number, of the closest bitrate."""
        if not self.size or self.size.path[-1] != "codebook_size":
            return
        bits = 8 + self.between(*(self.resized(node, 2**bits) for bits in (8, 9)))
        if 1 <= bits <= LARGEST_BITS:
            yield self.resized(node, round(2**bits))

    def fit_levels(self, node: Config) -> Iterator[Config]:
        """Variants with levels of close bitrates."""
        assert self.size
        digits = len(self.size.value)
        bits = digits * (2 + self.between(*(self.resized(node, [2**b] * digits) for b in (2, 3))))
        if bits >= 1:
            candidates = closest_levels(min(bits, LARGEST_BITS), digits)
            yield from (self.resized(node, levels) for levels in candidates)

    def resized(self, node: Config, value: Any) -> Config:
        """Variant with another size of the codebooks."""
        assert self.size
        return replaced(node, self.size.path, value)

    def between(self, one: Config, two: Config) -> float:
        """Position of the target between the bitrates of two configs, 0 and 1, extrapolated; NaN if none."""
        try:
            low, high = self.measure(one), self.measure(two)
        except ConfigError:
            return math.nan
        return (self.target - low) / (high - low) if high > low else math.nan


def sizes(size: Knob) -> Iterator[Any]:
    """Other values for the size of a codebook, scaled by powers of two, the nearest first."""
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
    """Integers low..high, the nearest to the center first."""
    return iter(sorted(range(low, high + 1), key=lambda number: abs(number - center)))


def closest_levels(bits: float, digits: int) -> Iterator[list[int]]:
    """Levels with a product close to `2 ** bits`: first for `digits` dimensions, then for any number.

    Levels from 5 to 9, as in FSQ (arXiv 2309.15505, §4.1), come before others. Ties go to the number of
    dimensions closest to `digits`.
    """
    entries: list[tuple[tuple[float, ...], list[int]]] = []
    for low, high in itertools.combinations_with_replacement(range(2, 17), 2):
        for dimensions in range(1, math.ceil(bits) + 1):
            for number in range(dimensions if low != high else 1):
                levels = [high] * number + [low] * (dimensions - number)
                error = abs(sum(map(math.log2, levels)) / bits - 1)
                odd = sum(not 5 <= level <= 9 for level in levels)
                entries.append(((max(error, 0.005), odd, abs(dimensions - digits), error), levels))
    usual_levels = [entry for entry in entries if len(entry[1]) == digits and entry[0][1] == 0]
    same_number = [entry for entry in entries if len(entry[1]) == digits]
    yield from (min(group)[1] for group in (usual_levels, entries, same_number) if group)


def find_count(node: Config) -> Knob | None:
    """Number of stages, if above 1 and without a size for each; otherwise the number of groups; or None."""
    knobs = [knob for knob in walk(node) if isinstance(knob.value, int) and knob.value > 1]
    stages = [knob for knob in knobs if knob.path[-1] == "num_quantizers"]
    if stages:
        return None if stages[0].siblings.get("codebook_sizes") else stages[0]
    return next((knob for knob in knobs if knob.path[-1] == "num_groups"), None)


def find_size(node: Config, count: Knob | None) -> Knob | None:
    """Size of the codebooks, per stage if the config has a list, in the branch of `count`."""

    def preference(knob: Knob) -> tuple[int, bool]:
        pairs = zip(knob.path, count.path if count else (), strict=False)
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        return sum(1 for _ in shared), knob.path[-1] == "codebook_sizes"

    knobs = [knob for knob in walk(node) if knob.path[-1] in SIZES and knob.value is not None]
    return max(knobs, key=preference, default=None)


def walk(node: Any, path: Path = ()) -> Iterator[Knob]:
    """Options below a node; of a list of branches, those of the branch with most stages."""
    if isinstance(node, list):
        stages = [branch.get("num_quantizers", 1) for branch in node]
        largest = max(range(len(node)), key=lambda index: (stages[index], index))
        yield from walk(node[largest], (*path, largest))
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield Knob((*path, key), value, node)
            if isinstance(value, Mapping) or (key == "quantizers" and value):
                yield from walk(value, (*path, key))


def with_count(node: Config, count: Knob, number: int) -> Config:
    """Copy with another number of stages or groups, and with options per stage of the same length."""
    node = replaced(node, count.path, max(number, 1))
    parent = value_at(node, count.path[:-1])
    if parent.get("strides") and count.path[-1] == "num_quantizers":
        finest = [min(parent["strides"])] * (number - len(parent["strides"]))
        parent["strides"] = [*parent["strides"][:number], *finest]
    elif parent.get("depths"):
        parent["depths"] = sorted({depth for depth in parent["depths"] if depth < number} | {max(number, 1)})
    return node


def value_at(node: Any, path: Path) -> Any:
    """Value at a path of a nested config."""
    return functools.reduce(lambda parent, key: parent[key], path, node)


def replaced(node: Config, path: Path, value: Any) -> Config:
    """Copy of a nested config with another value at a path."""
    node = copy.deepcopy(node)
    value_at(node, path[:-1])[path[-1]] = value
    return node


def unreachable(quantizer: Config, nearest: Config, rate: float, kbps: float) -> str:
    """Error message with the nearest bitrate and the remedy."""
    count = find_count(quantizer)
    knobs = [knob for knob in (count, find_size(quantizer, count)) if knob]
    values = {knob.name: str(value_at(nearest, knob.path)).replace(" ", "") for knob in knobs}
    options = ", ".join(f"{name}={value}" for name, value in values.items())
    counts = [knob.name for knob in walk(quantizer) if knob.path[-1] == "num_quantizers" and knob.value == 1]
    advice = (
        f"give it several stages ({counts[0]}=2 or more), take a residual or grouped quantizer"
        if counts and not find_count(quantizer)
        else "take another quantizer"
    )
    return (
        f"this quantizer cannot have {kbps:g} kbit/s; the nearest is {rate / 1000:.4g} kbit/s "
        f"with {options or 'its present sizes'} (codebooks of at most 2^{LARGEST_BITS} codes): {advice}, or "
        "change sweep.kbps or the frame rate (autoencoder.strides)"
    )
