"""The language model of codes, against sources whose entropy is known, and its tables in an evaluation."""

import csv
import json

import numpy as np
import pytest
import torch
from tokenized import RATE, noise, small_codec

from codec.audio.writing import write_wav
from codec.commands.evaluate import main
from codec.config import ConfigError
from codec.evaluation import token_model
from codec.evaluation.context import add_context
from codec.evaluation.records import Summary
from codec.evaluation.runs import EvaluationRun
from codec.evaluation.systems import NeuralCodec

SIZE, FRAMES, RECORDINGS = 8, 500, 60


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    """A model of some thousand parameters."""
    monkeypatch.setattr(token_model, "CHANNELS", 32)
    monkeypatch.setattr(token_model, "LAYERS", 1)


class Source:
    """A Markov chain; a stage that is its code of the frame with probability 0.9; a uniform stage."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.chain = random.dirichlet(np.full(SIZE, 0.3), SIZE)
        ends = self.chain.cumsum(1)
        self.stored = np.zeros((RECORDINGS, 3, FRAMES), np.int64)
        for codes in self.stored:
            state = 0
            for frame, draw in enumerate(random.random(FRAMES)):
                state = min(int(np.searchsorted(ends[state], draw)), SIZE - 1)
                codes[0, frame] = state
            codes[1:] = random.integers(SIZE, size=(2, FRAMES))
            codes[1] = np.where(random.random(FRAMES) < 0.9, SIZE - 1 - codes[0], codes[1])

    def bits(self, numbers: np.ndarray) -> list[float]:
        """Bits per frame of each stage of these recordings, by the source's own probabilities."""
        chain, copied, _ = self.stored[numbers].transpose(1, 0, 2)
        last = np.pad(chain[:, :-1], ((0, 0), (1, 0)))
        is_copy = copied == SIZE - 1 - chain
        probabilities = self.chain[last, chain], np.where(is_copy, 0.9 + 0.1 / SIZE, 0.1 / SIZE)
        return [float(-np.log2(values).mean()) for values in probabilities] + [np.log2(SIZE)]


def test_sources_of_known_entropy_are_measured_within_a_few_percent():
    source = Source()
    expected = source.bits(token_model.divide(RECORDINGS).measured)
    recordings = list(torch.from_numpy(source.stored))
    rows, steps = token_model.measure(recordings, [SIZE] * 3, 1.0, "cpu", steps=150)
    assert steps == 150 and [row[0] for row in rows] == [3, 3, 3]
    for (_, _, bits), entropy in zip(rows, expected, strict=True):
        assert bits == pytest.approx(entropy, rel=0.03)
    # The frequencies alone reveal neither the chain nor the copy.
    assert all(unigram > 1.3 * bits for _, unigram, bits in rows[:2])
    assert rows[2][1] == pytest.approx(3, rel=0.01)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_evaluation_has_the_rates_of_each_stage_and_refuses_latents_in_words(
    tmp_path, monkeypatch, capsys
):
    for n in range(4):
        (tmp_path / "wavs").mkdir(exist_ok=True)
        write_wav(tmp_path / "wavs" / f"{n}.wav", noise(4000, n), RATE)
    codec = small_codec()
    codec.save(tmp_path / "codes")
    small_codec("quantizer=kl").save(tmp_path / "vae")
    models = [str(tmp_path / "codes"), str(tmp_path / "vae")]
    command = [*models, f"data.root={tmp_path}/wavs", "-o", str(tmp_path / "out")]
    assert main([*command, "--token-model", "0.001"]) == 0
    assert "vae: no token model: it is for codes" in capsys.readouterr().out
    stored = json.loads((tmp_path / "out/codes/token_model.json").read_text())
    rows = {row["codec: stage"]: row for row in table(tmp_path / "out/context.csv")}
    assert list(rows) == ["codes: 1", "codes: 2", "codes: 3", "codes: all"]
    rates = [float(row["language model"]) for row in rows.values()]
    expected = [codec.frame_rate * bits for _, _, bits in stored["bits_per_frame"]]
    assert rates == pytest.approx([*expected, sum(expected)], abs=0.02)
    assert rows["codes: all"]["nominal bit/s"] == str(codec.bitrate())
    first = {row["variant"]: row["kbit/s under context"] for row in table(tmp_path / "out/table.csv")}
    assert float(first.pop("codes")) == pytest.approx(rates[-1] / 1000) and not any(first.values())
    assert f"| {rates[-1] / 1000:.2f} |" in (tmp_path / "out/table.md").read_text()
    # The same files are not measured again; fewer are.
    trained, names = [], [f"{n}.wav" for n in range(4)]
    monkeypatch.setattr(token_model, "train", lambda model, *_: trained.append(1) or model)
    run = EvaluationRun(tmp_path / "out/codes", {}, "codes")
    for count in (4, 3):
        run.summary = Summary(frame_rate=codec.frame_rate, rate_distortion=[{}])
        add_context(NeuralCodec(codec), run, names[:count], 0.001, "cpu")
        assert bool(trained) == (count < 4)
        assert len(run.summary.context) == 3


def test_refusals():
    with pytest.raises(ConfigError, match="of 2 recordings, one to train on and two others are needed"):
        token_model.measure([torch.zeros(1, 9, dtype=torch.int64)] * 2, [4], 1.0, "cpu")
    with pytest.raises(ConfigError, match="codebooks of up to 65537 codes"):
        token_model.measure([torch.zeros(1, 9, dtype=torch.int64)] * 3, [2**16 + 1], 1.0, "cpu")
    with pytest.raises(ConfigError, match="--token-model: expected minutes, got 0"):
        main(["mine", "wavs", "--token-model", "0"])
