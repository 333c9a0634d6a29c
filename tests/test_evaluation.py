"""What an evaluation says: each depth's scores, both bitrates, sizes and speed, against doing it by hand."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import config

from codec.audio import read_audio, write_wav
from codec.evaluation import evaluate
from codec.metrics import mel_distance
from codec.model import Codec, build_codec
from codec.pictures import read_picture, save_spectrogram_pair
from codec.systems import depths_of

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
def evaluated(files, tmp_path_factory) -> tuple[Codec, Path, dict]:
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
    assert summary["mel"] == pytest.approx(np.mean([float(row["mel"]) for row in deepest]))
    assert summary["rate_distortion"][-1]["mel"] == summary["mel"]
    assert json.loads((output / "summary.json").read_text()) == summary
    assert summary["files"] == 3


def test_both_bitrates_of_every_depth(evaluated, files):
    model, _, summary = evaluated
    codes = torch.cat([model.encode(read(name))[0] for name in files], dim=1)
    bits = []
    for stage in codes:
        share = np.unique(stage.numpy(), return_counts=True)[1] / stage.numel()
        bits.append(float(-(share * np.log2(share)).sum()))
    for depth, point in enumerate(summary["rate_distortion"], start=1):
        assert point["kbit/s"] == pytest.approx(depth * 8 * 125 / 1000)
        assert point["kbit/s_entropy"] == pytest.approx(sum(bits[:depth]) * 125 / 1000, rel=1e-6)
    assert 0 < summary["kbit/s_entropy"] < summary["kbit/s"]
    assert summary["codebook_sizes"] == [256] * 3
    assert summary["frames"] == codes.shape[1]


def test_parameters_of_the_parts_are_those_of_the_whole(evaluated):
    model, _, summary = evaluated
    assert set(summary["parameters"]) == {"encoder", "decoder", "quantizer"}
    assert summary["parameters"]["quantizer"] == 3 * 256 * 8  # learned by averaging, and learned all the same
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert sum(summary["parameters"].values()) == whole + 3 * 256 * 8


def test_time_is_taken_on_one_thread_and_threads_are_given_back(files, tmp_path):
    threads = torch.get_num_threads()
    summary = evaluate(codec(), files[:1], tmp_path)
    assert summary["encode_ms"] > 0 and summary["decode_ms"] > 0
    assert summary["timed_on"].startswith("1 of ")
    assert torch.get_num_threads() == threads


def test_a_quantizer_without_codes_has_scores_and_no_bitrate(files, tmp_path):
    summary = evaluate(codec("quantizer=none"), files[:1], tmp_path)
    assert summary["kbit/s"] is None and summary["kbit/s_entropy"] is None
    assert [point["num_quantizers"] for point in summary["rate_distortion"]] == [0]
    assert math.isfinite(summary["mel"]) and summary["decode_ms"] > 0


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
