"""Hydra launcher for Ray: `codec-train -m hydra/launcher=ray ...`, on this machine or a cluster.

Hydra's own Ray launcher requires a version of cloudpickle that is incompatible with joblib.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from codec.config import ConfigError

TARGET = "hydra_plugins.codec.RayLauncher"  # Hydra loads plugins from its own namespace only


class RayLauncher(Launcher):
    """Launches each run as a Ray task.

    init: arguments of `ray.init`; `address: auto` joins a cluster.
    remote: arguments of `ray.remote`, the resources of a run: `num_cpus`, `num_gpus`, `resources`.
    The run folders must be on a file system that all machines share.
    """

    def __init__(self, init: Mapping[str, Any] | None = None, remote: Mapping[str, Any] | None = None):
        super().__init__()
        self.init, self.remote = dict(init or {}), dict(remote or {})

    @classmethod
    def install(cls) -> None:
        """Register `hydra/launcher=ray` with Hydra."""
        Plugins.instance().class_name_to_class[TARGET] = cls
        node = {"_target_": TARGET, "init": {"include_dashboard": False}, "remote": {"num_cpus": 1}}
        ConfigStore.instance().store(group="hydra/launcher", name="ray", node=OmegaConf.create(node))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the composed config and the task function."""
        self.work = (hydra_context, config, task_function)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; a job whose process dies is returned as failed, and the others continue."""
        try:
            import ray  # pyright: ignore[reportMissingImports]
            from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ConfigError(
                'hydra/launcher=ray needs Ray: pip install "neural-audio-codec[ray]"'
            ) from error
        ray.init(ignore_reinit_error=True, **self.init)
        task = ray.remote(max_retries=0, **self.remote)(execute)
        state = Singleton.get_state()
        running = [
            task.remote(number, list(overrides), *self.work, state)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        results = []
        try:
            for job in running:
                try:
                    results.append(ray.get(job))
                except RayError as error:
                    failure = JobReturn(status=JobStatus.FAILED)
                    failure.return_value = error
                    results.append(failure)
        finally:
            ray.shutdown()
        return results


def execute(
    number: int,
    overrides: list[str],
    hydra_context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
    state: dict[Any, Any],
) -> JobReturn:
    """Run one job in a Ray worker process."""
    os.chdir(config.hydra.runtime.cwd)
    setup_globals()
    Singleton.set_state(state)
    composed = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id = f"ray-{number}"
        composed.hydra.job.num = number
    return run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
