"""X-Codec and Higgs Audio v2's tokenizer of transformers: codes, audio, and a decoder for their codes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_new_decoder import trained_for

from codec.config import ConfigError
from codec.huggingface import convert as huggingface
from codec.layers.streaming import NotStreamable
from codec.model.saving import load
from codec.testing import check_autoencoder

transformers = pytest.importorskip("transformers")
pytest.importorskip("torchaudio", reason="Higgs Audio v2 in transformers needs it, this package does not")
pytestmark = pytest.mark.filterwarnings("default")

SPEECH = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
ACOUSTIC = {"model_type": "dac", "encoder_hidden_size": 4, "decoder_hidden_size": 32, "hidden_size": 8}
LONG = {"downsampling_ratios": [8, 5, 4, 2, 3], "upsampling_ratios": [8, 5, 4, 2, 3]}  # of 40 ms at 24 kHz
HIGGS = {"acoustic_model_config": ACOUSTIC | LONG, "codebook_dim": 4, "target_bandwidths": [0.25, 0.75]}
KINDS = {
    "X-Codec": ("Xcodec", {"semantic_model_config": {"model_type": "hubert", **SPEECH}}),
    "X-Codec with WavLM": ("Xcodec", {"semantic_model_config": {"model_type": "wavlm", **SPEECH}}),
    "Higgs": ("HiggsAudioV2Tokenizer", {"semantic_model_config": {"model_type": "hubert", **SPEECH}} | HIGGS),
}
FRAMES = 12


@torch.no_grad()
def save_original(kind, folder):
    """Save a model of transformers with random weights; returns it."""
    torch.manual_seed(0)
    name, sizes = KINDS[kind]
    options = {"acoustic_model_config": ACOUSTIC, "target_bandwidths": [0.25, 1.0], "codebook_size": 32}
    config = getattr(transformers, f"{name}Config")(**(options | sizes))
    model = getattr(transformers, f"{name}Model")(config).eval()
    for part, parameter in model.named_parameters():  # those of an untrained model give one code
        if parameter.ndim > 1 and "alpha" not in part and "original0" not in part:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.fc.weight.mul_(0.05)
    for stage in model.quantizer.quantizers:
        stage.codebook.embed.normal_()
    model.save_pretrained(folder)
    return model


@pytest.fixture(
    scope="module",
    params=["X-Codec", pytest.param("X-Codec with WavLM", marks=pytest.mark.exhaustive), "Higgs"],
)
def original(request, tmp_path_factory):
    """Model of transformers, and its folder."""
    folder = tmp_path_factory.mktemp("original")
    return save_original(request.param, folder), folder


@pytest.fixture(scope="module")
def higgs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("higgs")
    return save_original("Higgs", folder), folder


@pytest.fixture
def folder(higgs, tmp_path):
    return shutil.copytree(higgs[1], tmp_path / "copy")


@torch.no_grad()
def coded(model):
    """Two signals of whole frames and different loudness, and their codes by transformers."""
    audio = torch.randn(2, 1, FRAMES * model.config.hop_length, generator=torch.Generator().manual_seed(1))
    audio = audio * torch.tensor([0.3, 0.03])[:, None, None]
    return audio, model.encode(audio).audio_codes


@torch.no_grad()
def test_codes_and_audio_are_those_of_transformers(original, tmp_path):
    model, folder = original
    audio, codes = coded(model)
    assert len(codes.unique()) > FRAMES
    huggingface.load_any(folder).save(tmp_path)
    for codec in (huggingface.load_any(folder), load(tmp_path)):
        assert torch.equal(codec.encode(audio), codes)
        torch.testing.assert_close(codec.decode(codes), model.decode(codes).audio_values, atol=1e-4, rtol=0)
    assert torch.equal(torch.cat([codec.encode(one[None]) for one in audio]), codes)
    few = model.encode(audio, bandwidth=0.25).audio_codes
    assert torch.equal(codec.encode(audio, few.shape[1]), few)
    assert torch.equal(codec.train().encode(audio), codes)  # neither dropout nor masks in the encoder
    check_autoencoder(codec.eval().autoencoder)
    with pytest.raises(NotStreamable, match="XcodecEncoder has no streaming form"):
        codec.streaming()
    with pytest.raises(ConfigError, match="the autoencoder is Xcodec"):
        huggingface.shape_of(codec)


def test_old_names_of_normalized_weights_are_read(higgs, folder):
    weights = load_file(folder / "model.safetensors")
    old = {
        ".parametrizations.weight.original0": ".weight_g",
        ".parametrizations.weight.original1": ".weight_v",
    }
    renamed = weights
    for new, name in old.items():
        renamed = {key.replace(new, name): value for key, value in renamed.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors")
    audio, codes = coded(higgs[0])
    with torch.no_grad():
        assert torch.equal(huggingface.load_any(folder).encode(audio), codes)


def test_a_decoder_is_trained_for_their_codes(higgs, tmp_path):
    source, model = trained_for(higgs[1], tmp_path, "[8,10,12]")  # 40 ms
    audio = 0.3 * torch.randn(1, 1, FRAMES * 960, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(model.encode(audio), source.encode(audio))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"acoustic_model_config": {"downsampling_ratios": [8, 8, 5]}}, "a frame of features every"),
        ({"strides": [1, 2]}, "strides other than 1 behind the speech model"),
        ({"acoustic_model_config": {"upsampling_ratios": [8, 5]}}, "upsampling_ratios of the product 40"),
        ({"semantic_model_config": {"conv_kernel": [10, 3, 3, 3, 3, 2, 300]}}, "zeros beside them"),
        ({"semantic_model_config": {"model_type": "whisper"}}, "'whisper', not hubert or wavlm"),
        ({"acoustic_model_config": {"model_type": "encodec"}}, "'encodec', not dac"),
        ({"codebook_size": 2**40}, "more than such a model can have"),
        ({"kernel_size": "os.system"}, "'kernel_size' expected int"),
        ({"codebook_size": 64}, "weights and config are of different models"),
    ],
)
def test_what_is_no_such_model_is_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    merged = {k: config[k] | v if isinstance(v, dict) else v for k, v in change.items()}
    (folder / "config.json").write_text(json.dumps(config | merged))
    with pytest.raises(ConfigError, match=message):
        huggingface.load_any(folder)
