"""`codec-evaluate`: several codecs on one folder, gone on with, on a page; and what it refuses."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import NEEDS_CHROMIUM, ask
from composed import config

from codec.audio.writing import write_wav
from codec.commands.evaluate import main, places
from codec.commands.systems import names, parse_depths
from codec.config import ConfigError
from codec.evaluation.comparison_tables import curves, delta_rates, domains, pairs, worst
from codec.evaluation.records import Summary
from codec.evaluation.runs import EvaluationRun
from codec.metrics.signal import MEL
from codec.model.saving import build_codec

RATE = 16_000


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A folder with a model, recordings in two domains, and a metric."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for number, domain in enumerate(("speech", "speech", "music")):
        (tmp_path / "wavs" / domain).mkdir(parents=True, exist_ok=True)
        noise = random.uniform(-0.3, 0.3, (1, RATE // 2)).astype(np.float32)
        write_wav(tmp_path / "wavs" / domain / f"{number}.wav", noise, RATE)
    torch.manual_seed(0)
    small = ["experiment=tiny", "autoencoder.latent_dim=8", "quantizer.num_quantizers=2"]
    build_codec(config(*small)["model"]).save(tmp_path / "mine/model")
    (tmp_path / "metric.py").write_text(
        "def energy(estimate, *_): return (estimate ** 2).mean()\nenergy.lower_is_better = True\n"
    )
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


COMMAND = ["mine", "data.root=wavs", "--metric", "energy=metric.py:energy", "-o", "out"]


def test_a_model_beside_the_original_on_one_page(work, capsys, monkeypatch):
    monkeypatch.setattr("codec.system.progress.EVERY", 0.0)
    assert main([*COMMAND, "--baselines", "original", "--workers", "2", "--listening", "abx"]) == 0
    printed, progress = capsys.readouterr()
    lines = progress.splitlines()
    assert "\r" not in progress  # a log has whole lines
    for name in ("scanning", "evaluate mine", "evaluate original"):
        assert any(re.match(rf"{name}.*: 67%, elapsed 00:0\d, left 00:0\d$", line) for line in lines), lines
    assert "mine: 3 files at 2.00 kbit/s" in printed and "listening test of 3 trials" in printed
    assert {path.name for path in (work / "out").iterdir()} == {
        *("mine", "original", "index.html", "listening.html", "table.csv", "table.md"),
        *("domains.csv", "pairs.csv", "stages.csv", "tokens.csv", "cost.csv"),
    }
    rows = {row["domain: codec"]: row for row in table(work / "out/domains.csv")}
    assert rows.keys() == {"music: mine", "music: original", "speech: mine", "speech: original"}
    assert rows["speech: mine"]["files"] == "2"
    scores = {row["file"]: row for row in table(work / "out/mine/files.csv")}
    music = [row for row in scores.values() if row["file"] == "music/2.wav"]
    assert float(rows["music: mine"]["energy"]) == pytest.approx(float(music[0]["energy"]))
    summary = json.loads((work / "out/mine/summary.json").read_text())
    assert summary["lower_is_better"] == ["energy"]
    assert re.fullmatch(r"metric\.py:energy [0-9a-f]{12}", summary["metrics"]["energy"])
    assert "mel distance" in (work / "out/table.md").read_text()
    analysis = json.loads((work / "out/mine/analysis.json").read_text())
    levels = [float(row["energy left"]) for row in table(work / "out/stages.csv")]
    assert levels == analysis["energy_left"] and len(levels) == 2
    assert analysis["stability"]["batch"] == 0 and analysis["cost"]["latency"] == 8.0


def test_the_command_again_computes_nothing_again(work):
    main(COMMAND)
    before = (work / "out/records.jsonl").read_bytes()
    analysis = (work / "out/analysis.json").stat().st_mtime_ns
    main(COMMAND)
    assert (work / "out/records.jsonl").read_bytes() == before
    assert (work / "out/analysis.json").stat().st_mtime_ns == analysis
    with pytest.raises(ConfigError, match=r"seconds 20\.0 → 0\.2"):
        main([*COMMAND, "--max-seconds", "0.2"])
    assert main([*COMMAND, "--max-seconds", "0.2", "--fresh"]) == 0


def test_depths_and_the_plain_folder(work):
    assert main(["mine", "wavs", "--num-quantizers", "1"]) == 0
    rows = table(work / "mine/evaluation-wavs/depths.csv")
    assert {row["num_quantizers"] for row in rows} == {"1", "2"}
    assert main(["mine", "wavs", "--num-quantizers", "2", "--fresh", "--held-out", "0.3"]) == 0
    rows = table(work / "mine/evaluation-wavs/depths.csv")
    assert {row["num_quantizers"] for row in rows} == {"2"} and 0 < len(rows) < 3


def test_lost_packets_are_rows_that_are_compared_with_the_codec(work, capsys):
    arguments = ["--packet-loss", "30", "--num-quantizers", "2", "--max-files", "2", "--listening", "abx"]
    assert main([*COMMAND, *arguments]) == 0
    assert "listening test of 2 trials" in capsys.readouterr().out  # two clips of the model and the original
    rows = {row["variant"]: row for row in table(work / "out/table.csv")}
    lossy = [f"mine, 30% {pattern}, {how}" for pattern in ("single", "bursts") for how in ("repeat", "zero")]
    assert list(rows) == ["mine", *lossy]
    assert {row["kbit/s"] for row in rows.values()} == {rows["mine"]["kbit/s"]}
    assert len({row["SI-SDR"] for row in rows.values()}) >= 4  # without a frame to repeat, both are zero
    pairs = {row["pair"] for row in table(work / "out/pairs.csv")}
    assert pairs == {f"mine - {name}" for name in lossy}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine"], "which recordings"),
        (["mine", "data.root=wavs", "data.root=wavs"], "one folder"),
        (["data.root=wavs"], "nothing to evaluate"),
        (["mine", "mine", "wavs"], "named twice"),
        (["mine", "wavs", "--metrics", "loudness"], "no metric 'loudness'"),
        (["mine", "wavs", "--baselines", "flac"], "expected FORMAT_KBPS"),
        (["mine", "wavs", "--num-quantizers", "two"], "expected numbers as 1,2,8"),
        (["mine", "wavs", "--bd-rate-against", "opus"], "there are mine"),
        (["hf:mine", "wavs"], "no model of transformers"),
        (["mine", "wavs", "-o", "wavs"], "is not empty"),
        (["mine", "wavs", "--max-files", "-3"], "--max-files: expected 1 or more, got -3"),
        (["mine", "wavs", "--held-out", "2"], "--held-out: expected a share"),
        (["mine", "wavs", "--max-seconds", "0"], "--max-seconds: expected seconds"),
        (["mine", "wavs", "--num-quantizers", "0"], "--num-quantizers: expected 1 or more"),
        (["mine", "wavs", "--packet-loss", "5,100"], "--packet-loss 5,100: expected percentages between"),
        (["mine", "wavs", "--packet-loss", "few"], "--packet-loss few: expected percentages between"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_begun(work, arguments, words):
    with pytest.raises(ConfigError, match=words):
        main(arguments)
    assert not list(work.rglob("records.jsonl"))


def test_words_of_the_command_line():
    assert places(["a", "b", "data.root=c"]) == (["a", "b"], Path("c"))
    assert places(["a", "hf:b", "c = d"]) == (["a", "hf:b"], Path("c = d"))
    assert names(["runs/a", "runs/b/model", "hf:c"]) == ["a", "b", "c"]
    assert names(["one/a", "two/a"]) == ["one/a", "two/a"]
    assert parse_depths("") is None and parse_depths("1,4") == [1, 4] and parse_depths("all")[:2] == [1, 2]


# Tables


def run(name: str, scores: dict[str, float], points: list[tuple[float, float]], **summary) -> EvaluationRun:
    curve = [{"num_quantizers": 1, "kbit/s": rate, "mel": score} for rate, score in points]
    result = Summary(files=len(scores), rate_distortion=curve, **summary)
    return EvaluationRun(Path(name), {}, name, result, {"mel": scores})


def test_bitrates_of_a_classical_codec_are_one_curve():
    scores = {"a/1": 1.0}
    runs = {f"opus_{k}": run(f"opus_{k}", scores, [(k, 10 - k)], family="opus") for k in (2, 4)}
    runs["mine"] = run("mine", scores, [(1, 8), (2, 6)])
    assert [len(points) for points in curves(runs).values()] == [2, 2]
    (row,) = delta_rates(runs, [MEL], "opus").rows
    assert row == ["mine", -50.0]
    assert (
        "no quality"
        in delta_rates({**runs, "far": run("far", scores, [(1, 90), (2, 80)])}, [MEL], "opus").rows[1][1]
    )


def test_domains_and_pairs_are_means_and_paired_means():
    ours = {f"{'a' if n % 2 else 'b'}/{n}": 1.0 + 0.01 * n for n in range(40)}
    theirs = {file: value + 0.3 + 0.02 * (n % 3) for n, (file, value) in enumerate(ours.items())}
    runs = {"mine": run("mine", ours, []), "yours": run("yours", theirs, [])}
    rows = {row[0]: row for row in domains(runs, [MEL]).rows}
    odd = [value for file, value in ours.items() if file.startswith("a/")]
    assert rows["a: mine"][1] == 20 and rows["a: mine"][2] == pytest.approx(np.mean(odd))
    (pair,) = pairs(runs, [MEL]).rows
    difference = np.subtract(list(ours.values()), list(theirs.values()))
    assert pair[:3] == ["mine - yours", "mel distance", 40] and pair[3] == pytest.approx(difference.mean())
    table = pairs({name: run(name, {"a": 1.0, "b": 2.0}, []) for name in "xy"}, [MEL])
    assert "With 2 files and 1 comparison, no p can be below 0.5, so no difference" in table.note
    assert pair[4] < pair[3] < pair[5] < 0 and pair[6] < 0.001 and pair[7] == "mine"
    assert worst(runs["mine"], MEL, 2) == ["a/39", "b/38"]


def test_the_worst_files_are_never_most_of_them():
    for files, expected in ((1, 0), (3, 1), (8, 2), (60, 10)):
        found = worst(run("mine", {str(n): float(n) for n in range(files)}, []), MEL)
        assert found == [str(n) for n in range(files)][::-1][:expected]


QUESTIONS = """
  said.tables = all("#tables h2").map(title => title.textContent);
  said.rows = all("#tables tbody tr").length;
  said.worst = all("#worst audio").length;
  said.pictures = all("#worst img").filter(image => image.naturalWidth > 0).length;
  said.training = page.getElementById("training-section").hidden;
  said.summary = page.getElementById("summary").textContent;
  said.lines = all("#rd path").length;
  said.clips = all("#listen h3, #worst h3").map(title => title.textContent);
  said.heads = all("#tables th").map(head => head.textContent);
  said.made = all("footer dd").map(value => value.textContent);
