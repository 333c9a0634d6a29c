"""Sweeps (`codec-train -m`): many runs from one command, each in a folder named by its options.

Hydra builds the grid and starts the runs, here or through a launcher (joblib, submitit, Ray). On a restart,
finished runs are skipped and interrupted ones resumed; a failed run does not stop the others.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from codec.config import ConfigError, build, in_quotes, validate
from codec.evaluation.runs import RESULT, essence, read_json
from codec.system.files import written_whole
from codec.system.resuming import require_same

OWN = ("run_dir=", "name=", "resume=")  # options that a sweep sets for each run


class Job(NamedTuple):
    """One run of a sweep: its folder, its swept options, and all its overrides."""

    folder: Path
    swept: dict[str, str]
    overrides: list[str]

    @property
    def state(self) -> dict[str, Any]:
        """Content of the run's result.json; empty if it is missing or damaged."""
        try:
            return read_json(self.folder / RESULT)
        except (OSError, ValueError):
            return {}


class Sweep(Sweeper):
    """Resumable version of Hydra's grid over all combinations of `a=1,2 b=3,4`."""

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None):
        super().__init__()
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the composed config and build its launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @classmethod
    def install(cls) -> None:
        """Replace Hydra's grid sweeper under its name: Hydra loads plugins from its own namespace only."""
        Plugins.instance().class_name_to_class[BasicSweeperConf._target_] = cls

    def sweep(self, arguments: list[str]) -> None:
        """Run the unfinished jobs and print a summary; raises SystemExit, with 0 if every run is done."""
        assert self.hydra_context and self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        texts = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = parser.parse_overrides(texts)
        self.jobs: list[Job] = []
        status, start = 0, time.time()
        try:
            if self.config.get("search"):
                print(self.search(overrides))
            else:
                self.grid(overrides)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            status = 130
        failures = self.summarize(start) if self.jobs else 0
        raise SystemExit(status or (1 if failures else 0))

    def grid(self, overrides: Sequence[Override]) -> None:
        """Run every combination of the swept values."""
        swept = {o.get_key_element() for o in overrides if o.is_sweep_override()}
        jobs = [
            self.job({part.partition("=")[0]: part.partition("=")[2] for part in combination}, swept)
            for combination in BasicSweeper.split_arguments(list(overrides), None)[0]
        ]
        self.check_distinct(jobs)
        self.run(jobs)

    def search(self, overrides: Sequence[Override]) -> str:
        """Run the trials of a search; returns a line with the best one."""
        assert self.config is not None
        node = OmegaConf.to_container(self.config.search, resolve=True)
        validate(node, path="search")
        fixed = {
            o.get_key_element(): str(o.get_value_element_as_str())
            for o in overrides
            if not o.is_sweep_override()
        }

        def start(chosen: list[dict[str, str]]) -> list[Path]:
            jobs = [self.job({**fixed, **values}, set(values)) for values in chosen]
            self.run(jobs)
            return [job.folder for job in jobs]

        return build(node, path="search").run(overrides, Path(self.config.run_dir), start)

    def job(self, options: Mapping[str, str], swept: Collection[str]) -> Job:
        """Job with these options, in a folder named after the swept ones."""
        assert self.config is not None
        base, title = Path(self.config.run_dir), str(self.config.name)
        swept_values = {key.lstrip("+"): value for key, value in options.items() if key in swept}
        slug = folder_name(swept_values)
        run_options = {"run_dir": in_quotes(str(base / slug)), "name": in_quotes(f"{title}/{slug}")}
        overrides = {"resume": "auto", **options, **run_options}
        return Job(base / slug, swept_values, [f"{key}={value}" for key, value in overrides.items()])

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs that are not done."""
        for job in jobs:
            check_unchanged(job)
        self.jobs += jobs
        waiting = [job for job in jobs if job.state.get("status") != "done"]
        for job in waiting:
            record(job.folder, status="waiting", swept=job.swept, overrides=job.overrides)
        self.launch(waiting)

    def check_distinct(self, jobs: Sequence[Job]) -> None:
        """ConfigError if two runs would be the same, or if none can start."""
        from codec.training.resolve import (
            resolve,  # imports Lightning, which would delay a launcher's workers
        )

        distinct: dict[str, Job] = {}
        refusals = []
        for job in jobs:
            composed = self.compose(job)
            try:
                config = resolve(composed)
            except ConfigError as error:
                refusals.append(str(error))
                continue
            key = json.dumps([config["seed"], essence(config)], sort_keys=True)
            if key in distinct:
                twin = distinct[key].swept
                axes = ", ".join(axis for axis in job.swept if job.swept[axis] != twin[axis])
                raise ConfigError(
                    f"{axes or 'a value given twice'}: makes no difference: {folder_name(twin)} and "
                    f"{folder_name(job.swept)} would be the same run; leave one out"
                )
            distinct[key] = job
        if len(refusals) == len(jobs):
            raise ConfigError(refusals[0])

    def compose(self, job: Job) -> DictConfig:
        """Composed config of a run; ConfigError for an option that a swept choice does not have."""
        assert self.hydra_context and self.config is not None
        try:
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(job.overrides))
        except HydraException as error:
            raise ConfigError(
                f"{job.folder.name}: {str(error).splitlines()[0]} What not all of the swept choices have "
                "cannot be given to all: make two sweeps of one name"
            ) from error
        with open_dict(composed):
            del composed["hydra"]
        return composed

    def launch(self, jobs: Sequence[Job]) -> None:
        """Start the runs; start those again that a launcher abandoned after one of its processes died."""
        assert self.launcher
        # A cluster's queue still holds the other jobs when one breaks: they must not be submitted twice.
        queued = "submitit" in type(self.launcher).__module__
        while jobs:
            try:
                self.launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
            except ConfigError:
                raise
            except Exception as error:
                print(f"error: the launcher stopped: {type(error).__name__}: {error}", file=sys.stderr)
            remaining = [job for job in jobs if job.state.get("status") == "waiting"]
            if queued or len(remaining) == len(jobs):
                return
            jobs = remaining

    def summarize(self, begun: float) -> int:
        """Print the unfinished runs with their reasons; returns their number."""
        jobs = list({job.folder: job for job in self.jobs}.values())
        unfinished = [job for job in jobs if job.state.get("status") != "done"]
        earlier = sum(job.state.get("ended", begun) < begun for job in jobs if job not in unfinished)
        folder = jobs[0].folder.parent
        print(f"\n{folder}: {len(jobs) - len(unfinished)} of {len(jobs)} runs done, {earlier} of them before")
        for job in unfinished:
            state = job.state
            reason = state.get("error") or "the same command again starts or continues it"
            print(f"  {state.get('status', 'lost')}: {job.folder.name}: {reason}", file=sys.stderr)
        if len(unfinished) < len(jobs):
            print(f"compare them: codec-report {folder}")
        return len(unfinished)


def folder_name(swept: Mapping[str, str]) -> str:
    """Folder name of a run, `quantizer=rvq,seed=1`: its sorted swept options in portable characters."""
    bare = str.maketrans("", "", "[]'\" ")
    plain = ",".join(f"{key}={value.translate(bare)}" for key, value in sorted(swept.items()))
    safe = re.sub(r"[^\w.+=,-]+", "-", plain, flags=re.ASCII)
    if safe == plain and len(safe) <= 120:
        return safe or "run"
    return f"{safe[:120]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def check_unchanged(job: Job) -> None:
    """ConfigError if the folder holds a run with other options than the job's."""
    if (job.folder / "checkpoints" / "last.ckpt").is_file() and "overrides" in job.state:
        stored, current = map(own_options, (job.state["overrides"], job.overrides))
        remedy = "give this sweep another name=..., or remove that folder"
        require_same(job.folder, stored, current, remedy)


