"""Jobs of `codec-encode --engine ray` as Ray tasks, on this machine or a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codec.config import ConfigError
from codec.system import address


def run_on_ray(run_job: Callable[..., None], work: Mapping[str, Any], num_jobs: int | None = None) -> None:
    """Call `run_job` for all jobs, by default one per GPU of Ray, or else per CPU; failed jobs are repeated.

    `RAY_ADDRESS` names a cluster, whose machines must share the file system of model, recordings and output.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ConfigError('--engine ray needs Ray: pip install "neural-audio-codec[ray]"') from error
    ray.init(include_dashboard=False, ignore_reinit_error=True)
    try:
        resources = ray.cluster_resources()
        gpus = 0 if str(work["device"] or "").startswith("cpu") else int(resources.get("GPU", 0))
        number = num_jobs or gpus or int(resources.get("CPU", 1))
        absolute = {
            **work,
            "model": Path(os.path.abspath(work["model"])),
            "inputs": [address.absolute(path) for path in work["inputs"]],
            "output": Path(os.path.abspath(work["output"])),
        }
        task: Any = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=2)(run_job)
        ray.get([task.remote(**absolute, jobs=(number, job)) for job in range(number)])
    finally:
        ray.shutdown()
