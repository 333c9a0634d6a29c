"""Mimi against `transformers`' own: size, weights both ways, streams. Random weights, no download."""

import json

import pytest
import torch
from composed import config

from codec.config import ConfigError
from codec.export import transformers_check
from codec.huggingface import convert as huggingface
from codec.model.codec import Codec
from codec.model.saving import build_codec

transformers = pytest.importorskip("transformers", reason='needs transformers: pip install -e ".[export]"')

SMALL = {
    "hidden_size": 16, "num_filters": 4, "sampling_rate": 8000, "upsampling_ratios": [3, 2],
    "codebook_size": 32, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "num_quantizers": 4,
    "upsample_groups": 16, "num_hidden_layers": 2, "intermediate_size": 24,
    "num_attention_heads": 2, "num_key_value_heads": 2,
    "sliding_window": 7, "layer_scale_initial_scale": 0.5,
}  # fmt: skip
TRANSFORMER = ["num_layers=2", "num_heads=2", "window=7", "layer_scale=0.5"]
OURS = [
    *("autoencoder=mimi", "quantizer=split_rvq", "sample_rate=8000"),
    *("autoencoder.latent_dim=16", "autoencoder.encoder_channels=4", "autoencoder.decoder_channels=4"),
    *("autoencoder.strides=[2,3]", *(f"autoencoder.latent_layers.{option}" for option in TRANSFORMER)),
    *(f"quantizer.{part}.quantizer_dim=8" for part in ("semantic", "acoustic")),
    *(f"quantizer.{part}.quantizer.codebook.codebook_size=32" for part in ("semantic", "acoustic")),
    "quantizer.acoustic.quantizer.num_quantizers=3",
]


def theirs(**options):
    torch.manual_seed(0)
    model = transformers.MimiModel(transformers.MimiConfig(**SMALL | options)).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_()
            elif name.endswith("cluster_usage"):
                buffer.uniform_(0.5, 2.0)
        for name, parameter in model.named_parameters():
            if "norm" in name or "scale" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ours(*overrides: str) -> Codec:
    torch.manual_seed(0)
    codec = build_codec(config(*OURS, *overrides)["model"]).eval()
    with torch.no_grad():
        for parameter in codec.autoencoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        latents = codec.latents(0.3 * torch.randn(8, codec.audio_channels, codec.hop_length * 300))
        codec.quantizer.initialise(latents.permute(0, 2, 1).flatten(0, 1))
    return codec


def test_the_experiment_has_the_size_of_the_paper_s_model():
    """Parameters are those of networks and projections; codebooks are buffers, here and there."""
    resolved = config("experiment=mimi_24khz", "quantizer.acoustic.quantizer.num_quantizers=31")["model"]
    with torch.device("meta"):
        codec = build_codec(resolved)
        model = transformers.MimiModel(transformers.MimiConfig())
    counts = [sum(p.numel() for p in part.parameters()) for part in (codec, model)]
    assert counts[0] == counts[1] == 79_308_609
    books = sum(b.numel() for name, b in codec.named_buffers() if "codebooks" in name)
    their_books = sum(b.numel() for name, b in model.named_buffers() if "codebook" in name)
    assert books == their_books == 32 * (2048 * 256 + 2048 + 1)
    assert (codec.hop_length, codec.frame_rate, codec.quantizer.num_quantizers) == (1920, 12.5, 32)
    assert build_codec(config("experiment=mimi_24khz")["model"]).bitrate() == 1100


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"audio_channels": 2, "num_semantic_quantizers": 2, "use_conv_shortcut": True, "last_kernel_size": 5},
        {"num_residual_layers": 2, "kernel_size": 5, "rope_parameters": {"rope_theta": 100.0}},
    ],
)
@torch.no_grad()
def test_models_of_transformers_load_here_and_go_back(options, tmp_path):
    model = theirs(**options)
    model.save_pretrained(tmp_path)
    codec = huggingface.load(tmp_path)
    audio = torch.randn(2, codec.audio_channels, codec.hop_length * 40)
    codes = model.encode(audio).audio_codes
    assert codes.unique().numel() > 8 and torch.equal(codec.encode(audio), codes)
    for depth in (model.config.num_semantic_quantizers, 4):
        expected = model.decode(codes[:, :depth]).audio_values
        assert expected.std() > 0.01
        torch.testing.assert_close(codec.decode(codes[:, :depth]), expected, rtol=0, atol=1e-4)
    again = tmp_path / "again"
    assert huggingface.save(codec, again) == "MimiModel"
    assert transformers_check.check(codec, again).agreement == 1.0
    written, given = (json.loads((path / "config.json").read_text()) for path in (again, tmp_path))
    unlike = {name for name in given.keys() & written.keys() if given[name] != written[name]}
    assert unlike <= {"rope_parameters", "kernel_size", "frame_rate"}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["channels=2", "autoencoder.layers.weight_norm=true", "autoencoder.strides=[2,2,3]"],
        ["quantizer.semantic.quantizer.codebook.codebook_size=24", "autoencoder.latent_layers.expansion=1.5"],
    ],
)
def test_ours_load_into_transformers(overrides, tmp_path):
    codec = ours(*overrides)
    assert huggingface.save(codec, tmp_path) == "MimiModel"
    found = transformers_check.check(codec, tmp_path)
    assert found.max_error < 1e-4 and found.agreement > 0.98 and found.snr > 80


@torch.no_grad()
def test_our_stream_is_their_stream(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    codec = huggingface.load(tmp_path)
    audio = torch.randn(1, 1, codec.hop_length * 30)
    keys = padding = None
    codes, heard = [], []
    stream = codec.streaming()
    for chunk in audio.split(codec.hop_length, 2):
        # By place: the names of caches differ from version to version of transformers.
        found = model.encode(chunk, None, None, keys, padding, True, return_dict=True)
        keys, padding = found[1], found[2]
        codes.append(found.audio_codes)
        assert torch.equal(stream.encode(chunk), codes[-1])
        heard.append(stream.decode(codes[-1]))
    whole = torch.cat(codes, 2)
    assert torch.equal(codec.encode(audio), whole)
    torch.testing.assert_close(torch.cat(heard, 2), model.decode(whole).audio_values, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_causal_conv": False}, "use_causal_conv false"),
        ({"pad_mode": "replicate"}, "pad_mode replicate"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"num_key_value_heads": 1}, "num_key_value_heads"),
        ({"attention_bias": True}, "attention_bias"),
        ({"upsample_groups": 1}, "upsample_groups"),
        ({"codebook_dim": 4}, "codebook_dim"),
        ({"frame_rate": 300.0}, "frame_rate 300.0, not 666.6"),
        ({"sliding_window": 0}, "sliding_window 0"),
        ({"num_attention_heads": 16, "num_key_value_heads": 16}, "1 channels per head"),
    ],
)
def test_models_that_cannot_be_represented_are_refused(options, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mimi", **SMALL, **options}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises((ConfigError, ValueError), match=message):
        given = huggingface.read_json_config(tmp_path / "config.json", huggingface.mimi_format.DEFAULTS)
        build_codec(huggingface.mimi_format.from_config(given))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("autoencoder.layers.causal=false", "latent_layers are no causal Transformer"),
        ("autoencoder.latent_stride=3", "latent_stride is not 2"),
        ("autoencoder.output_kernel_size=7", "output_kernel_size is not latent_kernel_size"),
        ("quantizer.semantic.quantizer_dim=4", "no split residual quantizer"),
    ],
)
def test_ours_of_other_shapes_are_refused(override, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        huggingface.save(build_codec(config(*OURS, override)["model"]), tmp_path)
