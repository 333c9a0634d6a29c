"""Compiled encoders: the codes of eager ones, from two graphs for all shapes."""

import json
from pathlib import Path

import pytest
import torch
from test_encoding import contents
from tokenized import NEEDS_ARROW, small_codec, write_corpus

from codec.commands.main import main
from codec.config import ConfigError
from codec.model.batching import encode_batch, exact_float32
from codec.tokens import encoding
from codec.tokens.compiled import compiled
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings

FRAMES = [[1], [2, 1], [37], [5, 9, 9, 2], [40, 40, 40], [77, 3], [64]]
compile = torch.compile


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that were compiled; without machine code, which takes minutes."""
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, backend=backend, **options))
    yield made
    torch.compiler.reset()


def batches_of(codec) -> list[list[torch.Tensor]]:
    """Signals `[C, T]` with incomplete last frames, of which several batches are ragged."""
    generator = torch.Generator().manual_seed(0)
    shapes = [[(codec.audio_channels, n * codec.hop_length - 3) for n in batch] for batch in FRAMES]
    return [[torch.rand(shape, generator=generator) * 0.6 - 0.3 for shape in batch] for batch in shapes]


@pytest.mark.parametrize(
    ("name", "channels"),
    [("vocos_small", 1), ("vocos_small", 2), ("dac_44khz", 2), ("soundstream", 1)],
)
def test_two_graphs_give_the_codes_of_all_batches(graphs, name, channels, capsys):
    codec = small_codec(f"autoencoder={name}", channels=channels)
    before = codec.codec_id()
    with exact_float32():
        expected = [encode_batch(codec, batch) for batch in batches_of(codec)]
    copy = compiled(codec)
    assert len(graphs) == 2 and "compiling the encoder for cpu" in capsys.readouterr().err
    with exact_float32():
        for batch, codes in zip(batches_of(codec), expected, strict=True):
            for one, other in zip(encode_batch(copy, batch), codes, strict=True):
                assert torch.equal(one, other)
    assert len(graphs) == 2
    assert codec.codec_id() == before
