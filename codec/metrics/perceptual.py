"""Perceptual metrics by other packages. This file does not import torch: the metrics' processes import it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from codec.metrics.base import Metric, Score

VISQOL = "visqol-python[lattice,accel]"


def stoi(extended: bool) -> Score:
    """STOI (Taal 2011) or extended STOI (Jensen 2016) by pystoi, which resamples to 10 kHz."""
    measure = importlib.import_module("pystoi").stoi

    def score(estimate: np.ndarray, reference: np.ndarray | None, rate: int) -> float:
        # Extended, pystoi adds noise of 2e-16 from numpy's global generator, which changes the last bits.
        state = np.random.get_state()
        np.random.seed(0)
        try:
            return measure(reference, estimate, rate, extended=extended)
        finally:
            np.random.set_state(state)

    return score


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
    """DNSMOS P.808, MOS (Reddy 2021), at 16 kHz; by speechmos."""
    dnsmos: Any = importlib.import_module("speechmos.dnsmos")
    dnsmos.ort = OneModel()
    return lambda estimate, reference, rate: dnsmos.run(estimate, rate)["p808_mos"]


STOI = Metric("stoi", "STOI", "Intelligibility of speech, 0 to 1 (Taal 2011). Lenient to noise.",
    lambda: stoi(extended=False), package="pystoi")  # fmt: skip
ESTOI = Metric("estoi", "ESTOI",
    "Intelligibility of speech, 0 to 1 (Jensen 2016). Stricter than STOI to fast distortions.",
    lambda: stoi(extended=True), package="pystoi")  # fmt: skip
PESQ_WB = Metric("pesq_wb", "PESQ-WB",
    "Predicted listening score of speech at 16 kHz, 1.04 to 4.64 (ITU-T P.862.2).",
    lambda: pesq("wb"), rate=16000, package="pesq")  # fmt: skip
PESQ_NB = Metric("pesq_nb", "PESQ-NB",
    "Predicted listening score of speech at 8 kHz, 1.04 to 4.55 (ITU-T P.862.1).",
    lambda: pesq("nb"), rate=8000, package="pesq")  # fmt: skip
VISQOL_SPEECH = Metric("visqol_speech", "ViSQOL speech",
    "Predicted listening score of speech at 16 kHz, 1 to about 4.6 (ViSQOL v3).",
    lambda: visqol("speech"), rate=16000, package=VISQOL)  # fmt: skip
VISQOL_AUDIO = Metric("visqol_audio", "ViSQOL audio",
    "Predicted listening score of music at 48 kHz, 1 to 4.73 (ViSQOL v3). For speech, a full band outweighs "
    "clear words.", lambda: visqol("audio"), rate=48000, package=VISQOL)  # fmt: skip
ZIMTOHRLI = Metric("zimtohrli", "Zimtohrli",
    "Predicted listening score of music at 48 kHz, 1 to 5 (Google 2024). Lenient to noise.",
    zimtohrli, rate=48000, package="zimtohrli")  # fmt: skip
DNSMOS_P808 = Metric("dnsmos_p808", "DNSMOS P.808 (no reference)",
    "Predicted listening score of speech at 16 kHz, 1 to 5, without the original (Reddy 2021). Clean speech "
    "with other words would score as high.",
    dnsmos_p808, rate=16000, needs_reference=False, package="speechmos")  # fmt: skip
