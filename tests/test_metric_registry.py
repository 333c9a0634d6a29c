"""The registry of metrics: the statements of each record, against its scores; metrics of other packages."""

import functools
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_perceptual import PACKAGES, RATE, speech

import codec.metrics.registry as registry
from codec.commands.parsers import evaluate
from codec.config import ConfigError
from codec.evaluation.comparison import DECISIVE
from codec.metrics.base import Metric
from codec.metrics.process import MetricProcess
from codec.metrics.registry import GROUPS, METRICS, PERCEPTUAL, choose_metrics, described
from codec.metrics.signal import SCORES
from codec.sweep.optuna_search import Search

ROOT = Path(__file__).parent.parent
RATIOS = (40, 30, 15)  # dB of speech over noise
EVERY = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


@pytest.fixture(scope="module")
def process():
    started = MetricProcess()
    yield started
    started.close()


@functools.cache
def signals() -> tuple[np.ndarray, list[np.ndarray]]:
    """Speech, and speech with more and more of the noise of ITU-T P.810, which follows the speech."""
    clean = speech(4.0)
    noise = np.random.default_rng(1).standard_normal(clean.shape).astype(np.float32)
    return clean, [clean * (1 + np.float32(10 ** (-ratio / 20)) * noise) for ratio in RATIOS]


def score(metric: Metric, estimate: np.ndarray, reference: np.ndarray, process: MetricProcess) -> float:
    if metric.tensors:
        estimates, references = (torch.from_numpy(audio)[None] for audio in (estimate, reference))
        found = metric.score(estimates, references, RATE)
        assert found.shape == (1,)
        return float(found)
    if metric.name in PACKAGES:
        pytest.importorskip(PACKAGES[metric.name], reason="needs the extra `metrics`")
    value, reason = process.score(metric, estimate, reference, RATE)
    assert not reason and isinstance(value, float), reason
    return value


@EVERY
def test_a_record_has_all_that_tables_state(metric):
    assert metric.name.isidentifier() and METRICS[metric.name] is metric
    assert metric.title and metric.meaning.endswith(".") and metric.meaning != Metric("x").meaning
    assert metric.tensors == (metric in SCORES) != (metric in PERCEPTUAL)
    assert metric.tensors or metric.package in extra("metrics")
    assert len({one.title for one in METRICS.values()}) == len(METRICS)


def extra(name: str) -> str:
    (line,) = [
        row for row in (ROOT / "pyproject.toml").read_text().splitlines() if row.startswith(f"{name} = ")
    ]
    return line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@EVERY
