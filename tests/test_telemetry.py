import csv
import errno
import math
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composed import small_quantizer

from codec.training.health import codebook_health, diverging, residual_energy, warnings_in_words
from codec.training.loggers import IDS_FILE, remember_runs, same_run, to_loggers
from codec.training.metrics_csv import MetricsCSV
from codec.training.step import Step
from codec.training.telemetry import Telemetry, short_summary

FAST = {"speed/data_wait": 0.0}


def steps(quantizer, rows) -> list[Step]:
    latents = rows.T[None]
    return [Step({}, latents, quantizer(latents).codes, torch.ones(8, dtype=torch.int64), True)]


def test_a_collapsed_codebook_is_reported_in_words():
    quantizer = small_quantizer("rvq").eval()
    healthy = torch.randn(2000, 16)
    quantizer.initialise(healthy)
    good = codebook_health(quantizer, steps(quantizer, healthy))
    assert good["codebook/usage_1"] > 0.9 and good["codebook/perplexity_1"] > 20
    assert good["codebook/replaced_1"] == 1
    assert not warnings_in_words({}, good, FAST, 2)
    bad = codebook_health(quantizer, steps(quantizer, healthy[:1].repeat(2000, 1)))
    assert bad["codebook/perplexity_1"] == 1 and bad["codebook/usage_1"] == 1 / 32
    assert any(
        "codebook 1, 2" in text and "collapsing" in text for text in warnings_in_words({}, bad, FAST, 2)
    )


def test_residual_energy_falls_stage_by_stage():
    quantizer = small_quantizer("rvq").eval()
    rows = torch.randn(2000, 16)
    quantizer.initialise(rows)
    left = residual_energy(quantizer, rows.T[None])
    assert left == sorted(left, reverse=True) and left[0] < 0
    first = rows - quantizer.decode(quantizer.encode(rows.T[None], 1))[0].T
    assert math.isclose(left[0], 10 * math.log10(first.square().sum() / rows.square().sum()), abs_tol=1e-4)


def test_a_step_that_is_not_finite_is_reported_without_its_latents():
    quantizer = small_quantizer("rvq").eval()
    latents = torch.randn(2, 16, 10)
    codes = quantizer(latents).codes
    whole, broken = (Step({}, x, codes, None, True) for x in (latents, latents / 0))
    assert "codebook/residual_db_1" in codebook_health(quantizer, [whole])
    assert "codebook/residual_db_1" not in codebook_health(quantizer, [broken])


def test_divergence_waiting_and_a_winning_discriminator_are_reported_in_words():
    best: dict[str, float] = {}
    assert not diverging({"mel": 3.0}, best) and not diverging({"mel": 1.0}, best)
    assert not diverging({"mel": 1.9}, best)
    assert "mel is 2.5 after 1: training diverges" in diverging({"mel": 2.5}, best)[0]
    waiting = {"speed/data_wait": 0.8}
    few, many = (warnings_in_words({}, {}, waiting, workers)[0] for workers in (0, os.cpu_count() or 1))
    assert "80% of the time is spent waiting" in few and "raise data.num_workers (0 now)" in few
    assert "its cores are busy, or the files slow to read" in many and "num_workers" not in many
    assert (
        "separates all real and decoded audio" in warnings_in_words({"discriminator": 0.001}, {}, FAST, 2)[0]
    )


def test_metrics_survive_new_columns_a_torn_row_and_a_resume(tmp_path):
    path = tmp_path / "metrics.csv"
    table = MetricsCSV(path)
    table.log_metrics({"a": 1.0}, 10)
    table.log_metrics({"a": 2.0, "b": 0.5}, 20)
    table.log_metrics({"b": 0.25}, 30)
    with path.open("a") as file:
        file.write("4")
    resumed = MetricsCSV(path)
    resumed.rewind(20)
    resumed.log_metrics({"a": 3.0}, 25)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["a"], row["b"]) for row in rows] == [
        ("10", "1", ""),
        ("20", "2", "0.5"),
        ("25", "3", ""),
    ]


class MlflowException(Exception):
    __module__ = "mlflow.exceptions"


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left"), MlflowException("database is locked")]
)
def test_a_logger_that_fails_is_left_out_and_the_others_go_on(failure, caplog):
    trainer, sent = SimpleNamespace(loggers=["bad", "good"]), []

    def send(logger):
        if logger == "bad":
            raise failure
        sent.append(logger)

    to_loggers(trainer, send)  # type: ignore[arg-type]
    to_loggers(trainer, send)  # type: ignore[arg-type]
    assert trainer.loggers == ["good"] and sent == ["good", "good"]
    assert str(failure) in caplog.text and "training goes on" in caplog.text


def test_a_mistake_of_our_own_is_no_logger_s_failure():
    def send(logger):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        to_loggers(SimpleNamespace(loggers=["one"]), send)  # type: ignore[arg-type]


class WandbLogger(SimpleNamespace):
    """Stands in for Lightning's, which is called like that."""


class MLFlowLogger(SimpleNamespace):
    """Likewise."""


def test_a_resumed_run_goes_on_where_its_loggers_were(tmp_path):
    wandb, mlflow = {"_target_": "a.WandbLogger", "project": "codec"}, {"_target_": "a.MLFlowLogger"}
    first = same_run(wandb, tmp_path, resumed=False)
    assert same_run(mlflow, tmp_path, resumed=False) == mlflow  # whose server names its runs
    remember_runs(tmp_path, [WandbLogger(version=first["id"]), MLFlowLogger(version="9f"), "metrics.csv"])  # type: ignore[list-item]
    again = same_run(wandb, tmp_path, resumed=True)
    assert again == first == wandb | {"id": first["id"]}
    assert same_run(mlflow, tmp_path, resumed=True) == mlflow | {"run_id": "9f"}
    assert same_run(wandb, tmp_path, resumed=False)["id"] != first["id"]
    assert same_run(wandb | {"id": "mine"}, tmp_path, resumed=True)["id"] == "mine"
    (tmp_path / IDS_FILE).write_text("{")
    assert same_run(mlflow, tmp_path, resumed=True) == mlflow
    for other in (None, {"_target_": "a.TensorBoardLogger"}):
        assert same_run(other, tmp_path, resumed=True) == other


@pytest.mark.parametrize(
    ("step", "most", "words"),
    [(300, 1000, "elapsed 01:40, left 05:50"), (100, 1000, "elapsed 01:40"), (300, -1, "elapsed 01:40")],
)
def test_lines_without_a_terminal_say_how_long_it_takes(tmp_path, monkeypatch, step, most, words):
    telemetry = Telemetry(10, tmp_path / "data.txt")
    telemetry.started, telemetry.first = 5000.0, 100  # as of a resumed run
    monkeypatch.setattr("codec.training.telemetry.time.monotonic", lambda: 5100.0)
    trainer: Any = SimpleNamespace(global_step=step, max_steps=most)
    assert telemetry.clock(trainer) == words


def test_a_line_has_the_audio_trained_on_and_the_peak_of_memory():
    speed = {"audio_seconds_per_second": 20.0, "audio_hours": 1.5, "peak_memory_gib": 0.75, "data_wait": 0.1}
    shown = short_summary({"mel": 1.25}, {}, {f"speed/{name}": value for name, value in speed.items()})
    assert shown == {"mel": "1.25", "x real time": "20", "audio": "1.5 h", "memory": "0.75 GiB"}
