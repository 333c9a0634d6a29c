"""VibeVoice's acoustic tokenizer of transformers: latents, audio, streams, and a decoder for its latents."""

import json
import shutil
import sys

import pytest
import soundfile
import torch
from test_new_decoder import trained_for

from codec.audio.reading import read_audio
from codec.commands.decode import decode_dataset
from codec.config import ConfigError
from codec.huggingface import convert as huggingface
from codec.model.inference import encode_batch
from codec.model.saving import load
from codec.testing import check_autoencoder
from codec.tokens.dataset import TokenDataset
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

RATIOS, HOP, FRAMES = [2, 3, 4], 24, 30
SIZES = {"num_filters": 2, "hidden_size": 6, "depths": [1, 2, 0, 2], "kernel_size": 5, "ffn_expansion": 2}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Model of transformers with random weights, and its folder."""
    torch.manual_seed(0)
    config = transformers.VibeVoiceAcousticTokenizerConfig(downsampling_ratios=RATIOS, **SIZES)
    model = transformers.VibeVoiceAcousticTokenizerModel(config).eval()
    for name, parameter in model.named_parameters():  # blocks of an untrained model add next to nothing
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.uniform_(parameter, 0.3 if "gamma" in name else -0.3, 1)
    folder = tmp_path_factory.mktemp("original")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def audio():
    return 0.3 * torch.randn(2, 1, FRAMES * HOP, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_latents_and_audio_are_those_of_transformers(original, audio, tmp_path, monkeypatch):
    model, folder = original
    latents = model.encode(audio, sample=False).latents
    decoded = model.decode(latents).audio
    assert min(latents.std(), decoded.std()) > 0.1
    monkeypatch.setitem(sys.modules, "transformers", None)  # not needed to load or to compute
    huggingface.load_any(folder).save(tmp_path)
    for codec in (huggingface.load_any(folder), load(tmp_path)):
        assert codec.sample_rate == 24000 and codec.hop_length == HOP
        torch.testing.assert_close(codec.encode(audio), latents.mT, atol=1e-4, rtol=0)
        torch.testing.assert_close(codec.decode(latents.mT), decoded, atol=1e-4, rtol=0)
    check_autoencoder(codec.autoencoder)
    signals = [audio[0], audio[1, :, :100]]
    for signal, ragged in zip(signals, encode_batch(codec, signals), strict=True):
        torch.testing.assert_close(ragged, codec.encode(signal[None])[0], atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="the autoencoder is VibeVoice"):
        huggingface.shape_of(codec)


@torch.no_grad()
def test_a_stream_is_that_of_transformers(original, audio):
    model, folder = original
    caches = {"encode": None, "decode": None}
    with huggingface.load_any(folder).streaming(batch=2) as stream:
        for chunk in audio.split(5 * HOP, dim=2):
            encoded = model.encode(chunk, padding_cache=caches["encode"], use_cache=True, sample=False)
            decoded = model.decode(encoded.latents, padding_cache=caches["decode"], use_cache=True)
            caches = {"encode": encoded.padding_cache, "decode": decoded.padding_cache}
            latents = stream.encode(chunk)
            torch.testing.assert_close(latents, encoded.latents.mT, atol=1e-4, rtol=0)
            torch.testing.assert_close(stream.decode(latents), decoded.audio, atol=1e-4, rtol=0)


def test_a_decoder_is_trained_for_its_latents(original, audio, tmp_path):
    source, model = trained_for(original[1], tmp_path, "[4,6]")
    assert all("1.mixer" not in name for name in model.autoencoder.decoder.state_dict())
    with torch.no_grad():
        assert torch.equal(model.encode(audio), source.encode(audio))
    encode_corpus(source, [tmp_path / "wavs"], tmp_path / "latents", Settings("npy", workers=0))
    latents = TokenDataset(tmp_path / "latents")
    first = latents.utterance(0).path
    with torch.no_grad():
        expected = source.encode(torch.from_numpy(read_audio(tmp_path / "wavs" / first)[0])[None])[0]
        torch.testing.assert_close(latents[0], expected, atol=1e-4, rtol=0)
        for codec in (source, model):
            whole = codec.decode(latents[0][None])[0]
            part = torch.cat(list(latents.audio(codec, 0, 100, 130)), dim=-1)
            torch.testing.assert_close(part, whole[:, 100 * HOP : 130 * HOP], atol=1e-4, rtol=0)
    heard = soundfile.read(decode_dataset(model, latents, tmp_path / "out")[0], dtype="float32")[0]
    torch.testing.assert_close(torch.from_numpy(heard), whole[0, : len(heard)].clip(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only gelu"),
        ({"depths": [1, 2, 1]}, r"one more than strides, got \[1, 2, 1\] for"),
        ({"downsampling_ratios": [2, 3, 0]}, "strides must be at least 1, got 0"),
        ({"downsampling_ratios": [2] * 3}, "weights and config are of different models"),
        ({"kernel_size": "os.system"}, "another type than this kind of model has: kernel_size"),
        ({"num_filters": 2**40}, "more than such a model can have"),
        ({"depths": [1, 2, 0, 2**18]}, "more than .* tensors"),
    ],
)
def test_what_is_no_such_model_is_refused(original, tmp_path, change, message):
    folder = shutil.copytree(original[1], tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=message):
        huggingface.load_any(folder)
