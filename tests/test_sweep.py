"""Sweeps as a user starts them: folders, what is skipped, retried, refused and listed, and in parallel."""

import csv
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import programs
import pytest

from codec.audio.writing import write_wav
from codec.config import ConfigError, in_quotes
from codec.evaluation.report import report
from codec.sweep.sweeper import Job, check_unchanged, folder_name, record, recorded
from codec.training.finish import perceptual_metrics

TINY = [
    *("experiment=tiny", "optimizer=adamw", "data=folder", "data.num_workers=0", "data.batch_size=4"),
    *("data.segment_seconds=0.1", "autoencoder.latent_dim=8", "autoencoder.encoder_channels=2"),
    *("autoencoder.decoder_channels=2", "discriminator.windows=[256]", "discriminator.channels=2"),
    *("trainer.accelerator=cpu", "trainer.val_check_interval=1000", "training.adversarial_from=1"),
    *("trainer.log_every_n_steps=1", "checkpoint.save_every=1", "logger=none", "evaluate=1"),
]


@pytest.fixture(scope="module")
def wavs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wavs")
    random = np.random.default_rng(0)
    for number in range(4):
        tone = 0.3 * np.sin(np.cumsum(random.uniform(0.02, 0.3, 8000)))
        write_wav(folder / f"{number}.wav", tone[None].astype(np.float32), 16_000)
    return folder


def command(wavs: Path, *overrides: str) -> list[str]:
    fixed = [f"data.root={wavs}", f"data.index.cache_dir={wavs}/cache", "trainer.max_steps=2"]
    return [sys.executable, "-m", "codec", "train", *TINY, *fixed, "-m", *overrides]


def sweep(folder: Path, wavs: Path, *overrides: str) -> subprocess.CompletedProcess:
    return programs.run(command(wavs, *overrides), cwd=folder)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# Names


def test_a_folder_is_named_by_the_options_in_any_order():
    assert folder_name({"seed": "1", "quantizer": "rvq"}) == "quantizer=rvq,seed=1"
    assert folder_name({"quantizer": "rvq", "seed": "1"}) == "quantizer=rvq,seed=1"
    assert folder_name({"autoencoder.strides": "[2, 4]"}) == "autoencoder.strides=2,4"
    assert folder_name({}) == "run"


def test_no_folder_leaves_the_sweep_or_meets_another():
    values = ["/data/a", "/data-a", "a b;c", "../../x", "ä" * 300, "x" * 300, "x" * 301, "*", "?", "."]
    names = [folder_name({"data.root": value}) for value in values]
    assert len(set(names)) == len(values)
    for name in names:
        assert re.fullmatch(r"[\w.+=,-]{1,140}", name, re.ASCII) and name not in (".", "..")


@pytest.mark.parametrize("text", ["plain", "it's", "a,b", "back\\slash", "end\\", "${x}", "x=1", "épée"])
def test_any_text_survives_quotes(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"name={in_quotes(text)}").value() == text


# The record of a run


def test_a_record_says_done_last_and_failures_are_kept(tmp_path):
    seen = []

    def work() -> int:
        seen.append(result(tmp_path)["status"])
        return 0

    assert recorded(tmp_path, work) == 0
    assert seen == ["running"] and result(tmp_path)["status"] == "done"

    def fail() -> int:
        raise ConfigError("kbps: wrong")

    assert recorded(tmp_path, fail) == 1
    failed = result(tmp_path)
    assert (failed["status"], failed["error"]) == ("failed", "kbps: wrong") and "traceback" not in failed

    def crash() -> int:
        raise RuntimeError("out of memory")

    assert recorded(tmp_path, crash) == 1
    assert result(tmp_path)["error"] == "RuntimeError: out of memory"
    assert "in crash" in result(tmp_path)["traceback"]
    assert recorded(tmp_path, work) == 0 and "error" not in result(tmp_path)


def test_a_signal_ends_the_sweep_and_the_run_counts_as_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path, lambda: 130)
    assert result(tmp_path)["status"] == "interrupted"


