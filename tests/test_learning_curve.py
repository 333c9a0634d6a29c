"""The table and the picture of a training's quality: every checkpoint that can be read, measured once."""

import csv
from pathlib import Path

import curve_scores
import learning_curve
import numpy as np
import pytest
import torch
import yaml
from learning_curve import main
from tokenized import RATE, noise, small_codec

from codec.audio.writing import write_wav
from codec.bitstream.compress import compress
from codec.config import ConfigError
from codec.evaluation.pictures import read_picture
from codec.evaluation.reading import read_clip
from codec.metrics.signal import mel_distance, si_sdr
from codec.model.codec import Codec

STEPS = (100, 200, 250)
SCORES = ["si_sdr", "mel", "files", "seconds"]


@pytest.fixture(scope="module")
def wavs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wavs")
    for number in range(5):
        write_wav(folder / f"{number}.wav", noise(8000 + 1777 * number, number), RATE)
    return folder


def save(codec: Codec, path: Path, step: int) -> None:
    """A checkpoint as far as it is read: the averaged weights, and others, which nobody shall take."""
    weights = {f"average.{name}": value for name, value in codec.state_dict().items()}
    weights |= {f"codec.{name}": torch.zeros_like(value) for name, value in codec.state_dict().items()}
    torch.save({"model": codec.config, "state_dict": weights, "global_step": step}, path)


