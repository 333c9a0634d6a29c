"""WavTokenizer of transformers: codes, audio, weights both ways, and a new decoder for its codes."""

import json

import pytest
import torch
from composed import config, small_autoencoder
from test_new_decoder import trained_for

from codec.config import ConfigError
from codec.export import transformers_check
from codec.huggingface import convert as huggingface
from codec.layers.reflection import reflected
from codec.layers.streaming import NotStreamable
from codec.model.codec import Codec
from codec.model.saving import build_codec, load
from codec.testing import check_autoencoder

transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "WavTokenizerModel"):
    pytest.skip("needs transformers 5.24: pip install -U transformers", allow_module_level=True)
REFLECTED = "autoencoder.encoder.layers._target_=codec.layers.ReflectedLayers"

SMALL = {
    "num_filters": 4, "upsampling_ratios": [3, 2], "hidden_size": 8, "codebook_size": 32, "codebook_dim": 8,
    "decoder_hidden_size": 16, "decoder_intermediate_size": 24, "decoder_num_layers": 2,
    "decoder_attention_num_groups": 4, "adanorm_num_embeddings": 3,
}  # fmt: skip
HOP = 6


def theirs(folder, **options):
    """Save a model of transformers with random weights, and codes that differ; returns it."""
    torch.manual_seed(0)
    model = transformers.WavTokenizerModel(transformers.WavTokenizerConfig(**SMALL | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        latents = model.encoder_model.encoder(noise(200, hop=model.hop_length))[0].T
        codebook = model.encoder_model.quantizer.codebook
        codebook.embed.copy_(latents[torch.randperm(len(latents))[: len(codebook.embed)]])
    model.save_pretrained(folder)
    return model


def noise(frames, batch=1, hop=HOP):
    return 0.3 * torch.randn(batch, 1, frames * hop, generator=torch.Generator().manual_seed(1))


def ours(*overrides: str) -> Codec:
    torch.manual_seed(0)
    sizes = ["decoder.blocks.expansion=1.5", "decoder.decoder_blocks=[2]"]
    small = [*small_autoencoder("wavtokenizer"), *(f"autoencoder.{size}" for size in sizes)]
    few = ["quantizer=vq_4096", "quantizer.codebook.codebook_size=32"]
    codec = build_codec(config("autoencoder=wavtokenizer", *small, *few, *overrides)["model"]).eval()
    with torch.no_grad():
        for parameter in codec.autoencoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        codec.quantizer.initialise(codec.latents(noise(200, hop=codec.hop_length))[0].T.contiguous())
    return codec


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pad_mode": "constant", "use_conv_shortcut": False, "kernel_size": 5, "last_kernel_size": 3},
        {"use_causal_conv": True, "num_residual_layers": 2, "num_lstm_layers": 1, "norm_eps": 1e-3},
    ],
)
@torch.no_grad()
def test_models_of_transformers_load_here_and_go_back(options, tmp_path):
    model = theirs(tmp_path / "theirs", **options)
    huggingface.load(tmp_path / "theirs").save(tmp_path / "saved")
    for codec in (huggingface.load(tmp_path / "theirs"), load(tmp_path / "saved")):
        for frames in (1, 3, 40):
            audio = noise(frames, batch=2)
            codes = model.encode(audio).audio_codes
            assert torch.equal(codec.encode(audio), codes)
            expected = model.decode(codes).audio_values
            torch.testing.assert_close(codec.decode(codes), expected, rtol=0, atol=1e-4)
        assert codes.unique().numel() > 8 and expected.std() > 0.01
    assert huggingface.save(codec, tmp_path / "again") == "WavTokenizerModel"
    assert transformers_check.check(codec, tmp_path / "again").agreement == 1.0
    written, given = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("again", "theirs"))
    unlike = {name for name in given if name not in written or given[name] != written[name]}
    assert unlike <= {"kernel_size", "adanorm_num_embeddings", "dtype", "transformers_version"}


@pytest.mark.parametrize("overrides", [[], [REFLECTED]])
def test_ours_load_into_transformers(overrides, tmp_path):
    codec = ours(*overrides)
    assert huggingface.save(codec, tmp_path) == "WavTokenizerModel"
    found = transformers_check.check(codec, tmp_path)
    assert found.max_error < 1e-4 and found.agreement > 0.98 and found.snr > 80