def test_a_damaged_record_is_no_record(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "do')
    assert Job(tmp_path, {}, []).state == {}
    record(tmp_path, status="done")
    assert Job(tmp_path, {}, []).state == {"status": "done"}


def test_other_options_under_the_same_name_are_refused(tmp_path):
    record(tmp_path, status="done", overrides=["a=1", "b=2"])
    check_unchanged(Job(tmp_path, {}, ["a=1", "b=3"]))  # nothing was trained there
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    check_unchanged(Job(tmp_path, {}, ["b=2", "a=1"]))
    with pytest.raises(ConfigError, match=r"b 2 → 3; .*another name="):
        check_unchanged(Job(tmp_path, {}, ["a=1", "b=3"]))


# Whole sweeps


@pytest.mark.slow
def test_a_sweep_at_equal_bitrate_skips_what_is_done_and_retries_what_failed(tmp_path, wavs):
    options = ["quantizer=rvq,fsq,factorized_rvq", "sweep=equal_bitrate", "sweep.kbps=3"]
    first = sweep(tmp_path, wavs, *options)
    assert first.returncode == 1, first.stderr[-3000:]
    assert "2 of 3 runs done, 0 of them before" in first.stdout
    assert re.search(r"failed: quantizer=fsq: .*cannot have 3 kbit/s; the nearest is 2\.25", first.stderr)
    assert "Traceback" not in first.stderr
    runs = {path.name.partition("=")[2]: path for path in (tmp_path / "runs/sweep").iterdir()}
    assert runs.keys() == {"rvq", "fsq", "factorized_rvq"}
    for name in ("rvq", "factorized_rvq"):
        assert result(runs[name])["status"] == "done"
        assert json.loads((runs[name] / "evaluation/summary.json").read_text())["kbit/s"] == 3.0
    assert result(runs["fsq"])["swept"] == {"quantizer": "fsq"}
    before = {name: (run / "metrics.csv").stat().st_mtime_ns for name, run in runs.items() if name != "fsq"}

    again = sweep(tmp_path, wavs, *reversed(options))
    assert again.returncode == 1 and "2 of 3 runs done, 2 of them before" in again.stdout
    assert before == {name: (runs[name] / "metrics.csv").stat().st_mtime_ns for name in before}

    changed = sweep(tmp_path, wavs, *options[:2], "sweep.kbps=4")
    assert changed.returncode == 2 and "sweep.kbps 3 → 4" in changed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["quantizer=rvq,rvq_small", "sweep=equal_bitrate", "sweep.kbps=2"],
            "quantizer: makes no difference",
        ),
        (
            ["quantizer.codebook.codebook_size=256,512", "sweep=equal_bitrate", "sweep.kbps=1"],
            "codebook_size: makes",
        ),
        (["sweep=equal_bitrate", "sweep.kbps=2", "sweep.tolerance=0.01,0.02"], "tolerance: makes no"),
        (
            ["quantizer=rvq,lfq", "quantizer.codebook.codebook_size=64"],
            "quantizer=lfq: Could not override 'quantizer.codebook.codebook_size'",
        ),
        (["seed=1,2", "quantizer.num_quantisers=2"], "num_quantisers"),
        (["seed=1,2", "trainer.max_steps=x"], "trainer.max_steps: expected int"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_starts(tmp_path, wavs, options, words):
    refused = sweep(tmp_path, wavs, *options)
    assert refused.returncode in (1, 2) and words in refused.stderr and "Traceback" not in refused.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_ctrl_c_stops_a_sweep_and_the_same_command_finishes_it(tmp_path, wavs):
    options = ["seed=0,1", "name=mine", "trainer.max_steps=40"]
    started = programs.Program(command(wavs, *options), cwd=tmp_path)
    checkpoint = tmp_path / "runs/mine/seed=0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGINT)
    said, errors = started.communicate(timeout=120)
    assert started.returncode == 130, errors[-3000:]
    assert "0 of 2 runs done" in said and "interrupted: seed=0" in errors and "waiting: seed=1" in errors
    finished = sweep(tmp_path, wavs, *options)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "seed=0: resumes" in finished.stdout and "2 of 2 runs done" in finished.stdout


def needs(package: str) -> pytest.MarkDecorator:
    installed = {found.name for found in importlib.metadata.distributions()}
    return pytest.mark.skipif(package not in installed, reason=f'needs {package}: pip install -e ".[sweep]"')


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
            marks=[needs("hydra-joblib-launcher"), pytest.mark.exhaustive],
            id="joblib",
        ),
        pytest.param(
            ["hydra/launcher=submitit_local"], marks=needs("hydra-submitit-launcher"), id="submitit"
        ),
        pytest.param(["hydra/launcher=ray"], marks=[needs("ray"), pytest.mark.exhaustive], id="ray"),
    ],
)
def test_a_launcher_runs_a_sweep_in_parallel(tmp_path, wavs, launcher):
    done = sweep(tmp_path, wavs, *launcher, "quantizer=rvq,fsq", "quantizer.num_quantizers=2,0")
    assert done.returncode == 1, done.stderr[-3000:]
    assert "2 of 4 runs done" in done.stdout
    assert done.stderr.count("num_quantizers must be at least 1") >= 2
    for name in ("rvq", "fsq"):
        assert (
            result(tmp_path / f"runs/sweep/quantizer={name},quantizer.num_quantizers=2")["status"] == "done"
        )


