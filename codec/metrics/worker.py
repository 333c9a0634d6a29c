"""Process that scores by compiled code and plug-ins, started by `process.py`. It does not import torch.

Requests on standard input are a line of JSON followed by the samples; answers are lines of JSON on standard
output.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from codec.config import ConfigError
from codec.metrics.base import Metric, Score, metrics_in
from codec.system.files import sha256


def import_place(place: str) -> Any:
    """Import a module by its name or by the path of its .py file."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None or not Path(place).is_file():
        raise ImportError(f"{place}: no such file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def fingerprint(place: str) -> str:
    """Place with the start of its file's SHA-256: a version that changes with the code."""
    name = place.rpartition(":")[0] or place
    file = name if name.endswith(".py") else sys.modules[name].__file__
    return f"{place} {sha256(Path(file))[:12]}" if file else place


def find(name: str, place: str) -> Metric:
    """Metric of this name in a module, or at `module:attribute`, where a function becomes a metric."""
    module, _, attribute = place.rpartition(":")
    if not module:
        return metrics_in(import_place(place))[name]
    definition = getattr(import_place(module), attribute)
    if isinstance(definition, Metric):
        return definition

    def load(*paths: str) -> Score:
        return lambda estimate, reference, rate: definition(estimate, reference, rate, *paths)

    lower = bool(getattr(definition, "lower_is_better", False))
    return Metric(name, load=load, rate=getattr(definition, "sample_rate", None), lower=lower)


def answer(request: dict[str, Any], stream: BinaryIO, loaded: dict[str, Metric]) -> dict[str, Any]:
    """Score the samples that follow a request; without samples, return the metric's properties."""
    name, place, (channels, length) = request["name"], request["place"], request["shape"]
    audio = np.frombuffer(stream.read(4 * channels * length), np.float32).reshape(channels, length)
    try:
        if name not in loaded:
            definition = find(name, place)
            loaded[name] = replace(definition, paths=tuple(request["paths"]) or definition.paths)
        metric = loaded[name]
        score = metric.score
        if not length:
            package = re.split(r"[^\w.-]", metric.package)[0]  # without extras and versions
            installed = f"{package} {importlib.metadata.version(package)}" if package else fingerprint(place)
            names = "rate", "needs_reference", "tensors"
            inputs = {name: getattr(metric, name) for name in names}
            return metric.stated() | inputs | {"version": metric.version or installed}
        estimate, reference = [*audio.copy(), None][:2]
        value = float(score(estimate, reference, request["rate"]))
        return {"value": value} if np.isfinite(value) else {"reason": f"the score is {value}"}
    except Exception as error:  # any error of a metric is reported as the reason for an empty cell
        missing = isinstance(error, ImportError | importlib.metadata.PackageNotFoundError)
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        return {"reason": f"{kind}{error}".strip(), "missing": missing}


def refuse_network() -> None:
    """Make network connections fail: weights must be given as local files, not downloaded."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise OSError(f"no metric may open a connection, this one tried {address}: give it local files")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def main() -> None:
    """Answer requests until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the evaluation closes the pipes
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of a metric must not mix with answers
    refuse_network()
    sys.path.append(os.getcwd())  # plug-ins may be in the working directory
    loaded: dict[str, Metric] = {}
    while line := sys.stdin.buffer.readline():
        reply = answer(json.loads(line), sys.stdin.buffer, loaded)
        answers.write(json.dumps(reply).encode() + b"\n")
        answers.flush()
