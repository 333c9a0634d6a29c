"""Perceptual metrics of other packages: their catalog, and subprocesses that isolate their crashes."""

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

from codec.audio.conversion import resample
from codec.config import PACKAGE, ConfigError

TIMEOUT = 300.0  # seconds for one score; the first of a process includes compilation


@dataclass(frozen=True)
class PerceptualMetric:
    """Metric with its input `rate` in Hz (None: the audio's own) and its package.

    A plug-in's `function` is `module:function` or `file.py:function`. It is called with estimate and
    reference (float32 `[T]`), their rate and the `paths`, and returns a number. Its attributes `sample_rate`
    and `lower_is_better` are optional.
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
        """Advice on installing the metric."""
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
# Groups combine intrusive metrics and, if available, one without reference, because they disagree.
GROUPS = {
    "speech": ("stoi", "estoi", "pesq_wb", "visqol_speech", "dnsmos_p808"),
    "music": ("visqol_audio", "zimtohrli"),
    "all": tuple(CATALOG),
}


class MetricProcess:
    """Subprocess that computes scores: started on demand, killed if it hangs, replaced if it dies."""

    def __init__(self, timeout: float = TIMEOUT):
        self.timeout = timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: Any = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process if it is not running; returns it."""
        if self.process is None:
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115
            # One thread each, because several processes run in parallel.
            threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
            self.process = subprocess.Popen(
                # -P: without the script's folder in sys.path, whose files are no top-level modules.
                [sys.executable, "-P", str(PACKAGE / "metrics" / "scorers.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=os.environ | threads,
            )
        return self.process

    def send(self, metric: PerceptualMetric, audio: np.ndarray, rate: int) -> dict[str, Any]:
        """Send a request with audio `[2, T]`; returns the answer, or a `reason` after a crash or timeout."""
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
        except OSError:  # the process died before it had read everything
            line = b""
        finally:
            watchdog.cancel()
        return json.loads(line) if line.endswith(b"\n") else {"reason": self.bury(late.is_set())}

    def bury(self, late: bool) -> str:
        """Clean up a dead process; returns the reason for its death."""
        assert self.process
        status = self.process.wait()
        self.errors.seek(0)
        output = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        self.close()
        if late:
            return f"took more than {self.timeout:g} s and was stopped"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"exit status {status}"
        return f"crashed ({name}){': ' + output[-1] if output else ''}"

    def score(
        self, metric: PerceptualMetric, estimate: np.ndarray, reference: np.ndarray, rate: int
    ) -> tuple[float | None, str]:
        """Score of the channels' mean of `[C, T]` at the metric's rate, within ±1; or None and a reason."""
        pair = np.stack([estimate.mean(0), reference.mean(0)]).clip(-1, 1)
        pair = resample(pair, rate, metric.rate or rate).clip(-1, 1)
        answer = self.send(metric, pair, metric.rate or rate)
        return answer.get("value"), answer.get("reason", "")

    def check(self, metric: PerceptualMetric) -> PerceptualMetric:
        """Metric with the rate, direction and version of its function; ConfigError if it is missing."""
        answer = self.send(metric, np.zeros((2, 0), np.float32), 0)
        if "reason" in answer:
            advice = f"; {metric.install}" if answer.get("missing") or metric.function else ""
            raise ConfigError(f"metric {metric.name}: {answer['reason']}{advice}")
        rate = answer.get("rate") or metric.rate
        return replace(metric, rate=rate, lower=answer.get("lower", metric.lower), version=answer["version"])

    def close(self) -> None:
        """End the process."""
        if self.process:
            assert self.process.stdin and self.process.stdout
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdout, self.errors):
                stream.close()
            with contextlib.suppress(OSError):  # unread input is lost
                self.process.stdin.close()
            self.process = None


def choose_metrics(
    names: Sequence[str], plugins: Sequence[str] = ()
) -> tuple[list[PerceptualMetric], list[str]]:
    """Select metrics by name or group, and plug-ins; returns them and the reasons for omitted ones.

    Plug-ins are `NAME=MODULE:FUNCTION[,PATH...]`. Missing metrics of a group are omitted; ConfigError for a
    missing one selected by name.
    """
    selected: dict[str, tuple[PerceptualMetric, bool]] = {}
    for name in names:
        if name not in CATALOG and name not in GROUPS:
            choices = ", ".join([*GROUPS, *CATALOG])
            raise ConfigError(f"--metrics: no metric {name!r}; there are {choices}")
        for member in GROUPS.get(name, (name,)):
            _, optional = selected.get(member, (None, True))
            selected[member] = CATALOG[member], optional and name in GROUPS
    for text in plugins:
        name, _, rest = text.partition("=")
        function, *paths = rest.split(",")
        if not name.isidentifier() or name in selected or ":" not in function:
            raise ConfigError(f"--metric {text}: expected NAME=MODULE:FUNCTION or NAME=FILE.py:FUNCTION,PATH")
        selected[name] = PerceptualMetric(name, "", None, function, tuple(paths)), False
    chosen, omitted = [], []
    process = MetricProcess()
    try:
        for metric, optional in selected.values():
            try:
                chosen.append(process.check(metric))
            except ConfigError as error:
                if not optional:
                    raise
                omitted.append(str(error))
    finally:
        process.close()
    return chosen, omitted