@pytest.mark.slow
@needs("optuna")
def test_a_search_picks_values_and_goes_on_where_it_was(tmp_path, wavs):
    options = ["search=optuna", "quantizer=rvq,fsq", "optimizer.generator.lr=tag(log,interval(1e-4,1e-2))"]
    first = sweep(tmp_path, wavs, *options, "search.trials=2")
    assert first.returncode == 0, first.stderr[-3000:]
    runs = {path for path in (tmp_path / "runs/sweep").iterdir() if path.is_dir()}
    scores = [json.loads((run / "evaluation/summary.json").read_text())["mel"] for run in runs]
    assert f"best mel of 2 trials: {min(scores):.4g}" in first.stdout
    for run in runs:
        assert 1e-4 <= float(result(run)["swept"]["optimizer.generator.lr"]) <= 1e-2
    more = sweep(tmp_path, wavs, *options, "search.trials=3")
    assert more.returncode == 0, more.stderr[-3000:]
    after = {path for path in (tmp_path / "runs/sweep").iterdir() if path.is_dir()}
    assert runs < after and len(after) == len(runs) + 1


@pytest.mark.parametrize(
    ("metrics", "words"),
    [("stio", r"metrics: no metric 'stio'; there are speech"), (3, "metrics: expected speech")],
)
def test_metrics_that_are_not_there_are_refused_before_training(metrics, words):
    with pytest.raises(ConfigError, match=words):
        perceptual_metrics({"metrics": metrics, "evaluate": 1})
    assert perceptual_metrics({"metrics": metrics, "evaluate": 0}) == []
    assert perceptual_metrics({"metrics": None, "evaluate": 1}) == []


@pytest.mark.slow
def test_metrics_that_are_installed_are_in_a_sweep_s_report(tmp_path, wavs):
    pytest.importorskip("pystoi", reason="needs the extra `metrics`")
    done = sweep(tmp_path, wavs, "quantizer=rvq,fsq", "metrics=[stoi]", "quantizer.num_quantizers=1")
    assert done.returncode == 0, done.stderr[-3000:]
    report([tmp_path / "runs/sweep"], tmp_path / "out")
    with (tmp_path / "out/table.csv").open(newline="") as file:
        assert all(-1 <= float(row["STOI"]) <= 1 for row in csv.DictReader(file))


@pytest.mark.slow
def test_a_search_for_nothing_is_refused(tmp_path, wavs):
    refused = sweep(tmp_path, wavs, "search=optuna", "search.trials=0")
    assert refused.returncode == 2 and "trials and parallel must be at least 1" in refused.stderr
