"""Models of EnCodec's and DAC's shape against `transformers`' own, both ways."""

import json
import shutil

import pytest
import torch
from composed import config
from safetensors.torch import load_file, save_file

from codec.config import ConfigError
from codec.export import transformers_check
from codec.huggingface import convert as huggingface
from codec.huggingface import dac as dac_format
from codec.huggingface import encodec as encodec_format
from codec.model.codec import Codec
from codec.model.saving import build_codec

transformers = pytest.importorskip("transformers", reason='needs transformers: pip install -e ".[export]"')

NARROW = ["autoencoder.latent_dim=16", "autoencoder.encoder_channels=4", "autoencoder.decoder_channels=4"]
ENCODEC = [
    *("autoencoder=encodec", *NARROW, "sample_rate=16000"),
    *("quantizer.codebook.codebook_size=32", "quantizer.num_quantizers=4"),
]
DAC = [
    *("autoencoder=dac_44khz", "quantizer=factorized_rvq", "sample_rate=16000"),
    *("autoencoder.latent_dim=64", "autoencoder.encoder_channels=4", "autoencoder.decoder_channels=3"),
    *(
        "quantizer.num_quantizers=3",
        "quantizer.codebook.codebook_size=64",
        "quantizer.codebook.codebook_dim=4",
    ),
]
SMALL_ENCODEC = {
    "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [5, 4, 2], "codebook_size": 64,
    "target_bandwidths": [1.0, 4.0, 9.0], "sampling_rate": 8000, "num_lstm_layers": 1, "pad_mode": "constant",
}  # fmt: skip
SMALL_DAC = {
    "encoder_hidden_size": 8, "decoder_hidden_size": 64, "downsampling_ratios": [2, 4, 8], "n_codebooks": 4,
    "codebook_size": 128, "codebook_dim": 4,
}  # fmt: skip


def ours(*overrides: str) -> Codec:
    """A codec whose codebooks are started, as after a training, and whose every weight counts."""
    torch.manual_seed(0)
    codec = build_codec(config(*overrides)["model"]).eval()
    with torch.no_grad():
        for name, parameter in codec.autoencoder.named_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) if "original0" not in name else 0.0)
        latents = codec.latents(0.3 * torch.randn(8, codec.audio_channels, codec.hop_length * 300))
        codec.quantizer.initialise(latents.permute(0, 2, 1).reshape(-1, latents.shape[1]))
    return codec


