"""Models that come with the package are loaded by name, wherever a path is taken."""

import pytest
import torch
import yaml
from composed import tiny_run
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tokenized import noise, small_codec

import codec
from codec import pretrained
from codec.audio.writing import write_wav
from codec.commands import compress as compressing
from codec.commands import decode as decoding
from codec.commands import encode as encoding
from codec.commands import evaluate as comparison
from codec.commands import export
from codec.commands import stream as live
from codec.training.finetuning import adopt


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A package with one model, `small`."""
    folder = tmp_path / "package"
    small_codec().save(folder / "small", torch.float16)
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_name_stands_for_a_model(box):
    model = codec.load("small")
    assert pretrained.pretrained_names() == ["small"]
    assert model.codec_id() == codec.load(box / "small").codec_id()
    weights = load_file(box / "small" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    audio = torch.from_numpy(noise(2000))[None]
    assert torch.equal(model.encode(audio), codec.load("small").encode(audio))


def test_a_path_of_that_name_comes_first(box, tmp_path):
    other = small_codec("autoencoder.decoder_channels=6")
    other.save(tmp_path / "small")
    assert codec.load("small").codec_id() == other.codec_id()


def test_a_folder_without_a_model_does_not_hide_a_name(box, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.wav").write_bytes(b"")
    assert codec.load("small").codec_id() == codec.load(box / "small").codec_id()


COMMANDS = {
    "encode": (encoding.main, "small wavs -o out --format npy"),
    "stream": (live.main, "small wavs/0.wav -o out.wav"),
    "compress": (compressing.compress_main, "small wavs/0.wav -o out.codec"),
    "evaluate": (comparison.main, "small data.root=wavs"),
    "export": (export.main, "small --to torch -o out"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_name(box, tmp_path, command):
    rate = codec.load("small").sample_rate
    (tmp_path / "wavs").mkdir()
    for number in range(2):
        write_wav(tmp_path / f"wavs/{number}.wav", noise(rate, number), rate)
    before = sorted(box.rglob("*"))
    main, arguments = COMMANDS[command]
    assert main(arguments.split()) == 0
    assert sorted(box.rglob("*")) == before  # nothing is written into the package
    if command == "encode":
        assert decoding.main(["small", "out", "-o", "decoded"]) == 0
    if command == "compress":
        assert compressing.decompress_main(["small", "out.codec", "-o", "out.wav"]) == 0


def test_a_training_starts_from_the_name(box, tmp_path):
    composed, adopted = adopt(OmegaConf.create(tiny_run(tmp_path, tmp_path, "weights=small")))
    assert adopted.codec_id() == codec.load("small").codec_id()
    assert composed.model == adopted.config


def test_an_unknown_name_is_answered_with_those_there_are(box):
    with pytest.raises(FileNotFoundError, match="pretrained models of this package: small"):
        codec.load("smal")


def test_the_models_of_this_package_are_whole_and_small():
    for name in pretrained.pretrained_names():
        folder = pretrained.FOLDER / name
        model = codec.load(name)
        assert (folder / "model.safetensors").stat().st_size <= 16 * 2**20
        saved = yaml.safe_load((folder / "config.yaml").read_text())
        assert saved["model"] == model.config
        card = (folder / "README.md").read_text()
        assert name in card and "licen" in card.lower() and "kbit/s" in card
