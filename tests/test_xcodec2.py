"""X-Codec 2 and NeuCodec of transformers: codes, audio, and a decoder of this package for their codes."""

import json
import shutil
import sys

import pytest
import torch
import yaml
from test_new_decoder import check_latent_dim, trained_for

from codec.audio.writing import write_wav
from codec.commands.stream import main as stream_command
from codec.config import ConfigError
from codec.export.streaming_graphs import run_steps, step_programs
from codec.huggingface import convert as huggingface
from codec.layers.sinc import Resample
from codec.layers.streaming import NotStreamable
from codec.model.saving import load
from codec.testing import check_autoencoder
from codec.tokens.dataset import TokenDataset
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings

transformers = pytest.importorskip("transformers")
pytest.importorskip("torchaudio", reason="their feature extractors need it, this package does not")
pytestmark = pytest.mark.filterwarnings("default")

SEMANTIC = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIZES = {
    **{"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "head_dim": 16, "encoder_hidden_size": 2, "quantization_dim": 80},
    "semantic_model_config": {"model_type": "wav2vec2-bert", **SEMANTIC},
}
KINDS = {"xcodec2": "Xcodec2", "neucodec": "NeuCodec"}
FRAMES = 20


def save_original(kind, folder):
    """Save a model of transformers with random weights; returns it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{KINDS[kind]}Config")(**SIZES)
    model = getattr(transformers, f"{KINDS[kind]}Model")(config).eval()
    for parameter in model.parameters():  # those of an untrained model give one code
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    with torch.no_grad():
        model.quantizer.project_in.weight.mul_(4)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=KINDS)
def original(request, tmp_path_factory):
    """Model of transformers, its feature extractor, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    extractor = getattr(transformers, f"{KINDS[request.param]}FeatureExtractor")()
    return save_original(request.param, folder), extractor, folder


@pytest.fixture
def folder(saved, tmp_path):
    """Copy of a folder of transformers, with the saved codec in `saved`."""
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    save_original("xcodec2", path)
    huggingface.load_any(path).save(path / "saved")
    return path


@pytest.fixture(scope="module")
def example(original):
    """Audio of whole frames, the codes of it by transformers, and their audio."""
    model, extractor, _ = original
    neucodec = model.config.model_type == "neucodec"
    rate, hop = (24000, 480) if neucodec else (16000, 320)
    audio = 0.3 * torch.randn(1, 1, FRAMES * hop, generator=torch.Generator().manual_seed(1))
    audio = audio * torch.linspace(0, 1, FRAMES).repeat_interleave(hop)
    # The extractors add a sample and then fill a frame; X-Codec 2 codes that frame, NeuCodec drops it.
    audio[..., -1] = 0
    signal = Resample(1, rate, 16000)(audio)[0, 0] if neucodec else audio[0, 0, :-1]
    inputs = extractor(signal.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        codes = model.encode(**inputs).audio_codes
        return audio, codes.long(), model.decode(codes).audio_values


@torch.no_grad()
def test_codes_and_audio_are_those_of_transformers(original, example, tmp_path):
    audio, codes, decoded = example
    assert len(codes.unique()) > FRAMES // 2
    huggingface.load_any(original[2]).save(tmp_path)
    for codec in (huggingface.load_any(original[2]), load(tmp_path)):
        assert torch.equal(codec.encode(audio), codes)
        torch.testing.assert_close(codec.decode(codes), decoded, atol=1e-4, rtol=0)
    assert torch.equal(codec.train().encode(audio), codes)  # no dropout in the encoder
    check_autoencoder(codec.eval().autoencoder)
    with pytest.raises(ConfigError, match="the autoencoder is Xcodec2"):
        huggingface.shape_of(codec)


def test_a_decoder_is_trained_for_their_codes(original, tmp_path):
    check_latent_dim(original[2], tmp_path)
    source, model = trained_for(original[2], tmp_path, "[6,8,10]")  # 20 ms
    assert not any("acoustic_decoder" in name for name in model.state_dict())
    audio = 0.3 * torch.randn(1, 1, FRAMES * 480, generator=torch.Generator().manual_seed(2))
    heard = Resample(1, 24000, 16000)(audio) if source.sample_rate == 16000 else audio
    with torch.no_grad():
        assert torch.equal(model.encode(audio), source.encode(heard))
    encode_corpus(model, [tmp_path / "wavs"], tmp_path / "tokens", Settings("npy", workers=0))
    tokens = TokenDataset(tmp_path / "tokens")
    with pytest.raises(FileNotFoundError, match=f"codec-export {original[2]} --to codec -o NAME"):
        load(original[2])
    check_decoding_streams(model, tmp_path / "run")
    assert tokens[0].shape[0] == 1 and model.decode(tokens[0][None]).shape[-1] == 480 * tokens[0].shape[1]


@torch.no_grad()
def check_decoding_streams(model, folder):
    """Codes are decoded by a stream and by a step graph, though the encoder needs whole signals."""
    codes = torch.randint(model.quantizer.codebook_sizes[0], (1, 1, 9))
    whole, stream = model.decode(codes), model.streaming()
    heard = torch.cat([stream.decode(part) for part in codes.split(4, 2)], 2)
    torch.testing.assert_close(heard, whole, atol=1e-5, rtol=0)
    assert stream.latency == model.hop_length
    (graph,) = step_programs(model).values()
    stepped = run_steps(graph.program.module(), graph.initial, codes, 1)
    torch.testing.assert_close(stepped, whole, atol=1e-5, rtol=0)
    message = r"encoder has no stream \(Xcodec2Encoder has no streaming form\): encode whole .*codec-encode"
    with pytest.raises(NotStreamable, match=message):
        stream.encode(torch.zeros(1, 1, 480))
    write_wav(folder / "in.wav", torch.zeros(1, 960).numpy(), model.sample_rate)
    with pytest.raises(NotStreamable, match=message):
        stream_command([str(folder), str(folder / "in.wav"), "-o", str(folder / "out.wav")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsampling_ratios": [2, 2, 4, 4, 4]}, "downsampling_ratios with a product other than 320"),
        ({"quantization_levels": [4] * 30}, "a product above 1048576"),
        ({"quantization_dim": 40}, "the sum of both hidden_size"),
        ({"semantic_model_config": {"model_type": "wavlm"}}, "'wavlm', not wav2vec2-bert"),
        ({"semantic_model_config": [1]}, "no xcodec2: "),
        ({"hidden_size": "many"}, "no xcodec2: .*'hidden_size' expected int"),
        ({"hidden_act": "os.system"}, "no xcodec2: .*os.system"),
        ({"hidden_size": 2**40, "quantization_dim": 2**40 + 16}, "more than such a model can have"),
        ({"num_hidden_layers": 2**19}, "more than .* tensors"),
        ({"encoder_hidden_size": 4}, "weights and config are of different models"),
    ],
)
def test_what_is_no_such_model_is_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    saved = yaml.safe_load((folder / "saved" / "config.yaml").read_text())
    saved["model"]["autoencoder"]["config"] |= change
    (folder / "saved" / "config.yaml").write_text(yaml.safe_dump(saved))
    for path in (folder, folder / "saved"):
        with pytest.raises(ConfigError, match=message):
            huggingface.load_any(path)


def test_a_file_names_no_code_to_download(folder):
    names = {"attn_implementation": "nobody/kernel", "auto_map": {"AutoModel": "nobody/model--code.Model"}}
    names |= {"_attn_implementation": "nobody/kernel"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | names))
    huggingface.load_any(folder).save(folder / "saved")
    saved = (folder / "saved" / "config.yaml").read_text()
    assert "nobody" not in saved
    changed = yaml.safe_load(saved)
    changed["model"]["autoencoder"]["config"] |= names
    (folder / "saved" / "config.yaml").write_text(yaml.safe_dump(changed))
    layer = load(folder / "saved").autoencoder.decoder[0].acoustic_decoder.layers[0]
    assert "nobody" not in str(layer.self_attn.config)


def test_it_is_told_that_transformers_is_needed(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for path in (saved, saved / "saved"):
        with pytest.raises(ConfigError, match="needs a recent transformers: pip install"):
            huggingface.load_any(path)
