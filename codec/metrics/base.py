"""Metrics of reconstructions: one record of each, from its name to its scoring function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

Score = Callable[..., Any]  # of estimate, reference and sample rate in Hz


@dataclass(frozen=True)
class Metric:
    """Metric of a reconstruction: its name, its titles in tables, its inputs, its scoring function.

    `load(*paths)` imports the dependencies, reads the files, and returns the scoring function. With `tensors`
    this function scores `[B, C, T]` twice to `[B]`, in the process that calls it. Otherwise it scores mono
    float32 arrays `[T]` within ±1 to one number, in a process of its own.
    """

    name: str  # in options, csv and JSON
    title: str = ""  # default: the name
    meaning: str = "A score of your own."
    load: Callable[..., Score] | None = None  # None: loaded from `place`, or only read from tables
    unit: str = ""
    lower: bool = False  # True: it falls with quality
    rate: int | None = None  # Hz; None: the audio's own
    needs_reference: bool = True  # False: the reference is None
    tensors: bool = False
    package: str = ""  # requirement for pip
    version: str = ""  # default: the package's
    place: str = field(default="", compare=False)  # module, `module:attribute` or `file.py:attribute`
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))

    @cached_property
    def score(self) -> Score:
        """Scoring function, loaded at its first use."""
        assert self.load, f"{self.name} is read from tables only"
        return self.load(*self.paths)

    @property
    def heading(self) -> str:
        """Title with the unit, for a column or an axis."""
        return f"{self.title}, {self.unit}".rstrip(", ")

    def stated(self) -> dict[str, Any]:
        """Title, meaning, unit and direction, for JSON."""
        return {"title": self.title, "meaning": self.meaning, "unit": self.unit, "lower": self.lower}


def metrics_in(module: ModuleType) -> dict[str, Metric]:
    """Metrics among a module's attributes, by name."""
    return {metric.name: metric for metric in vars(module).values() if isinstance(metric, Metric)}