def theirs(kind: str, **options):
    """A model of transformers with random weights, and codebooks of its latents' size."""
    torch.manual_seed(1)
    if kind == "dac":
        model = transformers.DacModel(transformers.DacConfig(**SMALL_DAC | options)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 3 and "alpha" not in name:
                    torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
                elif "codebook" not in name:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return model
    model = transformers.EncodecModel(transformers.EncodecConfig(**SMALL_ENCODEC | options)).eval()
    with torch.no_grad():
        scale = model.encoder(torch.randn(1, model.config.audio_channels, 4000)).std()
        for layer in model.quantizer.layers:
            layer.codebook.embed.normal_().mul_(scale)
    return model


@pytest.mark.parametrize(
    "overrides",
    [
        ENCODEC,
        [*ENCODEC, "channels=2", "autoencoder.layers.causal=false"],
        [*ENCODEC, "autoencoder.bottleneck=null", "autoencoder.strides=[3,5,2]"],
        [
            *ENCODEC,
            "quantizer.codebook.codebook_size=24",
            "autoencoder.residual_units.convolutional_skip=false",
        ],
        [*ENCODEC, "autoencoder.latent_kernel_size=3", "autoencoder.layers.weight_norm=false"],
        [*ENCODEC, "autoencoder.latent_kernel_size=9", "+quantizer.shared=true"],
        [*ENCODEC, "autoencoder.latent_kernel_size=4", "autoencoder.layers.causal=false"],
        ["autoencoder=soundstream", *NARROW, "quantizer=rvq_small", "quantizer.num_quantizers=3"],
        [
            "autoencoder=tiny",
            "quantizer=residual_simvq",
            "quantizer.num_quantizers=3",
            "quantizer.codebook.codebook_size=16",
        ],
        ["autoencoder=tiny", "quantizer=vq_cosine", "quantizer.codebook.codebook_size=16"],
        [
            "autoencoder=tiny",
            "quantizer=rvq",
            "+quantizer.codebook_sizes=[16,32,64,8]",
            "quantizer.num_quantizers=4",
        ],
    ],
)
def test_ours_of_encodec_s_shape_loads_into_transformers(overrides, tmp_path):
    codec = ours(*overrides)
    assert huggingface.save(codec, tmp_path) == "EncodecModel"
    found = transformers_check.check(codec, tmp_path)
    assert found.max_error < 1e-5 and found.agreement > 0.98
    assert found.snr > 80  # the audio was not silence


@pytest.mark.parametrize(
    "overrides",
    [
        DAC,
        [*DAC, "autoencoder.strides=[2,5,3]", "autoencoder.latent_dim=32"],
        [*DAC, "+quantizer.shared=true"],
    ],
)
def test_ours_of_dac_s_shape_loads_into_transformers(overrides, tmp_path):
    codec = ours(*overrides)
    assert huggingface.save(codec, tmp_path) == "DacModel"
    found = transformers_check.check(codec, tmp_path)
    assert found.max_error < 1e-5 and found.agreement > 0.98 and found.snr > 80


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_causal_conv": False, "audio_channels": 2},
        {"num_lstm_layers": 2, "use_conv_shortcut": False},
        {"num_residual_layers": 3, "dilation_growth_rate": 3, "residual_kernel_size": 5, "compress": 4},
        {"kernel_size": 5, "last_kernel_size": 3},
        {"kernel_size": 4, "last_kernel_size": 6, "use_causal_conv": False},
        {"upsampling_ratios": [3, 2], "target_bandwidths": [20.0]},
    ],
)
def test_encodec_models_of_transformers_load_here(options, tmp_path):
    model = theirs("encodec", **options)
    model.save_pretrained(tmp_path)
    codec = huggingface.load(tmp_path)
    assert codec.quantizer.num_quantizers == model.config.num_quantizers
    audio = torch.randn(2, codec.audio_channels, codec.hop_length * 40)
    codes = codec.encode(audio)
    with torch.no_grad():
        for depth, bandwidth in zip(codec.quantizer.depths, model.config.target_bandwidths, strict=True):
            found = model.encode(audio, bandwidth=bandwidth)
            assert torch.equal(found.audio_codes[0], codes[:, :depth])
            expected = model.decode(found.audio_codes, found.audio_scales).audio_values
            torch.testing.assert_close(codec.decode(codes[:, :depth]), expected, rtol=0, atol=1e-5)
    assert codes.unique().numel() > 8 and codec.quantizer.pool_size() == 0
    again = tmp_path / "again"
    assert huggingface.save(codec, again) == "EncodecModel"
    assert transformers_check.check(codec, again).agreement == 1.0
    written = json.loads((again / "config.json").read_text())
    for name in ("upsampling_ratios", "num_lstm_layers", "use_causal_conv", "compress", "codebook_size"):
        assert written[name] == json.loads((tmp_path / "config.json").read_text())[name]


@pytest.mark.parametrize(
    "options", [{}, {"downsampling_ratios": [3, 2, 5]}, {"encoder_hidden_size": 6, "codebook_size": 16}]
)
@pytest.mark.parametrize("weight_norm", [False, True])
def test_dac_models_of_transformers_load_here(options, weight_norm, tmp_path):
    model = theirs("dac", **options)
    if weight_norm:
        model.apply_weight_norm()
    model.save_pretrained(tmp_path)
    codec = huggingface.load(tmp_path)
    audio = torch.randn(2, 1, codec.hop_length * 60)
    codes = codec.encode(audio)
    with torch.no_grad():
        assert torch.equal(model.encode(audio).audio_codes, codes)
        expected = model.decode(audio_codes=codes).audio_values[:, None]
    unequal = dac_format.unequal_end(model.config.downsampling_ratios)
    assert (unequal > 0) == any(stride % 2 for stride in model.config.downsampling_ratios)
    length = codec.hop_length * 60 - unequal
    torch.testing.assert_close(codec.decode(codes)[..., :length], expected[..., :length], rtol=0, atol=1e-4)
    assert codes.unique().numel() > 8 and codec.quantizer.pool_size() == 0


def test_where_odd_strides_make_dac_differ_is_known_to_the_sample(tmp_path):
    model = theirs("dac", downsampling_ratios=[2, 3, 4])
    model.save_pretrained(tmp_path)
    codec = huggingface.load(tmp_path)
    codes = torch.randint(0, 128, (1, 4, 80))
    with torch.no_grad():
        expected = model.decode(audio_codes=codes).audio_values[:, None]
    difference = (codec.decode(codes)[..., : expected.shape[-1]] - expected).abs()[0, 0]
    first = int((difference > 1e-3).nonzero()[0])
    bound = 80 * codec.hop_length - dac_format.unequal_end([2, 3, 4])
    assert bound <= first < bound + codec.hop_length


def test_old_names_of_weight_norm_load(tmp_path):
    model = theirs("encodec")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in weights.items()
    }
    assert old.keys() != weights.keys()
    expected = huggingface.load(tmp_path)
    save_file(old, tmp_path / "model.safetensors")
    audio = torch.randn(1, 1, 800)
    assert torch.equal(huggingface.load(tmp_path).encode(audio), expected.encode(audio))