def test_the_experiment_has_the_size_of_their_model():
    resolved = config("experiment=wavtokenizer_24khz", "autoencoder=wavtokenizer_40hz")["model"]
    with torch.device("meta"):
        codec = build_codec(resolved)
        model = transformers.WavTokenizerModel(transformers.WavTokenizerConfig())
    # tables of norms have a row for each of four bandwidths of the training, of which one is used
    tables = [p for name, p in model.named_parameters() if ".scale." in name or ".shift." in name]
    rows = sum(p.numel() for p in model.parameters()) - sum(p.numel() * 3 // 4 for p in tables)
    assert sum(p.numel() for p in codec.parameters()) == rows
    assert huggingface.FORMATS["wavtokenizer"].to_config(codec)["decoder_hidden_size"] == 768


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("autoencoder.encoder.bottleneck=null", "bottleneck is no LSTM"),
        ("autoencoder.decoder.input_kernel_size=1", "decoder is no Vocos with input_kernel_size=7"),
        ("autoencoder.decoder.blocks.kernel_size=5", "ConvNeXt blocks of kernel 7"),
        ("autoencoder.decoder.epsilon=1e-3", "one epsilon"),
        ("quantizer.num_quantizers=2", "no single Euclidean codebook"),
        ("autoencoder.decoder_rate=48000 autoencoder.decoder.hop=640 autoencoder.decoder.windows=[2560,2560]",
         "encoder_rate is not decoder_rate"),
    ],
)  # fmt: skip
def test_ours_of_other_shapes_are_refused(override, message, tmp_path):
    overrides = [*small_autoencoder("wavtokenizer"), "quantizer=vq_4096", *override.split()]
    codec = build_codec(config("autoencoder=wavtokenizer", *overrides)["model"])
    with pytest.raises(ConfigError, match=message):
        huggingface.save(codec, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_mode": "replicate"}, "pad_mode replicate"),
        ({"norm_type": "time_group_norm"}, "norm_type time_group_norm"),
        ({"codebook_dim": 4}, "codebook_dim other than hidden_size"),
        ({"upsampling_ratios": [3, 3]}, "a hop of 9 samples, an odd number"),
        ({"num_lstm_layers": 0}, "num_lstm_layers 0"),
        ({"decoder_attention_num_groups": 5}, "num_groups|divisible"),
    ],
)
def test_models_that_cannot_be_represented_are_refused(options, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wavtokenizer", **SMALL, **options}))
    (tmp_path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    with pytest.raises(ConfigError, match=message):
        huggingface.load(tmp_path)


@torch.no_grad()
def test_the_encoder_of_zeros_streams_and_the_reflecting_one_is_refused(tmp_path):
    theirs(tmp_path)
    codec = huggingface.load(tmp_path)
    check_autoencoder(codec.autoencoder)
    with pytest.raises(NotStreamable, match="reflection"):
        codec.autoencoder.streaming_encoder()
    zeros = huggingface.load(tmp_path, zero_padding=True)
    audio = noise(40)
    codes = zeros.encode(audio)
    assert (codes == codec.encode(audio))[..., 10:-10].float().mean() > 0.9
    zeros.autoencoder.streaming_encoder()
    with pytest.raises(NotStreamable, match="PositionNet"):
        zeros.autoencoder.streaming_decoder()


def test_a_decoder_is_trained_for_their_codes(tmp_path):
    theirs(tmp_path / "theirs", upsampling_ratios=[10, 8])
    source, model = trained_for(tmp_path / "theirs", tmp_path, "[8,10]")
    assert not any("depthwise" in name for name in model.state_dict())  # of the old decoder
    with torch.no_grad():
        assert torch.equal(model.encode(noise(40, hop=80)), source.encode(noise(40, hop=80)))


def test_short_signals_are_reflected_after_zeros():
    signal = torch.tensor([[[1.0, 2.0]]])
    assert reflected(signal, 3, 1).tolist() == [[[0, 0, 2, 1, 2, 0]]]
    assert reflected(torch.arange(5.0)[None, None], 2, 2).tolist() == [[[2, 1, 0, 1, 2, 3, 4, 3, 2]]]
