"""The benchmark of a GPU, in the sizes that a CPU can afford."""

import csv

import benchmark_gpu
import benchmark_peers
import pytest
import torch


@pytest.mark.parametrize("kind", ["train", "encode", "stream"])
def test_a_job_measures(kind):
    name = {"train": "tiny"}.get(kind, "speech_16khz_streaming")
    found = benchmark_gpu.measure(
        benchmark_gpu.Job(kind, name, "eager", 2 - (kind != "train")), torch.device("cpu")
    )
    assert found["milliseconds"] > 0 and found["audio_seconds_per_second"] > 0


def test_originals_are_measured_where_they_are_installed(monkeypatch):
    class Original:
        """Step of an original package, with a module to move to the device."""

        def __init__(self, balanced: bool):
            self.module = torch.nn.Linear(1, 1)

        def __call__(self, audio: torch.Tensor) -> None:
            assert audio.shape == (3, 1, 24000)
            self.module(audio.mT).sum().backward()

    monkeypatch.setitem(benchmark_peers.PEERS, "encodec", Original)
    job = benchmark_gpu.Job("peer", "encodec", "eager", 3)
    found = benchmark_gpu.measure(job, torch.device("cpu"))
    assert found["audio_seconds_per_second"] == pytest.approx(3000 / found["milliseconds"])


def test_jobs_beyond_the_minutes_are_named(tmp_path, monkeypatch):
    arguments = ["--device", "cpu", "--only", "tiny", "--minutes", "0.1", "-o", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    benchmark_gpu.main()
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["how"] for row in rows} == {"eager", "tuned", "compiled", "graphs"}
    assert {row["note"] for row in rows} == {"not measured: out of time"}


def test_a_failure_is_the_note_of_its_job():
    found = benchmark_gpu.measure(benchmark_gpu.Job("train", "nothing", "eager", 1), torch.device("cpu"))
    assert "nothing" in found["note"] and "milliseconds" not in found


def test_every_experiment_is_measured_and_compilations_come_last():
    groups = benchmark_gpu.groups([], small=False)
    from composed import options

    assert {job.name for group in groups for job in group if job.job == "train"} == set(options("experiment"))
    compiled = [group[0].how == "compiled" for group in groups]
    assert compiled == sorted(compiled)


def test_the_command_writes_both_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--device", "cpu", "--only", "ours", "-o", str(tmp_path)])
    benchmark_gpu.main()
    with (tmp_path / "gpu.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["job"] == "quantize" and float(row["milliseconds"]) > 0
    assert benchmark_gpu.device_name("cpu") in (tmp_path / "gpu.md").read_text()
    assert "| quantize | ours | eager | 1 |" in (tmp_path / "gpu.md").read_text()
    assert (
        torch.__version__ in (tmp_path / "gpu.md").read_text() and "quantize ours" in capsys.readouterr().out
    )
