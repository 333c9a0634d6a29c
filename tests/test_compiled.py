"""Compiled encoders: the codes of eager ones, from two graphs for all shapes."""

import shutil
from dataclasses import replace

import pytest
import torch
from composed import config
from test_encoding import contents
from tokenized import small_codec, write_corpus
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import config as inductor

from codec.commands.encode import main
from codec.config import ConfigError, build
from codec.model.inference import encode_batch, exact_float32
from codec.tokens.compiled import compiled
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings
from codec.training.compilation import compile_networks

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
    [
        ("vocos_small", 1),
        pytest.param("vocos_small", 2, marks=pytest.mark.exhaustive),
        pytest.param("wavtokenizer", 1, marks=pytest.mark.exhaustive),
    ],
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
    # Strided convolutions on a CPU have further kernels for large batches.
    assert len(graphs) == 2 or (name == "wavtokenizer" and len(graphs) <= 6)
    assert codec.codec_id() == before


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_machine_code_gives_the_same_codes():
    codec = small_codec("autoencoder=vocos_small")
    torch.compiler.reset()
    copy = compiled(codec)
    with exact_float32():
        for batch in batches_of(codec):
            for one, other in zip(encode_batch(copy, batch), encode_batch(codec, batch), strict=True):
                assert torch.equal(one, other)


def test_compilation_is_no_setting_of_a_dataset(tmp_path, monkeypatch, capsys):
    codec, calls = small_codec(), []
    monkeypatch.setattr("codec.tokens.compiled.compiled", lambda codec: calls.append(codec) or codec)
    write_corpus(tmp_path / "wavs")
    settings = Settings("npy", workers=0, compile=True)
    about = encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "one", settings)
    assert about and about["devices"] == ["cpu, compiled"] and len(calls) == 1
    whole = contents(tmp_path / "one")
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "one", replace(settings, compile=False))
    assert "nothing to do" in capsys.readouterr().out and contents(tmp_path / "one") == whole
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "one", settings)
    assert len(calls) == 1  # nothing to encode, nothing to compile


def test_a_missing_compiler_is_named(monkeypatch):
    def fail(*arguments):
        raise TorchDynamoException("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda f, **options: fail)
    with pytest.raises(ConfigError, match=r"--compile: .*No working.*install a C\+\+ compiler"):
        compiled(small_codec())


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_a_compiler_that_is_not_there_is_named():
    torch.compiler.reset()
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}),
        pytest.raises(ConfigError, match=r"(?s)--compile: .*install a C\+\+ compiler"),
    ):
        compiled(small_codec())


def test_one_recording_is_not_compiled(tmp_path):
    with pytest.raises(ConfigError, match="--compile is for folders"):
        main(["speech_16khz", "-", "-o", str(tmp_path / "codes.npy"), "--compile"])


def test_a_training_compiles_both_networks_in_a_mode_of_torch(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: modes.append(options) or f)
    codec, discriminator = (
        small_codec("autoencoder=tiny"),
        build(config("discriminator=mdct_small")["discriminator"]),
    )
    compile_networks(codec, discriminator, "reduce-overhead")
    assert modes == [{"mode": "reduce-overhead"}] * (2 + len(discriminator.networks))
    modes.clear()
    compile_networks(codec, discriminator, False)
    assert not modes
    with pytest.raises(
        ValueError, match=r"compile must be true, false, default or reduce-overhead or .* got 'fast'"
    ):
        compile_networks(codec, discriminator, "fast")
