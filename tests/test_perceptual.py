"""Metrics of other packages: the numbers of their own functions, and what happens when one misbehaves."""

import functools
import importlib
import os
import re

import numpy as np
import pytest

from codec.audio.conversion import resample
from codec.config import ConfigError
from codec.metrics.base import Metric
from codec.metrics.process import MetricProcess
from codec.metrics.registry import METRICS, PERCEPTUAL, choose_metrics

RATE = 16_000


def speech(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Syllables of a buzz with moving formants, `[1, T]`: enough for what looks for speech."""
    t = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    buzz = sum(
        np.exp(-(((k * 120 - 700 - 400 * np.sin(2 * np.pi * 1.3 * t)) / 500) ** 2)) * np.sin(k * phase)
        for k in range(1, 30)
    )
    syllables = buzz * np.clip(np.sin(2 * np.pi * 2 * t), 0, 1)
    return (0.5 * syllables / np.abs(syllables).max())[None].astype(np.float32)


def noisy(reference: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(reference.shape).astype(np.float32)
    return reference + 0.1 * float(np.std(reference)) * noise


@functools.cache
def pair() -> tuple[np.ndarray, np.ndarray]:
    reference = speech()
    return noisy(reference), reference


@pytest.fixture
def process():
    started = MetricProcess(timeout=300)
    yield started
    started.close()


def reference_score(name: str, estimate: np.ndarray, reference: np.ndarray) -> float:
    """The score as the package's own documentation computes it, of mono audio at the metric's rate."""
    if name in ("stoi", "estoi"):
        from pystoi import stoi

        return stoi(reference, estimate, RATE, extended=name == "estoi")
    if name in ("pesq_wb", "pesq_nb"):
        from pesq import pesq

        return pesq(METRICS[name].rate, reference, estimate, name[-2:])
    if name.startswith("visqol"):
        from visqol import VisqolApi

        api = VisqolApi()
        api.create(mode=name.removeprefix("visqol_"))
        audio = reference.astype(float), estimate.astype(float)
        return api.measure_from_arrays(*audio, METRICS[name].rate).moslqo
    if name == "zimtohrli":
        from zimtohrli import Pyohrli, mos_from_zimtohrli

        return mos_from_zimtohrli(Pyohrli().distance(reference, estimate))
    from speechmos import dnsmos

    return float(dnsmos.run(estimate, RATE)["p808_mos"])


PACKAGES = {"visqol_speech": "visqol", "visqol_audio": "visqol", "pesq_wb": "pesq", "pesq_nb": "pesq"}
PACKAGES |= {"stoi": "pystoi", "estoi": "pystoi", "zimtohrli": "zimtohrli", "dnsmos_p808": "speechmos"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [metric.name for metric in PERCEPTUAL])
def test_a_score_is_that_of_the_package_itself(name, process):
    try:
        importlib.import_module(PACKAGES[name])
    except ImportError as error:
        pytest.skip(f"needs the extra `metrics`: {error}")
    metric = process.check(METRICS[name])
    assert metric.version.split()[1][0].isdigit()
    estimate, reference = pair()
    value, reason = process.score(metric, estimate, reference, RATE)
    rate = metric.rate or RATE
    expected = reference_score(name, *(resample(audio, RATE, rate)[0] for audio in (estimate, reference)))
    assert not reason and value == pytest.approx(expected, abs=1e-4)
    same, _ = process.score(metric, reference, reference, RATE)
    assert name == "dnsmos_p808" or same > value


@pytest.mark.slow
def test_visqol_without_its_lattice_model_is_refused(process, tmp_path, monkeypatch):
    pytest.importorskip("visqol", reason="needs the extra `metrics`")
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert/__init__.py").write_text("raise ImportError('taken away')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(ConfigError, match=r"visqol_speech: .*pip install 'visqol-python\[lattice"):
        process.check(METRICS["visqol_speech"])
    assert process.check(METRICS["visqol_audio"]).version


PLUGIN = """
import ctypes, os, socket, sys, time
import numpy as np

def difference(estimate, reference, rate, path=None):
    print("a metric may print")
    offset = float(open(path).read()) if path else 0.0
    return np.abs(estimate - reference).mean() * rate + offset
difference.lower_is_better = True
difference.sample_rate = 8000

def crash(*_): ctypes.string_at(0)
def leave(*_): os._exit(3)
def hang(*_): time.sleep(60)
def fail(*_): raise ValueError("no utterances")
def nothing(*_): return float("nan")
def download(*_): socket.create_connection(("192.0.2.1", 80), 5)
"""


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "weights.txt").write_text("2.5")

    def make(name: str, *paths: str) -> Metric:
        return Metric(name, place=f"{tmp_path / 'mine.py'}:{name}", paths=paths)

    return make


def test_a_plug_in_says_its_rate_and_direction_and_gets_its_paths(process, plugin, tmp_path):
    metric = process.check(plugin("difference", str(tmp_path / "weights.txt")))
    assert (metric.rate, metric.lower) == (8000, True)
    estimate, reference = pair()
    value, reason = process.score(metric, estimate, reference, RATE)
    low = [resample(audio, RATE, 8000) for audio in (estimate, reference)]
    assert not reason and value == pytest.approx(2.5 + 8000 * np.abs(low[0] - low[1]).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crash", r"crashed \(SIG(SEGV|BUS)"),
        ("leave", "exit status 3"),
        ("hang", "took more than 2 s"),
        ("fail", "ValueError: no utterances"),
        ("nothing", "the score is nan"),
        ("download", "no metric may open a connection"),
    ],
)
def test_a_metric_that_fails_leaves_a_reason_and_the_next_one_a_score(plugin, name, words):
    process, estimate = MetricProcess(timeout=2), pair()[0]
    process.score(plugin("fail"), estimate, estimate, RATE)  # so that starting takes nobody's time
    try:
        value, reason = process.score(plugin(name), estimate, estimate, RATE)
        assert value is None
        assert re.search(words, reason), reason
        process.timeout = 60
        assert process.score(plugin("difference"), estimate, estimate, RATE) == (0.0, "")
    finally:
        process.close()


def test_channels_are_averaged_and_peaks_are_cut_as_a_file_would(process, plugin):
    loud = np.array([[3.0] * 1600, [1.0] * 1600], np.float32)
    value, _ = process.score(plugin("difference"), loud, np.zeros_like(loud), 8000)
    assert value == pytest.approx(8000 * 1.0)


def test_what_is_not_installed_is_named_with_the_command(monkeypatch, tmp_path):
    for package in ("pystoi", "pesq"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not there')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(ConfigError, match=r"metric stoi: .*pip install 'pystoi'.*codec\[metrics\]'"):
        choose_metrics(["stoi"])
    chosen, left_out = choose_metrics(["speech"])
    assert not {"stoi", "estoi", "pesq_wb"} & {metric.name for metric in chosen}
    assert sum("pip install" in reason for reason in left_out) >= 3


@pytest.mark.parametrize(
    ("names", "plugins", "words"),
    [
        (["loudness"], [], "no metric 'loudness'; there are speech, music, all, stoi"),
        ([], ["utmos"], "expected NAME=MODULE:ATTRIBUTE"),
        ([], ["utmos=nowhere_to_be_found:score"], "No module named"),
        ([], ["utmos=nowhere.py:score"], "no such file"),
        ([], ["utmos=json:nothing"], "nothing"),
    ],
)
def test_metrics_that_do_not_exist_are_refused(names, plugins, words):
    with pytest.raises(ConfigError, match=words):
        choose_metrics(names, plugins)


def test_extended_stoi_depends_on_no_state_of_numpy_and_leaves_it():
    pytest.importorskip("pystoi")
    score, (estimate, reference) = METRICS["estoi"].score, pair()
    scores, numbers = set(), set()
    for seed in range(20):  # pystoi's own noise changes the last bits
        np.random.seed(seed)
        scores.add(score(estimate[0], reference[0], RATE))
        numbers.add(float(np.random.random()))
    assert len(scores) == 1 and len(numbers) == 20