def test_scores_change_in_the_stated_direction_as_noise_rises(metric, process):
    clean, noisy = signals()
    values = [score(metric, estimate, clean, process) for estimate in noisy]
    assert values == sorted(values, reverse=not metric.lower) and len(set(values)) == len(values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@EVERY
def test_a_reference_is_needed_where_it_is_stated(metric, process):
    clean, noisy = signals()
    one, other = (score(metric, noisy[1], reference, process) for reference in (clean, noisy[0]))
    assert (one != other) == metric.needs_reference


def row(metric: Metric) -> str:
    cells = [f"`{metric.name}`", metric.heading, metric.package.partition("[")[0] or "none"]
    cells += [str(metric.rate or "any"), "lower" if metric.lower else "higher"]
    return " | ".join([*cells, "yes" if metric.needs_reference else "no", metric.meaning])


def test_the_table_of_the_documentation_is_the_registry():
    text = (ROOT / "codec/evaluation/README.md").read_text()
    table = text[text.index("| `--metrics` |") :].partition("\n\n")[0].splitlines()
    assert table[2:] == [f"| {row(metric)} |" for metric in METRICS.values()]


def test_names_in_options_are_names_of_metrics():
    (text,) = [action.help for action in evaluate()._actions if action.dest == "metrics"]
    assert set(text.partition("names as ")[2].partition(";")[0].split(",")) <= METRICS.keys()
    assert set(GROUPS) == set(text.partition("distance: ")[2].partition(", or names")[0].split(", "))
    assert {*DECISIVE, *SCORES} <= set(METRICS.values())


@pytest.mark.parametrize("name", [metric.name for metric in SCORES])
def test_metrics_of_every_evaluation_may_be_named_and_are_not_scored_twice(name):
    assert choose_metrics([name]) == ([], [])
    with pytest.raises(ConfigError, match="with a new name"):
        choose_metrics([], [f"{name}=json:loads"])


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Function that registers modules, as entry points of installed packages do."""
    paths = [str(ROOT / "tests/elsewhere"), str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]))
    for path in paths:
        monkeypatch.syspath_prepend(path)
    before = set(sys.modules)
    yield lambda *modules: monkeypatch.setattr(registry, "registered_modules", lambda: frozenset(modules))
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_metric_of_a_registered_package_is_chosen_by_its_name(install):
    install("anothercodec.parts")
    found = registry.known(["peak_error"])["peak_error"]
    (metric,), _ = choose_metrics([], ["mine=anothercodec.parts:peak_error"])
    assert (found.lower, found.heading, metric.title) == (True, "peak error, FS", "mine")
    clean, noisy = signals()
    process = MetricProcess()
    try:
        value = score(found, noisy[0], clean, process)
    finally:
        process.close()
    assert value == pytest.approx(np.abs(noisy[0].clip(-1, 1) - clean).max(), rel=1e-6)
    with pytest.raises(ConfigError, match=r"no metric 'peek'; there are speech, .*dnsmos_p808, peak_error$"):
        choose_metrics(["peek"])
    assert Search(metric="peak_error").metric.lower
    with pytest.raises(ValueError, match=r"metric: expected one of mel, .*peak_error, got 'kbit/s'"):
        Search(metric="kbit/s")


def test_a_record_given_by_its_place_states_its_title_and_gets_its_paths(install, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from codec.metrics.base import Metric\n"
        "def load(path):\n"
        "    offset = float(open(path).read())\n"
        "    def score(estimate, reference, rate):\n"
        "        assert reference is None and rate == 8000\n"
        "        return offset + abs(estimate).max()\n"
        "    return score\n"
        "LOUD = Metric('loud', 'loudest', 'Peak.', load, rate=8000, needs_reference=False, version='3')\n"
    )
    (tmp_path / "offset.txt").write_text("2.5")
    (metric,), _ = choose_metrics([], [f"peak={tmp_path}/mine.py:LOUD,{tmp_path}/offset.txt"])
    assert (metric.name, metric.title, metric.meaning) == ("peak", "loudest", "Peak.")
    assert re.fullmatch("3, files [0-9a-f]{12}", metric.version)  # other files are measured anew
    process = MetricProcess()
    try:
        audio = np.full((1, 1600), 0.5, np.float32)
        assert process.score(metric, audio, audio, 8000) == (3.0, "")
    finally:
        process.close()


def test_a_record_given_by_its_place_has_a_versioned_package_and_files_of_its_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from codec.metrics.base import Metric\n"
        "def load(path):\n"
        "    return lambda estimate, reference, rate: len(path)\n"
        "SIZE = Metric('size', load=load, package='numpy[extra]>=1.0', paths=('four',))\n"
        "BATCH = Metric('batch', load=lambda: (lambda a, b, rate: a[:, 0, 0]), tensors=True)\n"
    )
    process, audio = MetricProcess(), np.full((1, 1600), 0.5, np.float32)
    try:
        for text, size in (("size", 4), ("longer", 6)):
            paths = ",longer" if text == "longer" else ""
            (metric,), _ = choose_metrics([], [f"{text}={tmp_path}/mine.py:SIZE{paths}"])
            assert metric.version == f"numpy {np.__version__}"
            assert process.score(metric, audio, audio, 8000) == (size, "")
    finally:
        process.close()
    with pytest.raises(ConfigError, match=r"metric mine: .*BATCH has tensors=True: score arrays"):
        choose_metrics([], [f"mine={tmp_path}/mine.py:BATCH"])


def test_the_version_of_a_metric_without_a_package_changes_with_its_code(tmp_path):
    versions = []
    for line in ("return 1.0", "return 1.0", "return 2.0"):
        (tmp_path / "mine.py").write_text(f"def one(estimate, reference, rate):\n    {line}\n")
        (metric,), _ = choose_metrics([], [f"one={tmp_path}/mine.py:one"])
        versions.append(metric.version)
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_of_this_name", "bad, registered in .*cannot be imported: No module named"),
        ("from codec.metrics.base import Metric\nMINE = Metric('mel')", "bad: there is another metric 'mel'"),
    ],
)
def test_a_registered_module_that_is_broken_is_named(install, tmp_path, text, words):
    (tmp_path / "bad.py").write_text(text)
    install("bad")
    with pytest.raises(ConfigError, match=words):
        choose_metrics(["unheard_of"])
    assert "mel" in registry.known(["mel", "stoi"])


def test_summaries_state_titles_and_directions_of_metrics_that_are_not_installed():
    stated = Metric("peak_error", "peak error", "Largest.", unit="FS", lower=True).stated()
    summaries = [{"own_metrics": {"peak_error": stated}, "lower_is_better": ["peak_error", "energy"]}]
    mel, *others = described(["peak_error", "mel", "energy", "my_score"], summaries)
    assert mel is METRICS["mel"]
    found = {metric.name: (metric.title, metric.unit, metric.lower) for metric in others}
    assert found == {
        "energy": ("energy", "", True),
        "my_score": ("my score", "", False),
        "peak_error": ("peak error", "FS", True),
    }
