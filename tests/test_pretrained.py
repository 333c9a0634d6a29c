"""Models that come with the package are loaded by name, wherever a path is taken."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenised import noise, small_codec

import codec
from codec import pretrained


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
