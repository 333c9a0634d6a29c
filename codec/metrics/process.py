"""Subprocesses that compute scores of metrics, and isolate their crashes, hangs, output and network."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from typing import Any

import numpy as np

from codec.audio.conversion import resample
from codec.config import PACKAGE, ConfigError
from codec.metrics.base import Metric

TIMEOUT = 300.0  # seconds for one score; the first of a process includes compilation


# Imports this package, whichever else is installed, without its folder in sys.path.
START = "import sys; sys.path.insert(0, sys.argv[1]); import codec; del sys.path[0]; "
START += "from codec.metrics.worker import main; main()"


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
                [sys.executable, "-P", "-c", START, str(PACKAGE.parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=os.environ | threads,
            )
        return self.process

    def ask(self, metric: Metric, audio: np.ndarray, rate: int) -> dict[str, Any]:
        """Send a request with audio `[1 or 2, T]`; returns the answer, or the `reason` of a crash."""
        process = self.start()
        assert process.stdin and process.stdout
        place = metric.place or getattr(metric.load, "__module__", "")
        request = {"name": metric.name, "place": place, "paths": metric.paths}
        request |= {"shape": audio.shape, "rate": rate}
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
        self, metric: Metric, estimate: np.ndarray, reference: np.ndarray, rate: int
    ) -> tuple[float | None, str]:
        """Score of the channels' mean of `[C, T]` at the metric's rate, within ±1; or None and a reason."""
        inputs = [estimate, reference] if metric.needs_reference else [estimate]
        audio = np.stack([one.mean(0) for one in inputs]).clip(-1, 1)
        audio = resample(audio, rate, metric.rate or rate).clip(-1, 1)
        answer = self.ask(metric, audio, metric.rate or rate)
        return answer.get("value"), answer.get("reason", "")

    def check(self, metric: Metric) -> Metric:
        """Metric with the version, titles, inputs and direction that its process reports.

        ConfigError if it cannot be loaded, and for one with `tensors` that this process has not imported.
        """
        answer = self.ask(metric, np.zeros((2, 0), np.float32), 0)
        if answer.get("tensors") and not metric.tensors:
            remedy = "score arrays [T] without it, or register the package and name the metric in --metrics"
            raise ConfigError(f"metric {metric.name}: {metric.place} has tensors=True: {remedy}")
        if "reason" not in answer:
            return replace(metric, **answer)
        advice = ""
        if ":" in metric.place:
            advice = "; the module has to be importable, or the path of a .py file"
        elif metric.package and answer.get("missing"):
            advice = f"; pip install '{metric.package}'"
            advice += "" if metric.place else ", or all with pip install 'neural-audio-codec[metrics]'"
        raise ConfigError(f"metric {metric.name}: {answer['reason']}{advice}")

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