def own_options(overrides: Sequence[str]) -> dict[str, str]:
    """Values by option, without those that a sweep sets."""
    pairs = [text.partition("=") for text in overrides if not text.startswith((*OWN, "search"))]
    return {name: value for name, _, value in pairs}


def recorded(folder: Path, command: Callable[[], int]) -> int:
    """Execute a run of a sweep; the status in result.json is `done` only after all else is written.

    Returns 0, or 1 after printing an error. KeyboardInterrupt if a signal stopped the run.
    """
    start = time.time()
    record(folder, status="running", error=None, traceback=None)
    try:
        status = command()
    except Exception as error:
        # A sweep continues after any failure of a run; result.json keeps the reason.
        reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        trace = None if isinstance(error, ConfigError) else traceback.format_exc()
        record(folder, status="failed", error=reason, traceback=trace)
        print(f"error: {folder}: {reason}", file=sys.stderr)
        return 1
    if status > 128:
        record(folder, status="interrupted")
        raise KeyboardInterrupt
    record(folder, status="done", ended=time.time(), seconds=round(time.time() - start, 1))
    return 0


def record(folder: Path, **changes: Any) -> None:
    """Update a run's result.json atomically; None removes a key."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULT
    try:
        state = read_json(path)
    except (OSError, ValueError):
        state = {}
    state = {key: value for key, value in (state | changes).items() if value is not None}
    with written_whole(path, durable=True) as temporary:
        temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