"""


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_comparison_in_a_browser(work, width):
    main([*COMMAND, "--baselines", "original"])
    said = ask(work / "out/index.html", width, QUESTIONS)
    assert said["tables"] == [
        *("Domains", "Paired differences", "Stages", "Do the tokens stay?", "Speed, size, latency")
    ]
    assert said["rows"] == 4 + 5 + 2 + 1 + 1
    assert said["worst"] == said["pictures"] == 2 and said["training"] and said["lines"] == 1
    assert said["summary"].startswith("2 codecs, scored on 3 files.")
    assert said["clips"][:3] == ["music/2.wav", "speech/0.wav", "speech/1.wav"]
    assert re.fullmatch(r"\w+/\d\.wav: mel distance \d+\.\d+", said["clips"][3])
    assert "SI\u2011SDR low" in said["heads"] and not any("_" in head for head in said["heads"])
    assert said["made"][0] == f"codec-evaluate {' '.join(COMMAND)} --baselines original"
    assert said["made"][-1] == str(work / "wavs")


@pytest.mark.slow
def test_the_whole_of_it_with_opus_and_perceptual_metrics(work):
    """A model, Opus at three rates and scores of other packages, in one command."""
    for package in ("imageio_ffmpeg", "pystoi"):
        pytest.importorskip(package, reason="needs the extras `metrics` and `baselines`")
    baselines = ["--baselines", "opus_6,opus_12,opus_24,original", "--metrics", "stoi"]
    assert main(["mine", "data.root=wavs", *baselines, "-o", "all"]) == 0
    rows = {row["variant"]: row for row in table(work / "all/table.csv")}
    assert (
        float(rows["opus_6"]["STOI"])
        < float(rows["opus_24"]["STOI"])
        < float(rows["original"]["STOI"]) + 1e-6
    )
    assert float(rows["original"]["STOI"]) == pytest.approx(1, abs=1e-4)
    assert {row["codec"] for row in table(work / "all/bd_rate.csv")} == {"mine"}
    (kbps,) = re.findall(r"\| opus_12 \| 1 \| ([0-9.]+) ", (work / "all/table.md").read_text())
    assert 9 < float(kbps) < 13
