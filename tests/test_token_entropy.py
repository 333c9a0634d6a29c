"""The language model of tokens, against sources whose entropy is known."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import token_entropy
import torch
from tokenized import small_codec, write_corpus

from codec.config import ConfigError
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings

SIZE, FRAMES, RECORDINGS = 8, 500, 60


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    """A model of some thousand parameters."""
    monkeypatch.setattr(token_entropy, "CHANNELS", 32)
    monkeypatch.setattr(token_entropy, "LAYERS", 1)


class Source:
    """A Markov chain; a stage that is its code of the frame with probability 0.9; a uniform stage."""

    path, frame_rate, codebook_sizes = "source", 50.0, (SIZE, SIZE, SIZE)
    index = SimpleNamespace(n_frames=np.full(RECORDINGS, FRAMES))

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

    def __len__(self) -> int:
        return RECORDINGS

    def codes(self, i: int, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return torch.from_numpy(self.stored[i][:, start:stop])

    def bits(self, numbers: np.ndarray) -> list[float]:
        """Bits per frame of each stage of these recordings, by the source's own probabilities."""
        chain, copied, _ = self.stored[numbers].transpose(1, 0, 2)
        last = np.pad(chain[:, :-1], ((0, 0), (1, 0)))
        is_copy = copied == SIZE - 1 - chain
        probabilities = self.chain[last, chain], np.where(is_copy, 0.9 + 0.1 / SIZE, 0.1 / SIZE)
        return [float(-np.log2(values).mean()) for values in probabilities] + [np.log2(SIZE)]


def test_sources_of_known_entropy_are_measured_within_a_few_percent():
    source = Source()
    measured = token_entropy.divide(RECORDINGS, seed=0).measured
    options = {"minutes": 1.0, "seed": 0, "device": "cpu"}
    rows = token_entropy.measure(source, steps=150, **options)
    expected = [50 * value for value in source.bits(measured)]
    assert [row["stage"] for row in rows] == ["1", "2", "3", "total"]
    for row, rate in zip(rows, [*expected, sum(expected)], strict=True):
        assert row["model_bps"] == pytest.approx(rate, rel=0.03), row
    # The frequencies alone reveal neither the chain nor the copy.
    assert all(row["unigram_bps"] > 1.3 * row["model_bps"] for row in rows[:2])
    assert rows[2]["unigram_bps"] == pytest.approx(150, rel=0.01) and rows[3]["nominal_bps"] == 450


def test_the_command_repeats_its_table_and_an_early_end_is_measured(tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "wavs")
    encode_corpus(small_codec(), [tmp_path / "wavs"], tmp_path / "tokens", Settings("npy", workers=0))
    command = [str(tmp_path / "tokens"), "--num-quantizers", "2", "-o"]
    for name in ("a.csv", "b.csv"):
        assert token_entropy.main([*command, str(tmp_path / name), "--steps", "10"]) == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["nominal_bps"] for row in rows] == ["750.0", "750.0", "1500.0"]
    stored, calls = token_entropy.crops, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return stored(*arguments)

    monkeypatch.setattr(token_entropy, "crops", interrupted)
    assert token_entropy.main([*command, str(tmp_path / "c.csv"), "--steps", "20"]) == 0
    assert "ended early" in capsys.readouterr().err and (tmp_path / "c.csv").is_file()


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="has 2 recordings"):
        token_entropy.divide(2, 0)
    with pytest.raises(ConfigError, match="--steps at least 1"):
        token_entropy.main([str(tmp_path), "-o", str(tmp_path / "a.csv"), "--steps", "0"])
    with pytest.raises(ConfigError, match="name a file in a folder that exists"):
        token_entropy.main([str(tmp_path), "-o", str(tmp_path / "none/a.csv"), "--steps", "1"])