@pytest.fixture
def run(tmp_path, codec) -> Path:
    """A run of two steps a second, then one: 100 steps, 2 x 1.8 s of audio each, and 150 steps."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for step, name in zip(STEPS, ("step-0000100", "step-0000200", "last"), strict=True):
        save(codec, tmp_path / f"run/checkpoints/{name}.ckpt", step)
    config = {"sample_rate": RATE, "channels": 1, "data": {"batch_size": 2, "segment_seconds": 1.8}}
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    speeds = "step,valid/mel,speed/audio_seconds_per_second\n50,,7.2\n100,,7.2\n100,3.5,\n220,,3.6\n"
    (tmp_path / "run/metrics.csv").write_text(speeds)
    return tmp_path / "run"


def measure(run: Path, wavs: Path, *more: str) -> tuple[int, list[dict[str, str]]]:
    """Exit status, and the table."""
    return main_rows(run, run.parent, wavs, *more)


def main_rows(model: Path, folder: Path, wavs: Path, *more: str) -> tuple[int, list[dict[str, str]]]:
    """Exit status, and the table in a folder."""
    plain = ["--metrics", "", "--baselines", "", "--rates", "0.75,2.2"]
    table = folder / "curve.csv"
    status = main([str(model), str(wavs), "-o", str(table), *plain, *more])
    with table.open(newline="") as file:
        return status, list(csv.DictReader(file))


def test_a_row_for_each_checkpoint_and_rate_with_what_it_cost(run, wavs):
    status, rows = measure(run, wavs, "--cores", "4")
    assert status == 0
    assert list(rows[0]) == [*learning_curve.PROGRESS, *learning_curve.RATES, *SCORES]
    found = [(row["step"], row["stages"], row["kbps"]) for row in rows]
    assert found == [(str(step), *rate) for step in STEPS for rate in (("1", "0.75"), ("3", "2.25"))]
    for row, seconds in zip(rows[::2], (50, 150, 200), strict=True):  # 2 steps/s up to 100, then 1
        assert float(row["cpu_hours"]) == pytest.approx(4 * seconds / 3600, abs=1e-5)
        assert float(row["audio_hours"]) == pytest.approx(int(row["step"]) / 1000)
    assert {(row["files"], row["seconds"]) for row in rows} == {("5", f"{(5 * 8000 + 10 * 1777) / RATE:.1f}")}


def test_the_cost_of_the_weights_it_started_from_is_added(run, wavs):
    _, alone = measure(run, wavs)
    (run.parent / "curve.csv").unlink()
    _, rows = measure(run, wavs, "--before", "40,1.5")
    for before, row in zip(alone, rows, strict=True):
        assert float(row["audio_hours"]) == pytest.approx(float(before["audio_hours"]) + 40)
        assert float(row["cpu_hours"]) == pytest.approx(float(before["cpu_hours"]) + 1.5)


def test_scores_are_the_means_of_the_averaged_codec_s(run, wavs, codec):
    _, rows = measure(run, wavs, "--unquantized", "--workers", "2")
    assert [row["stages"] for row in rows[:3]] == ["1", "3", "none"]
    expected: dict[str, list[list[float]]] = {"1": [], "3": [], "none": []}
    with torch.inference_mode():
        for path in wavs.iterdir():
            audio = torch.from_numpy(read_clip(str(path), RATE, 1, 20.0))[None]
            latents, length = codec.latents(audio), audio.shape[-1]
            estimates = {"none": codec.autoencoder.decode(latents)[..., :length]}
            estimates |= {k: codec.decode(codec.encode(audio, int(k)), length) for k in ("1", "3")}
            for name, estimate in estimates.items():
                scores = float(si_sdr(estimate, audio)), float(mel_distance(estimate, audio, RATE))
                expected[name].append(list(scores))
    for row in rows[:3]:
        means = np.mean(expected[row["stages"]], axis=0)
        assert [float(row["si_sdr"]), float(row["mel"])] == pytest.approx(means, abs=1e-3)
    assert rows[2]["payload_kbps"] == rows[2]["kbps"] == ""


def test_payload_is_that_of_codec_files(run, wavs, codec, tmp_path):
    for path in (run / "checkpoints").glob("step-*"):
        path.unlink()
    _, rows = measure(run, wavs, "--fit", str(wavs), "--rates", "1.5")
    tables = curve_scores.fitted(codec, wavs, 0.5, 2)
    seconds, stored, coded, whole = 0.0, 0, 0, 0
    for number, path in enumerate(sorted(wavs.iterdir())):
        plain = compress(codec, path, tmp_path / f"{number}.plain", None, 2)
        small = compress(codec, path, tmp_path / f"{number}.small", tables, 2)
        seconds += plain.seconds
        stored, coded = stored + sum(plain.stage_bytes), coded + sum(small.stage_bytes)
        whole += (tmp_path / f"{number}.small").stat().st_size
    rates = [8 * size / seconds / 1000 for size in (stored, coded, whole)]
    assert [float(rows[0][name]) for name in learning_curve.RATES] == pytest.approx(rates, abs=1e-4)
    assert rates[1] < rates[0] < rates[2]
    _, rows = measure(run, wavs, "--rates", "0.75")
    assert rows[-1]["fitted_kbps"] == "" and float(rows[-1]["file_kbps"]) > float(rows[-1]["payload_kbps"])


def test_what_is_in_the_table_is_not_measured_again(run, wavs, codec, monkeypatch):
    measure(run, wavs)
    content = (run.parent / "curve.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(curve_scores.Listener, "judge", lambda *_: pytest.fail("scored again"))
        measure(run, wavs)
    assert (run.parent / "curve.csv").read_bytes() == content
    save(codec, run / "checkpoints/last.ckpt", 300)
    _, rows = measure(run, wavs, "--rates", "0.75,1.5")
    added = [(row["step"], row["stages"]) for row in rows[6:]]
    assert added == [("100", "2"), ("200", "2"), ("300", "1"), ("300", "2")]
    assert (run.parent / "curve.csv").read_bytes().startswith(content)


def test_a_damaged_checkpoint_is_named_and_the_others_are_measured(run, wavs, capsys):
    damaged = run / "checkpoints/step-0000100.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    status, rows = measure(run, wavs)
    assert status == 1 and [row["step"] for row in rows] == ["200", "200", "250", "250"]
    assert f"skipped: {damaged}" in capsys.readouterr().out


def test_files_are_taken_evenly_and_a_table_of_others_is_refused(run, wavs):
    chosen = learning_curve.recordings(wavs, 3)
    assert [Path(path).stem for path in chosen] == ["0", "2", "4"]
    measure(run, wavs, "--files", "3")
    with pytest.raises(ConfigError, match=r"curve\.csv is of 3 files of .* s, not 5 of"):
        measure(run, wavs)


def test_the_picture_shows_every_rate_and_level(run, wavs):
    columns = ["codec", "version", "payload_kbps", "file_kbps", *SCORES]
    known = {"codec": "opus_6", "si_sdr": "9", "mel": "2", "files": "5", "seconds": "3.6"}
    with (run.parent / "baselines.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerow(known)
    counts = []
    for remaining in (run.parent / "baselines.csv", run.parent / "curve.csv"):
        measure(run, wavs)
        picture = read_picture(run.parent / "curve.png")[..., :3]
        assert picture.shape[1] == 1200
        colors = [[0.122, 0.467, 0.706], [1.0, 0.498, 0.055], [0.502, 0.502, 0.502]]  # C0, C1, gray
        counts.append([(np.abs(picture - color).max(-1) < 0.01).sum() for color in colors])
        remaining.unlink()
    (blue, orange, dashes), (*_, bare) = counts
    assert min(blue, orange) > 40 and dashes > bare + 100


def test_classical_codecs_are_measured_once_and_missing_ones_named(run, wavs, capsys):
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra `baselines`")
    names = ["--rates", "", "--baselines", "opus_6,opus_16,mp3_0"]
    measure(run, wavs, *names)
    said = capsys.readouterr().out
    assert "left out: mp3_0: baseline 'mp3_0': expected FORMAT_KBPS" in said and "left out: evs" in said
    content = (run.parent / "baselines.csv").read_text()
    six, sixteen = csv.DictReader(content.splitlines())
    assert six["version"].startswith("ffmpeg ") and float(six["payload_kbps"]) < float(six["file_kbps"])
    assert float(six["mel"]) > float(sixteen["mel"]) > 0
    measure(run, wavs, *names)
    assert "opus_6: " not in capsys.readouterr().out
    assert (run.parent / "baselines.csv").read_text() == content


def test_a_metric_that_is_not_installed_is_named(run, wavs, capsys, monkeypatch):
    monkeypatch.setattr(learning_curve, "choose_metrics", lambda names: ([], ["metric pesq_wb: no pesq"]))
    status, rows = measure(run, wavs, "--metrics", "speech")
    assert status == 0 and len(rows) == 6 and rows[0]["mel"]
    assert "left out: metric pesq_wb: no pesq" in capsys.readouterr().out


def test_a_codec_without_codes_has_the_unquantized_row(run, wavs):
    for step, path in zip(STEPS, sorted((run / "checkpoints").iterdir()), strict=True):
        save(small_codec("quantizer=none"), path, step)
    _, rows = measure(run, wavs)
    assert [row["stages"] for row in rows] == ["none"] * 3


@pytest.mark.parametrize(
    ("kind", "step"),
    [("checkpoint", "200"), ("name", "0"), pytest.param("saved", "0", marks=pytest.mark.exhaustive)],
)
def test_a_codec_that_load_takes_is_measured_as_its_checkpoint(run, wavs, codec, monkeypatch, kind, step):
    _, expected = measure(run, wavs)
    (run.parent / "curve.csv").unlink()
    (run / "checkpoints/step-0000200.ckpt").rename(run.parent / "one.ckpt")
    codec.save(run.parent / "small")
    monkeypatch.setattr("codec.pretrained.FOLDER", run.parent)
    place = {"saved": run.parent / "small", "checkpoint": run.parent / "one.ckpt", "name": Path("small")}
    status, rows = main_rows(place[kind], run.parent, wavs, "--before", "3,1")
    cost = {"step": step, "audio_hours": "3.0000", "cpu_hours": "1.00000"}
    assert status == 0 and rows == [row | cost for row in expected[2:4]]


def test_a_folder_that_is_neither_run_nor_codec_is_refused(wavs, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no saved codec"):
        main([str(tmp_path), str(wavs), "-o", str(tmp_path / "curve.csv")])
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="not the folder of a codec-train run"):
        main([str(tmp_path), str(wavs), "-o", str(tmp_path / "curve.csv")])