def test_a_reflecting_encodec_loads_only_when_asked_and_then_agrees_away_from_the_edges(tmp_path):
    model = theirs("encodec", pad_mode="reflect")
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"pad_mode reflect.*--zero-padding"):
        huggingface.load(tmp_path)
    codec = huggingface.load(tmp_path, zero_padding=True)
    audio = 0.1 * torch.randn(1, 1, codec.hop_length * 200)
    with torch.no_grad():
        expected = model.encode(audio, bandwidth=9.0).audio_codes[0]
    codes = codec.encode(audio)
    assert (codes[..., 20:] == expected[..., 20:]).float().mean() > 0.99
    assert not torch.equal(codes, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_type": "time_group_norm"}, "norm_type time_group_norm"),
        ({"normalize": True}, "normalize"),
        ({"chunk_length_s": 1.0}, "chunk_length_s"),
        ({"trim_right_ratio": 0.5}, "trim_right_ratio 0.5"),
        ({"last_kernel_size": 9}, "last_kernel_size 9 above 7"),
    ],
)
def test_what_we_have_not_is_named(options, message, tmp_path):
    theirs("encodec", **options).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        huggingface.load(tmp_path)


def test_damaged_and_foreign_directories_are_refused(tmp_path):
    good = tmp_path / "good"
    theirs("encodec").save_pretrained(good)

    def changed(name: str, content: bytes, match: str, error: type = ConfigError):
        shutil.copytree(good, tmp_path / "bad", dirs_exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(content)
        with pytest.raises(error, match=match):
            huggingface.load(tmp_path / "bad")

    given = json.loads((good / "config.json").read_text())
    weights = (good / "model.safetensors").read_bytes()
    changed("config.json", b"{", "config.json: damaged")
    changed("config.json", b"[]", "expected a mapping")
    changed(
        "config.json", json.dumps(given | {"model_type": "whisper"}).encode(), "'whisper'; encodec, dac, mimi"
    )
    changed("config.json", json.dumps(given | {"hidden_size": "16"}).encode(), "hidden_size: '16'")
    changed("config.json", json.dumps(given | {"num_filters": 0}).encode(), "num_filters 0")
    changed("config.json", json.dumps(given | {"num_filters": 2**40}).encode(), "are of different models")
    changed("config.json", json.dumps(given | {"num_filters": 8}).encode(), "are of different models")
    changed(
        "config.json", json.dumps(given | {"upsampling_ratios": [4, 2]}).encode(), "are of different models"
    )
    changed("model.safetensors", weights[:-100], "damaged")
    changed("model.safetensors", b"PK\x03\x04pickle", "damaged")
    (good / "model.safetensors").unlink()
    (good / "pytorch_model.bin").write_bytes(weights)
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing.*pickled"):
        huggingface.load(good)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["autoencoder=soundstream_16_32"], "encoder_channels is not decoder_channels"),
        (["autoencoder=encodec", "quantizer=fsq"], "no residual cascade of Euclidean codebooks"),
        (["autoencoder=tiny", "quantizer=multiscale_rvq"], "no residual cascade"),
        (["autoencoder=encodec", "autoencoder.residual_units.dilations=[1,2,3]"], "no powers of one number"),
        (
            ["autoencoder=dac_44khz", "quantizer=rvq"],
            r"encodec(.|\n)*activation is not elu(.|\n)*DAC.*factorized",
        ),
    ],
)
def test_a_codec_of_neither_shape_is_told_why(overrides, message, tmp_path):
    with torch.device("meta"):
        codec = build_codec(config(*overrides)["model"])
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        huggingface.save(codec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bandwidths_give_back_the_number_of_codebooks_in_every_version_of_the_formula():
    for rate in (12.5, 17, 25, 50, 75, 86.1, 93.75):
        for bits in (1, 3, 8, 10):
            depths = list(range(1, 81))
            rounded = -int(-rate // 1)
            found = encodec_format.bandwidths(depths, 2**bits, rounded)
            configs = [int(1000 * value // (rounded * bits)) for value in found]
            quantizers = [int(max(1, value * 1000 // (bits * rounded))) for value in found]
            assert configs == depths and quantizers == depths
            assert found == pytest.approx([depth * bits * rounded / 1000 for depth in depths], rel=1e-12)


def test_a_dead_channel_does_not_become_nan(tmp_path):
    codec = ours(*ENCODEC, "autoencoder.layers.weight_norm=false")
    with torch.no_grad():
        codec.autoencoder.encoder[0].conv.weight[1] = 0
    huggingface.save(codec, tmp_path)
    assert transformers_check.check(codec, tmp_path).agreement == 1.0
