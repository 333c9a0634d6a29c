"""Perceptual metrics that other packages compute: which there are, and processes that survive them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codec.audio import resample
from codec.config import PACKAGE, ConfigError

TIMEOUT = 300.0  # seconds for one score; the first of a process includes compiling


@dataclass(frozen=True)
class PerceptualMetric:
    """A metric, the `rate` in Hz that it is fed with (None: the audio's own), and the package behind it.

    A plug-in's `function` is `module:function` or `file.py:function`; it gets estimate and reference (float32
    `[T]`), their rate and the `paths`, and returns a number. Its attributes `sample_rate` and
    `lower_is_better` say what they are called.
    """

    name: str
    package: str
    rate: int | None = None
    function: str = ""
    paths: tuple[str, ...] = ()
    lower: bool = False
    version: str = ""

    @property
    def install(self) -> str:
        """What to do where it is not installed."""
        if self.function:
            return "the module has to be importable, or the path of a .py file"
        return f"pip install '{self.package}', or all with pip install 'neural-audio-codec[metrics]'"


CATALOG = {
    metric.name: metric
    for metric in (
        PerceptualMetric("stoi", "pystoi"),
        PerceptualMetric("estoi", "pystoi"),
        PerceptualMetric("pesq_wb", "pesq", 16000),
        PerceptualMetric("pesq_nb", "pesq", 8000),
        PerceptualMetric("visqol_speech", "visqol-python[lattice,accel]", 16000),
        PerceptualMetric("visqol_audio", "visqol-python[lattice,accel]", 48000),
        PerceptualMetric("zimtohrli", "zimtohrli", 48000),
        PerceptualMetric("dnsmos_p808", "speechmos", 16000),
    )
}
# Each has an intrusive metric and one without reference, as far as there is one: they disagree.
GROUPS = {
    "speech": ("stoi", "estoi", "pesq_wb", "visqol_speech", "dnsmos_p808"),
    "music": ("visqol_audio", "zimtohrli"),
    "all": tuple(CATALOG),
}


class MetricProcess:
    """A process that scores; started when it is needed, killed when it hangs, replaced when it died."""

    def __init__(self, timeout: float = TIMEOUT):
        self.timeout = timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: Any = None

    def start(self) -> subprocess.Popen[bytes]:
        """The running process."""
        if self.process is None:
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115
            # One thread each: several run side by side.
            threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
            self.process = subprocess.Popen(
                # -P: the files beside it are no one else's modules.
                [sys.executable, "-P", str(PACKAGE / "evaluation" / "scorers.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=os.environ | threads,
            )
        return self.process

    def ask(self, metric: PerceptualMetric, audio: np.ndarray, rate: int) -> dict[str, Any]:
        """The answer about audio `[2, T]`; a `reason` of a process that crashed or took too long."""
        process = self.start()
        assert process.stdin and process.stdout
        request = {"name": metric.name, "function": metric.function or metric.name, "paths": metric.paths}
        request |= {"package": metric.package.partition("[")[0], "samples": audio.shape[1], "rate": rate}
        late = threading.Event()
        watchdog = threading.Timer(self.timeout, lambda: (late.set(), process.kill()))
        watchdog.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n" + audio.astype("<f4").tobytes())
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it died before it had read everything
            line = b""
        finally:
            watchdog.cancel()
        return json.loads(line) if line.endswith(b"\n") else {"reason": self.bury(late.is_set())}

    def bury(self, late: bool) -> str:
        """Why the process is dead; the next question starts another."""
        assert self.process
        status = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        self.close()
        if late:
            return f"took more than {self.timeout:g} s and was stopped"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"exit status {status}"
        return f"crashed ({name}){': ' + said[-1] if said else ''}"

    def score(
        self, metric: PerceptualMetric, estimate: np.ndarray, reference: np.ndarray, rate: int
    ) -> tuple[float | None, str]:
        """Score of the channels' mean of `[C, T]` within ±1, at the rate that the metric needs; or why."""
        pair = np.stack([estimate.mean(0), reference.mean(0)]).clip(-1, 1)
        pair = resample(pair, rate, metric.rate or rate).clip(-1, 1)
        said = self.ask(metric, pair, metric.rate or rate)
        return said.get("value"), said.get("reason", "")

    def check(self, metric: PerceptualMetric) -> PerceptualMetric:
        """The metric with what its function says of itself; ConfigError that says how to install it."""
        said = self.ask(metric, np.zeros((2, 0), np.float32), 0)
        if "reason" in said:
            advice = f"; {metric.install}" if said.get("missing") or metric.function else ""
            raise ConfigError(f"metric {metric.name}: {said['reason']}{advice}")
        rate = said.get("rate") or metric.rate
        return replace(metric, rate=rate, lower=said.get("lower", metric.lower), version=said["version"])

    def close(self) -> None:
        """End the process."""
        if self.process:
            assert self.process.stdin and self.process.stdout
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdout, self.errors):
                stream.close()
            with contextlib.suppress(OSError):  # what it had not read is lost with it
                self.process.stdin.close()
            self.process = None


def choose_metrics(
    names: Sequence[str], plugins: Sequence[str] = ()
) -> tuple[list[PerceptualMetric], list[str]]:
    """Metrics by name or group, and plug-ins as `NAME=MODULE:FUNCTION[,PATH...]`; what is left out, and why.

    Of a group those that are installed are taken; one that was asked for by name raises ConfigError.
    """
    asked: dict[str, tuple[PerceptualMetric, bool]] = {}
    for name in names:
        if name not in CATALOG and name not in GROUPS:
            known = ", ".join([*GROUPS, *CATALOG])
            raise ConfigError(f"--metrics: no metric {name!r}; there are {known}")
        for member in GROUPS.get(name, (name,)):
            _, optional = asked.get(member, (None, True))
            asked[member] = CATALOG[member], optional and name in GROUPS
    for text in plugins:
        name, _, rest = text.partition("=")
        function, *paths = rest.split(",")
        if not name.isidentifier() or name in asked or ":" not in function:
            raise ConfigError(f"--metric {text}: expected NAME=MODULE:FUNCTION or NAME=FILE.py:FUNCTION,PATH")
        asked[name] = PerceptualMetric(name, "", None, function, tuple(paths)), False
    chosen, left_out = [], []
    process = MetricProcess()
    try:
        for metric, optional in asked.values():
            try:
                chosen.append(process.check(metric))
            except ConfigError as error:
                if not optional:
                    raise
                left_out.append(str(error))
    finally:
        process.close()
    return chosen, left_out
