"""Measurements before a training: its parts, batch sizes and options, each in a fresh process."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from codec.config import ConfigError
from codec.training.module import CodecTraining
from codec.training.probe import NEVER, RESULT
from codec.training.stages import label

SECONDS = 10.0  # of measured steps, for each line
LONGEST = 10.0  # seconds of a step at a batch size that is tried for its memory alone
RESERVE = 0.9  # share of the available memory that a run may take
MOST = 7  # measurements beside those of the parts, if the config's batch size fits
CHILD = ("-m", "codec.training.probe")
WORTH = 1.05  # speed-up that pays
FOR_SPEED = {"trainer_precision", "training_compile"}
RECOMPUTED = {"training_checkpoint_activations": True}


class Part(NamedTuple):
    """Steps of a run that cost the same: a stage, or those before and with the adversary."""

    name: str
    start: int
    steps: int | None  # None without an end


def parts_of(module: CodecTraining, max_steps: int) -> list[Part]:
    """Parts of a run of `max_steps` steps, -1 for one without an end."""
    if module.stages[0].name:
        starts = [sum(stage.steps for stage in module.stages[:n]) for n in range(len(module.stages))]
        rows = zip(module.stages, starts, strict=True)
        return [Part(label(module.stages, n), start, one.steps) for n, (one, start) in enumerate(rows)]
    joins, end = module.adversarial_from, None if max_steps < 0 else max_steps
    if not module.has_discriminator or not joins or (end is not None and joins >= end):
        return [Part("training", 0, end)]
    rest = None if end is None else end - joins
    return [Part("without adversary", 0, joins), Part("with adversary", joins, rest)]


class Row(NamedTuple):
    """Measurement of a part with some options of the config replaced; `result` is the result of a probe."""

    part: Part
    batch_size: int
    options: dict[str, Any]
    result: dict[str, Any]


@dataclass
class Survey:
    """Measurements of a config's parts, batch sizes and options, each in a fresh process.

    `remedy` has the options by which the config's batch size fits into memory, if it does not by itself.
    """

    config: dict[str, Any]
    parts: list[Part]
    seconds: float = SECONDS
    rows: list[Row] = field(default_factory=list)
    remedy: dict[str, Any] = field(default_factory=dict)

    def measure(self, part: Part, batch_size: int, seconds: float | None = None, **options: Any) -> Row:
        """Measure a part for some seconds; an option is `trainer.precision=...` as `trainer_precision`.

        ConfigError for a failure of the config's own options other than too little memory, until a
        measurement of this part succeeds.
        """
        config = copy.deepcopy(self.config)
        config["logger"] = None
        config["data"]["batch_size"] = batch_size
        config["trainer"] |= {"val_check_interval": NEVER, "callbacks": None}
        config["checkpoint"] |= {"save_every": NEVER, "keep_every": None}
        for name, value in options.items():
            group, _, key = name.partition("_")
            config[group][key] = value
        config["training"]["accumulate"] = math.gcd(config["training"]["accumulate"], batch_size)
        seconds = self.seconds if seconds is None else seconds
        request = {"config": config, "start": part.start, "steps": part.steps, "seconds": seconds}
        try:
            result = probe(request)
        except ConfigError as error:
            if not options and not any(row.part == part and row.result["fits"] for row in self.rows):
                raise
            # Compilation without a compiler, batch normalization in parts, or a batch too large for a kernel.
            result = {"fits": False, "error": str(error)}
        row = Row(part, batch_size, options, result)
        self.rows.append(row)
        return row

    def run(self) -> Iterator[Row]:
        """Measure everything: parts, batch sizes and checkpointing for memory, then options for speed."""
        yield from self.fit()
        rows = [row for part in self.parts if (row := self.base(part))]
        batch = rows[0].batch_size
        heaviest = max(rows, key=lambda row: row.result["peak"])
        for size in (batch // 2, 2 * batch):
            tried = size in {row.batch_size for row in self.sizes(heaviest.part)}
            if size and not tried and heaviest.result["seconds"] * size / batch <= LONGEST:
                yield self.measure(heaviest.part, size, **self.remedy)
        most = self.largest()
        while most and most > 2 * batch and heaviest.result["seconds"] * most / batch <= LONGEST:
            row = self.measure(heaviest.part, most, **self.remedy)
            yield row
            most = 0 if row.result["fits"] else int(0.9 * most)
        longest = max(rows, key=lambda row: (row.part.steps or NEVER) * row.result["seconds"])
        half = self.config["trainer"]["precision"] != "32-true"
        best = dict(self.remedy)
        others: dict[str, Any] = {
            "trainer_precision": "32-true" if half else "bf16-mixed",
            "training_compile": not self.config["training"]["compile"],
        }
        for name, value in others.items():
            row = self.measure(longest.part, batch, **best, **{name: value})
            yield row
            best |= {name: value} if self.pays(row) else {}

    def fit(self) -> Iterator[Row]:
        """Measure all parts at the config's batch size, by a remedy if they do not fit, or at a smaller one.

        A batch size that fits by itself is measured with checkpointing, too, in few steps.
        """
        batch = self.config["data"]["batch_size"]
        if (yield from self.all_fit(batch)):
            heaviest = max(self.rows, key=lambda row: row.result["peak"])
            own = self.config["training"]["checkpoint_activations"]
            if not own and heaviest.result["seconds"] <= LONGEST:
                yield self.measure(heaviest.part, batch, seconds=0.0, **RECOMPUTED)
            return
        yield from self.find_remedy(batch)
        fits = bool(self.remedy)
        while not fits:
            batch //= 2
            if batch < 1:
                raise ConfigError("data.batch_size=1 does not fit into memory: lower data.segment_seconds")
            fits = yield from self.all_fit(batch)

    def all_fit(self, batch_size: int, **options: Any) -> Generator[Row, None, bool]:
        """Measure the parts until one does not fit, beginning with those that failed; True if all fit."""
        failed = {row.part for row in self.rows if not row.result["fits"]}
        for part in sorted(self.parts, key=lambda part: part not in failed):
            row = self.measure(part, batch_size, **options)
            yield row
            if not row.result["fits"]:
                return False
        return True

    def find_remedy(self, batch_size: int) -> Iterator[Row]:
        """Measure checkpointing and accumulation, or both if neither fits; the remedy is the fastest."""
        fitting: list[dict[str, Any]] = []
        own = self.config["training"]["checkpoint_activations"]
        if not own and (yield from self.all_fit(batch_size, **RECOMPUTED)):
            fitting.append(RECOMPUTED)
        fitting += yield from self.accumulate(batch_size)
        if not own and not fitting:
            fitting += yield from self.accumulate(batch_size, **RECOMPUTED)
        self.remedy = min(fitting, key=lambda options: self.duration(batch_size, options), default={})

    def accumulate(self, batch_size: int, **options: Any) -> Generator[Row, None, list[dict[str, Any]]]:
        """Measure a batch in more and more parts; the options of the first that fits, if any."""
        for parts in range(self.config["training"]["accumulate"] + 1, batch_size + 1):
            if batch_size % parts == 0:
                divided = options | {"training_accumulate": parts}
                if (yield from self.all_fit(batch_size, **divided)):
                    return [divided]
                if "error" in self.rows[-1].result:  # refused, in any number of parts
                    break
        return []

    def duration(self, batch_size: int, options: dict[str, Any]) -> float:
        """Seconds of all steps of the run with some options."""
        rows = [row for row in self.rows if row[1:3] == (batch_size, options)]
        return sum((row.part.steps or NEVER) * row.result["seconds"] for row in rows)

    def best(self) -> dict[str, Any]:
        """Options that the batch size needs, and those that pay, together."""
        return next((row.options for row in reversed(self.trials()) if self.pays(row)), self.remedy)

    def trials(self) -> list[Row]:
        """Measurements of options for speed."""
        return [row for row in self.rows if row.options.keys() & FOR_SPEED]

    def sizes(self, part: Part) -> list[Row]:
        """Measurements of a part with the remedy alone, in order of batch size."""
        own = [row for row in self.rows if row.part == part and row.options == self.remedy]
        return sorted(own, key=lambda row: row.batch_size)

    def base(self, part: Part) -> Row | None:
        """Measurement of a part at the config's batch size, or the next that fits all parts; None without."""
        most = self.config["data"]["batch_size"]
        fitting = {
            one: {
                row.batch_size: row
                for row in self.sizes(one)
                if row.result["fits"] and row.batch_size <= most
            }
            for one in self.parts
        }
        common = set.intersection(*map(set, fitting.values())) or fitting[part].keys()
        return fitting[part][max(common)] if common else None

    def largest(self) -> int | None:
        """Largest batch size that fits, by a line through the two largest measured ones; None if unknown."""
        bases = [row for part in self.parts if (row := self.base(part))]
        rows = self.sizes(max(bases, key=lambda row: row.result["peak"]).part) if bases else []
        fitting = [row for row in rows if row.result["fits"]]
        limit = fitting[-1].result["limit"] if fitting else None
        if len(fitting) < 2 or not limit:
            return None
        less, more = fitting[-2:]
        slope = (more.result["peak"] - less.result["peak"]) / (more.batch_size - less.batch_size)
        sizes = [row.batch_size for row in rows if not row.result["fits"]]
        failed = min((size for size in sizes if size > more.batch_size), default=NEVER)
        room = RESERVE * limit - more.result["peak"]
        return min(failed - 1, more.batch_size + int(room / slope)) if slope > 0 else None

    def pays(self, row: Row) -> bool:
        """True if the options of a measurement save time over the whole run, with the time to compile."""
        base = self.compared(row)
        if (
            base is None
            or not row.result.get("fits")
            or row.result["seconds"] * WORTH > base.result["seconds"]
        ):
            return False
        saved = (row.part.steps or NEVER) * (base.result["seconds"] - row.result["seconds"])
        return saved > row.result["starting"] - base.result["starting"]

    def compared(self, row: Row) -> Row | None:
        """Measurement with all but the last of a row's options."""
        options = dict(list(row.options.items())[:-1])
        key = (row.part, row.batch_size, options)
        return next((one for one in self.rows if one[:3] == key and one.result.get("fits")), None)


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Measure in a new process; ConfigError for a failure other than too little memory."""
    with tempfile.TemporaryDirectory(prefix="codec-plan-") as folder, tempfile.TemporaryFile() as errors:
        path = os.pathsep.join(filter(None, sys.path))
        child = subprocess.Popen(
            [sys.executable, *CHILD, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for this process
        )
        try:
            child.communicate(json.dumps(request | {"folder": folder}).encode())
        finally:
            child.kill()
            child.wait()
        if child.returncode == -9:
            return {"fits": False, "killed": True}
        file = Path(folder, RESULT)
        result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if "fits" not in result:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ConfigError(result.get("error") or f"the measurement ended with {child.returncode}: {last}")
        return result
