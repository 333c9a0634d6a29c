"""Perceptual metrics of other packages, in a subprocess that `perceptual.py` starts.

The subprocess isolates crashes, hangs and output of their compiled code. It does not import torch. Requests
on standard input are a line of JSON followed by the samples; answers are lines of JSON on standard output.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

Score = Callable[[np.ndarray, np.ndarray, int], float]  # estimate [T], reference [T], Hz


def stoi(extended: bool) -> Score:
    """STOI, 0 to 1 (Taal 2011), or extended STOI (Jensen 2016), by pystoi, which resamples to 10 kHz."""
    measure = importlib.import_module("pystoi").stoi
    return lambda estimate, reference, rate: measure(reference, estimate, rate, extended=extended)


def pesq(mode: str) -> Score:
    """PESQ, MOS-LQO (ITU-T P.862.1 at 8 kHz, P.862.2 at 16 kHz)."""
    measure = importlib.import_module("pesq").pesq
    return lambda estimate, reference, rate: measure(rate, reference, estimate, mode)


def visqol(mode: str) -> Score:
    """ViSQOL v3, MOS-LQO (Chinen 2020): speech at 16 kHz by its lattice model, audio at 48 kHz."""
    api = importlib.import_module("visqol").VisqolApi()
    # Without its lattice model the package scores speech by a polynomial, on another scale.
    api.create(mode=mode, use_lattice_model=True if mode == "speech" else None)
    mapper = type(getattr(api._manager, "quality_mapper", None)).__name__
    if mode == "speech" and mapper != "TFLiteSpeechQualityMapper":
        raise ImportError(f"visqol would score speech by {mapper}, not by its lattice model")
    return lambda estimate, reference, rate: (
        api.measure_from_arrays(reference.astype(np.float64), estimate.astype(np.float64), rate).moslqo
    )


def zimtohrli() -> Score:
    """Zimtohrli, MOS (Google 2024), at 48 kHz."""
    measure = importlib.import_module("zimtohrli").mos_from_signals
    return lambda estimate, reference, rate: measure(reference, estimate)


class OneModel:
    """Replacement of onnxruntime for DNSMOS: one thread, and zeros instead of the unused P.835 model.

    That model takes nine tenths of the time.
    """

    def __init__(self) -> None:
        self.runtime = importlib.import_module("onnxruntime")

    def InferenceSession(self, path: str) -> Any:
        """Session of a model file; of the unused model, one that returns zeros."""
        if Path(path).name == "sig_bak_ovr.onnx":
            return SimpleNamespace(run=lambda outputs, inputs: [np.zeros((1, 3), np.float32)])
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = 1
        return self.runtime.InferenceSession(path, options)


def dnsmos_p808() -> Score:
    """DNSMOS P.808, MOS (Reddy 2021), at 16 kHz, without a reference; by speechmos."""
    dnsmos: Any = importlib.import_module("speechmos.dnsmos")
    dnsmos.ort = OneModel()
    return lambda estimate, reference, rate: dnsmos.run(estimate, rate)["p808_mos"]


FACTORIES: dict[str, Callable[[], Score]] = {
    "stoi": lambda: stoi(False),
    "estoi": lambda: stoi(True),
    "pesq_wb": lambda: pesq("wb"),
    "pesq_nb": lambda: pesq("nb"),
    "visqol_speech": lambda: visqol("speech"),
    "visqol_audio": lambda: visqol("audio"),
    "zimtohrli": zimtohrli,
    "dnsmos_p808": dnsmos_p808,
}


def plugin(place: str) -> Any:
    """Import the function at `module:function` or `file.py:function`."""
    module, _, name = place.rpartition(":")
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        if spec is None or spec.loader is None or not Path(module).is_file():
            raise ImportError(f"{module}: no such file")
        plugin_module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = plugin_module
        spec.loader.exec_module(plugin_module)
    else:
        plugin_module = importlib.import_module(module)
    return getattr(plugin_module, name)


def load(request: dict[str, Any]) -> tuple[Score, dict[str, Any]]:
    """Scoring function of a request, and its properties: version, rate, direction."""
    if request["function"] in FACTORIES:
        score = FACTORIES[request["function"]]()
        package = request["package"]
        return score, {"version": f"{package} {importlib.metadata.version(package)}"}
    function, paths = plugin(request["function"]), request["paths"]
    properties = {
        "version": request["function"],
        "rate": getattr(function, "sample_rate", None),
        "lower": bool(getattr(function, "lower_is_better", False)),
    }
    return (lambda estimate, reference, rate: function(estimate, reference, rate, *paths)), properties


def answer(request: dict[str, Any], stream: BinaryIO, loaded: dict[str, Any]) -> dict[str, Any]:
    """Score the samples that follow a request; without samples, return the metric's properties."""
    count = request["samples"]
    audio = np.frombuffer(stream.read(8 * count), np.float32).reshape(2, count)
    try:
        if request["name"] not in loaded:
            loaded[request["name"]] = load(request)
        score, properties = loaded[request["name"]]
        if not count:
            return properties
        value = float(score(audio[0].copy(), audio[1].copy(), request["rate"]))
        return {"value": value} if np.isfinite(value) else {"reason": f"the score is {value}"}
    except Exception as error:  # any error of a metric is reported as the reason for an empty cell
        missing = isinstance(error, ImportError | importlib.metadata.PackageNotFoundError)
        return {"reason": f"{type(error).__name__}: {error}".strip(), "missing": missing}


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
    metrics: dict[str, Any] = {}
    while line := sys.stdin.buffer.readline():
        reply = answer(json.loads(line), sys.stdin.buffer, metrics)
        answers.write(json.dumps(reply).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
