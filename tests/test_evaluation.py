"""What an evaluation says: each depth's scores, both bitrates, sizes and speed, against doing it by hand."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composed import config

from codec.audio.reading import read_audio
from codec.audio.writing import write_wav
from codec.bitstream.compress import compress
from codec.bitstream.fit import fit_tables
from codec.config import ConfigError
from codec.evaluation.evaluate import Options, evaluate, evaluate_system
from codec.evaluation.pictures import read_picture, save_spectrogram_pair
from codec.evaluation.records import Records, Summary
from codec.evaluation.systems import NeuralCodec, Reconstruction, depths_of
from codec.metrics.base import Metric
from codec.metrics.process import MetricProcess
from codec.metrics.signal import mel_distance
from codec.model.codec import Codec
from codec.model.saving import build_codec

RATE = 16_000


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("wavs")
    random = np.random.default_rng(0)
    names = []
    for number in range(3):
        noise = random.uniform(-0.3, 0.3, (1, RATE // 2 + 100 * number)).astype(np.float32)
        write_wav(folder / f"{number}.wav", noise, RATE)
        names.append(str(folder / f"{number}.wav"))
    return names


def codec(*overrides: str) -> Codec:
    torch.manual_seed(0)
    return build_codec(config("experiment=tiny", "autoencoder.latent_dim=8", *overrides)["model"]).eval()


def read(name: str) -> torch.Tensor:
    return torch.from_numpy(read_audio(name)[0])[None]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluated(files, tmp_path_factory) -> tuple[Codec, Path, Summary]:
    output, model = tmp_path_factory.mktemp("evaluation"), codec("quantizer.num_quantizers=3")
    return model, output, evaluate(model, files, output)


def test_every_depth_is_scored_as_if_it_were_coded_alone(evaluated, files):
    model, output, _ = evaluated
    rows = table(output / "depths.csv")
    assert [(row["file"], int(row["num_quantizers"])) for row in rows] == [
        (f, k) for f in files for k in (1, 2, 3)
    ]
    for row in rows:
        audio = read(row["file"])
        with torch.inference_mode():
            alone = model.decode(model.encode(audio, int(row["num_quantizers"])), audio.shape[-1])
        assert float(row["mel"]) == pytest.approx(float(mel_distance(alone, audio, RATE)), rel=1e-4)


def test_the_table_and_the_means_are_those_of_all_stages(evaluated):
    _, output, summary = evaluated
    deepest = [row for row in table(output / "depths.csv") if row["num_quantizers"] == "3"]
    assert [row["mel"] for row in table(output / "files.csv")] == [row["mel"] for row in deepest]
    assert summary.means["mel"] == pytest.approx(np.mean([float(row["mel"]) for row in deepest]))
    assert summary.rate_distortion[-1]["mel"] == summary.means["mel"]
    assert json.loads((output / "summary.json").read_text()) == summary.to_json()
    assert summary.files == 3


def test_both_bitrates_of_every_depth(evaluated, files):
    model, _, summary = evaluated
    codes = torch.cat([model.encode(read(name))[0] for name in files], dim=1)
    bits = []
    for stage in codes:
        share = np.unique(stage.numpy(), return_counts=True)[1] / stage.numel()
        bits.append(float(-(share * np.log2(share)).sum()))
    for depth, point in enumerate(summary.rate_distortion, start=1):
        assert point["kbit/s"] == pytest.approx(depth * 8 * 125 / 1000)
        assert point["kbit/s_entropy"] == pytest.approx(sum(bits[:depth]) * 125 / 1000, rel=1e-6)
    assert 0 < summary.means["kbit/s_entropy"] < summary.means["kbit/s"]
    assert summary.codebook_sizes == [256] * 3
    assert summary.frames == codes.shape[1]


def test_parameters_of_the_parts_are_those_of_the_whole(evaluated):
    model, _, summary = evaluated
    assert set(summary.parameters) == {"encoder", "decoder", "quantizer"}
    assert summary.parameters["quantizer"] == 3 * 256 * 8  # learned by averaging, and learned all the same
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert sum(summary.parameters.values()) == whole + 3 * 256 * 8


def test_time_is_taken_on_one_thread_and_threads_are_given_back(files, tmp_path):
    threads = torch.get_num_threads()
    summary = evaluate(codec(), files[:1], tmp_path)
    assert summary.encode_ms > 0 and summary.decode_ms > 0
    assert summary.timed_on.startswith("1 of ")
    assert torch.get_num_threads() == threads


def test_a_quantizer_without_codes_has_scores_and_no_bitrate(files, tmp_path):
    summary = evaluate(codec("quantizer=none"), files[:1], tmp_path)
    assert summary.means["kbit/s"] is None and summary.means["kbit/s_entropy"] is None
    assert [point["num_quantizers"] for point in summary.rate_distortion] == [0]
    assert math.isfinite(summary.means["mel"]) and summary.decode_ms > 0


@pytest.mark.parametrize(
    ("stages", "expected"),
    [(0, [0]), (1, [1]), (3, [1, 2, 3]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (32, [1, 5, 10, 14, 19, 23, 28, 32])],
)
def test_depths_are_few_and_even_and_hold_the_first_and_the_last(stages, expected):
    assert depths_of(stages) == expected


def test_a_picture_s_title_may_be_in_a_script_that_the_font_lacks(tmp_path):
    audio = torch.randn(1, 4000)
    save_spectrogram_pair(tmp_path / "picture.png", audio, audio, 16_000, "日本")
    assert read_picture(tmp_path / "picture.png").shape == (600, 1000, 4)


# Anything that codes audio, resumed


class Halver:
    """A system that halves the audio, counts its calls and fails where it is told to."""

    name, sample_rate, channels, codebook_sizes = "halver", RATE, 1, ()

    def __init__(self, fail: str = ""):
        self.fail, self.coded = fail, 0

    def identity(self) -> dict:
        return {"system": "halver"}

    def describe(self) -> Summary:
        return Summary()

    def bitrate(self, num_quantizers: int) -> None:
        return None

    def code(self, audio: torch.Tensor):
        self.coded += 1
        if self.fail and audio.shape[-1] == RATE // 2 + 100:  # the second file
            raise RuntimeError(self.fail)
        return None, [Reconstruction(0, 0.5 * audio, 1000, 3000)]


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os\n"
        "def peak(estimate, reference, rate): return abs(estimate).max()\n"
        "def fragile(estimate, reference, rate): return os._exit(1) if len(estimate) == 8100 else 1.0\n"
    )
    return lambda name: Metric(name, place=f"{tmp_path / 'mine.py'}:{name}", version="1")


@pytest.fixture
def processes():
    started = [MetricProcess(60), MetricProcess(60)]
    yield started
    for process in started:
        process.close()


def test_a_rerun_goes_on_where_it_stopped_and_ends_as_if_it_never_had(files, tmp_path):
    options = Options(RATE, 1)
    whole = evaluate_system(Halver(), files, tmp_path / "whole", options)
    evaluate_system(Halver(), files[:2], tmp_path / "parts", options)
    records = tmp_path / "parts/records.jsonl"
    records.write_bytes(records.read_bytes() + b'{"file": "cut sho')  # as a kill leaves it
    again = Halver()
    assert evaluate_system(again, files, tmp_path / "parts", options, resume=True) == whole
    third = Halver()
    evaluate_system(third, files, tmp_path / "parts", options, resume=True)
    assert (again.coded, third.coded) == (1, 0)
    for name in ("files.csv", "depths.csv", "summary.json"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    fresh = Halver()
    evaluate_system(fresh, files, tmp_path / "parts", options)
    assert fresh.coded == 3


def test_a_file_that_changed_is_coded_again(files, tmp_path):
    name = tmp_path / "a.wav"
    name.write_bytes(Path(files[0]).read_bytes())
    evaluate_system(Halver(), [str(name)], tmp_path / "out", Options(RATE, 1))
    name.write_bytes(Path(files[2]).read_bytes())
    again = Halver()
    evaluate_system(again, [str(name)], tmp_path / "out", Options(RATE, 1), resume=True)
    assert again.coded == 1


def test_results_of_another_codec_or_setting_are_not_gone_on_with(files, tmp_path):
    evaluate_system(Halver(), files, tmp_path, Options(RATE, 1))
    with pytest.raises(ConfigError, match=r"other settings: seconds 20.0 → 1.0; .*--output.*--fresh"):
        evaluate_system(Halver(), files, tmp_path, Options(RATE, 1, max_seconds=1.0), resume=True)
    with pytest.raises(
        ConfigError, match=r"other settings: system .* → none, codec none → \w+…, depths none"
    ):
        evaluate_system(NeuralCodec(codec()), files, tmp_path, Options(RATE, 1), resume=True)
    (tmp_path / "records.jsonl").write_text("no json\n")
    with pytest.raises(ConfigError, match="damaged"):
        evaluate_system(Halver(), files, tmp_path, Options(RATE, 1), resume=True)


def test_a_file_that_fails_is_left_out_with_its_reason_and_tried_again(files, tmp_path, caplog):
    summary = evaluate_system(Halver("no memory"), files, tmp_path, Options(RATE, 1))
    assert summary.files == 2 and "no memory" in caplog.text
    (failure,) = table(tmp_path / "failures.csv")
    assert failure == {"file": files[1], "metric": "", "reason": "no memory"}
    assert evaluate_system(Halver(), files, tmp_path, Options(RATE, 1), resume=True).files == 3
    assert not (tmp_path / "failures.csv").exists()
    with pytest.raises(ValueError, match="none of 1 files"):
        evaluate_system(Halver(), [str(tmp_path / "missing.wav")], tmp_path / "out", Options(RATE, 1))


def test_a_metric_that_crashes_on_a_file_empties_one_cell(files, tmp_path, plugin, processes):
    options = Options(RATE, 1, metrics=[plugin("fragile"), plugin("peak")], processes=processes)
    summary = evaluate_system(Halver(), files, tmp_path, options)
    assert summary.means["fragile"] == 1 and summary.empty_cells == 1
    rows = table(tmp_path / "files.csv")
    assert [row["fragile"] for row in rows] == ["1.0", "", "1.0"]
    for row, name in zip(rows, files, strict=True):
        assert float(row["peak"]) == pytest.approx(0.5 * float(read(name).abs().max()))
    (failure,) = table(tmp_path / "failures.csv")
    assert failure["metric"] == "fragile 0" and "exit status 1" in failure["reason"]


def test_a_metric_that_is_added_is_computed_and_one_that_is_there_is_not(files, tmp_path, plugin, processes):
    options = Options(RATE, 1, metrics=[plugin("peak")], processes=processes)
    evaluate_system(Halver(), files, tmp_path, Options(RATE, 1))
    first, second = Halver(), Halver()
    assert "peak" in evaluate_system(first, files, tmp_path, options, resume=True).means
    evaluate_system(second, files, tmp_path, options, resume=True)
    assert (first.coded, second.coded) == (3, 0)
    evaluate_system(second, files, tmp_path, Options(RATE, 1), resume=True)
    assert second.coded == 0 and "peak" not in table(tmp_path / "files.csv")[0]


def test_rates_of_what_was_spent_are_those_of_all_seconds(files, tmp_path):
    summary = evaluate_system(Halver(), files, tmp_path, Options(RATE, 1))
    seconds = sum(read(name).shape[-1] for name in files) / RATE
    assert (
        summary.means["kbit/s"] == summary.means["kbit/s_entropy"] == pytest.approx(3 * 1000 / seconds / 1000)
    )
    assert summary.means["kbit/s_file"] == pytest.approx(9 / seconds)
    assert summary.seconds == pytest.approx(seconds)


def test_the_rate_of_files_is_that_of_the_codec_files(files, tmp_path):
    model = codec("quantizer.num_quantizers=2")
    codes = torch.cat([model.encode(read(name))[0] for name in files], 1).numpy()
    tables = fit_tables(iter([codes] * 20), model.codec_id(), model.quantizer.codebook_sizes, 10_000).tables
    rates = []
    for known in (None, tables):
        summary = evaluate_system(
            NeuralCodec(model, tables=known), files, tmp_path / str(known is None), Options(RATE, 1)
        )
        size = sum(compress(model, name, tmp_path / "a.codec", known, overwrite=True).bytes for name in files)
        assert summary.means["kbit/s_file"] == pytest.approx(8 * size / summary.seconds / 1000, rel=0.01)
        assert summary.rate_distortion[0]["kbit/s_file"] < summary.means["kbit/s_file"]
        rates.append(summary.means["kbit/s_file"])
    assert rates[1] < rates[0]


def test_results_of_other_tables_are_not_gone_on_with(tmp_path):
    model = codec()
    before, after = (NeuralCodec(model, tables=SimpleNamespace(tables_id=name)) for name in "ab")
    Records(tmp_path / "records", before.identity(), False)
    with pytest.raises(ConfigError, match="tables a → b"):
        Records(tmp_path / "records", after.identity(), True)
    Records(tmp_path / "records", before.identity(), True)


def test_every_depth_of_a_beam_is_searched_on_its_own(files):
    model = codec("quantizer.num_quantizers=4").eval()
    audio = read(files[0])
    codes, points = NeuralCodec(model, beam=8).code(audio)
    for depth, point in zip(depths_of(4), points, strict=True):
        best = model.encode(audio, depth, beam=8)
        assert torch.equal(point.estimate, model.decode(best, audio.shape[-1])), depth
    assert torch.equal(codes, best) and not torch.equal(codes, model.encode(audio))


def test_several_threads_find_what_one_does(files, tmp_path, processes):
    one = evaluate_system(NeuralCodec(codec()), files, tmp_path / "one", Options(RATE, 1))
    two = evaluate_system(
        NeuralCodec(codec()), files, tmp_path / "two", Options(RATE, 1, processes=processes)
    )
    for ours, theirs in zip(two.rate_distortion, one.rate_distortion, strict=True):
        assert ours["mel"] == pytest.approx(theirs["mel"], rel=1e-4)
        assert ours["kbit/s_entropy"] == pytest.approx(theirs["kbit/s_entropy"], rel=1e-2)
    names = [[row["file"] for row in table(tmp_path / run / "files.csv")] for run in ("one", "two")]
    assert names[0] == names[1] == files


def test_what_codes_at_another_rate_is_compared_at_ours(tmp_path):
    class Slow(Halver):
        sample_rate = 8000

        def code(self, audio: torch.Tensor):
            assert audio.shape == (1, 1, 8000)
            return None, [Reconstruction(0, audio, None, None)]

    tone = 0.3 * np.sin(np.arange(RATE) * 0.05)[None].repeat(2, 0).astype(np.float32)
    write_wav(tmp_path / "a.wav", tone, RATE)
    summary = evaluate_system(Slow(), [str(tmp_path / "a.wav")], tmp_path / "out", Options(RATE, 2))
    assert summary.means["si_sdr"] > 30 and summary.means["kbit/s"] is None


def test_files_are_named_below_the_root(files, tmp_path):
    options = Options(RATE, 1, root=Path(files[0]).parent)
    evaluate_system(Halver(), files, tmp_path, options)
    assert [row["file"] for row in table(tmp_path / "files.csv")] == ["0.wav", "1.wav", "2.wav"]
