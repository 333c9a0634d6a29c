import math

import pytest
import torch
import yaml
from composed import config

import codec
from codec.config import ConfigError
from codec.model.codec import Codec
from codec.model.saving import build_codec

# papers' own tables: SoundStream Table I, EnCodec's and DAC's releases (plain weights, in millions)
PARAMETERS = {
    "soundstream": 8.404,
    "soundstream_16_16": 2.431,
    "soundstream_16_32": 5.548,
    "soundstream_8_32": 4.785,
    "soundstream_32_16": 5.286,
    "soundstream_32_8": 4.392,
    "encodec": 14.852,
}
DAC = {"dac_44khz": (9, 76.62), "dac_24khz": (32, 74.65), "dac_16khz": (12, 74.14)}


def model(*overrides: str) -> Codec:
    torch.manual_seed(0)
    return build_codec(config(*overrides)["model"]).eval()


def small(*overrides: str) -> Codec:
    return model("autoencoder=tiny", "quantizer=rvq", "quantizer.codebook.codebook_size=64", *overrides)


@pytest.mark.parametrize(("name", "rate", "kbps"), [("", 75, 0.9), ("_40hz", 40, 0.48)])
def test_wavtokenizer_has_the_rates_of_its_paper_and_its_encoder(name, rate, kbps):
    resolved = config("experiment=wavtokenizer_24khz", f"autoencoder=wavtokenizer{name}")["model"]
    with torch.device("meta"):
        codec = build_codec(resolved)
    assert (codec.frame_rate, codec.bitrate()) == (rate, 1000 * kbps)
    assert codec.quantizer.codebook_sizes == (4096,)
    if name:  # the published encoder of 40 tokens a second has 8.30 M parameters
        assert round(sum(p.numel() for p in codec.autoencoder.encoder.parameters()) / 1e6, 2) == 8.30


@pytest.mark.parametrize(("name", "millions"), PARAMETERS.items())
def test_parameter_counts_are_those_of_the_papers(name, millions):
    autoencoder = model(f"autoencoder={name}").autoencoder
    assert sum(p.numel() for p in autoencoder.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize(("name", "books", "millions"), [(n, b, m) for n, (b, m) in DAC.items()])
def test_dac_has_its_release_s_parameters_and_rate(name, books, millions):
    dac = model(f"autoencoder={name}", "quantizer=factorized_rvq", f"quantizer.num_quantizers={books}")
    # the published count is of plain weights: weight norm's gains are folded into them
    plain = sum(p.numel() for key, p in dac.named_parameters() if "original0" not in key)
    assert plain / 1e6 == pytest.approx(millions, abs=6e-3)


@pytest.mark.parametrize(
    ("overrides", "hop", "bits"),
    [
        (["autoencoder=soundstream"], 320, 6000),
        (["autoencoder=soundstream_7ms", "quantizer.num_quantizers=4"], 160, 6000),
        (["autoencoder=soundstream_26ms", "quantizer.num_quantizers=16"], 640, 6000),
        (["quantizer.num_quantizers=16", "quantizer.codebook.codebook_size=32"], 320, 6000),
        (["quantizer.num_quantizers=80", "quantizer.codebook.codebook_size=2"], 320, 6000),
        (["autoencoder=dac_44khz", "quantizer=factorized_rvq", "sample_rate=44100"], 512, 7752),
        (["quantizer=fsq", "quantizer.codebook.levels=[8,5,5,5]"], 320, 75 * math.log2(1000)),
    ],
)
def test_bitrates_are_the_papers_arithmetic(overrides, hop, bits):
    one = model(*overrides)
    assert one.hop_length == hop
    assert one.frame_rate == pytest.approx(one.sample_rate / hop)
    assert one.bitrate() == pytest.approx(bits, rel=1e-4)


def test_a_causal_codec_never_looks_ahead():
    one = small()
    hop = one.hop_length
    audio = torch.randn(1, 1, hop * 20)
    changed = audio.clone()
    changed[..., hop * 12 :] += torch.randn(hop * 8)
    with torch.no_grad():
        before, after = one.latents(audio), one.latents(changed)
        assert torch.equal(before[..., :12], after[..., :12])
        assert not torch.equal(before[..., 12], after[..., 12])
        decoded = one.autoencoder.decode(before), one.autoencoder.decode(after)
    assert torch.equal(decoded[0][..., : 12 * hop], decoded[1][..., : 12 * hop])
    assert not torch.equal(decoded[0][..., 12 * hop : 13 * hop], decoded[1][..., 12 * hop : 13 * hop])


def test_a_centered_codec_looks_ahead_as_far_as_behind():
    one = small("autoencoder.layers.causal=false")
    audio = torch.zeros(1, 1, one.hop_length * 40)
    audio[..., one.hop_length * 20] = 1
    with torch.no_grad():
        changed = (one.latents(audio) - one.latents(torch.zeros_like(audio))).abs().sum(1)[0].nonzero()
    behind, ahead = int(changed.max()) - 20, 20 - int(changed.min())
    assert ahead >= 1 and abs(ahead - behind) <= 1


@pytest.mark.parametrize("causal", ["true", "false"])
@pytest.mark.parametrize("strides", ["[2,4,5,8]", "[3,5,7]", "[1]"])
@pytest.mark.parametrize("length", [1, 7, 319, 320, 321, 2100])
def test_any_length_comes_back_at_its_length(causal, strides, length):
    one = small(f"autoencoder.layers.causal={causal}", f"autoencoder.strides={strides}")
    audio = torch.randn(2, 1, length)
    with torch.no_grad():
        codes = one.encode(audio)
        assert codes.shape == (2, 8, math.ceil(length / one.hop_length))
        assert one.decode(codes, length).shape == audio.shape == one(audio)[0].shape
        assert one.decode(codes).shape[-1] == codes.shape[-1] * one.hop_length


def test_forward_is_decode_of_encode_at_every_depth():
    one, audio = small(), torch.randn(2, 1, 3000)
    with torch.no_grad():
        codes = one.encode(audio)
        for depth in range(1, 9):
            torch.testing.assert_close(
                one(audio, depth)[0], one.decode(codes[:, :depth], 3000), rtol=0, atol=1e-6
            )


def test_codes_of_a_batch_are_those_of_its_examples():
    one, audio = small(), torch.randn(5, 1, 4000)
    with torch.no_grad():
        alone = torch.cat([one.encode(example[None]) for example in audio])
        assert torch.equal(one.encode(audio), alone)


def test_stereo_in_stereo_out():
    one = small("channels=2")
    assert one(torch.randn(3, 2, 1000))[0].shape == (3, 2, 1000)
    with pytest.raises(ValueError, match=r"audio must be \[B >= 1, 2, T >= 1\]"):
        one(torch.randn(3, 1, 1000))


def test_the_codec_id_is_of_weights_and_config(tmp_path):
    one = small()
    one.save(tmp_path)
    assert codec.load(tmp_path).codec_id() == one.codec_id() == small().codec_id()
    assert small("quantizer.dropout=0.5").codec_id() != one.codec_id()
    with torch.no_grad():
        one.autoencoder.decoder[0].conv.bias[0] += 1e-6
    assert one.codec_id() != small().codec_id()


def test_a_saved_codec_loads_with_the_same_codes_and_audio(tmp_path):
    one, audio = small(), torch.randn(2, 1, 3333)
    one.save(tmp_path / "model")
    other = codec.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(one.encode(audio), other.encode(audio))
        assert torch.equal(one(audio)[0], other(audio)[0])
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.yaml",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "target",
    [
        *(
            "os.system",
            "codec.layers.conv.torch.hub.load",
            "codec.commands.main.train",
            "codec.data.module.AudioDataModule",
            "builtins.eval",
        ),
        *(
            "codec.model.saving.load",
            "codec.codebooks.estimators.torch.hub.load",
            "codec.codebooks.nearest.nearest",
        ),
    ],
)
def test_a_hostile_config_is_refused(tmp_path, target):
    small().save(tmp_path)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    saved["model"]["autoencoder"]["layers"] = {"_target_": target}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match="refused"):
        codec.load(tmp_path)


def test_an_estimator_is_the_only_function_that_a_saved_model_may_name(tmp_path):
    small("quantizer=rvq_rotation").save(tmp_path)
    estimator = codec.load(tmp_path).quantizer.estimator
    assert estimator.func.__name__ == "rotation_trick" and estimator.keywords == {"max_scale": 2.0}


@pytest.mark.parametrize(("part", "option"), [("autoencoder", "latent_dim"), ("quantizer", "num_quantizers")])
def test_a_config_cannot_ask_for_more_memory_than_its_weights(tmp_path, part, option):
    small().save(tmp_path)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    saved["model"][part][option] = 2000
    if option == "latent_dim":
        saved["model"]["quantizer"]["dim"] = 2000
        saved["model"]["quantizer"]["codebook"]["codebook_size"] = 10**9
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match="weights and config are of different models"):
        codec.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"model": 5, "state_dict": {}, "global_step": 1},
        {"model": {}, "state_dict": [], "global_step": 1},
        {"model": {}, "state_dict": {"x": 1}, "global_step": 1},
        {"model": {}, "state_dict": {}},
        [1, 2],
    ],
)
def test_a_foreign_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(ConfigError, match=r"foreign.ckpt: not a checkpoint of codec-train: it has no"):
        codec.load(tmp_path / "foreign.ckpt")


@pytest.mark.parametrize(
    "audio", [torch.zeros(1, 1, 100, dtype=torch.int16), [0.0] * 100, torch.zeros(0, 1, 100)]
)
def test_what_is_no_audio_is_refused(audio):
    with pytest.raises(ValueError, match="audio must be"):
        small().encode(audio)


def test_double_precision_audio_is_taken():
    one, audio = small(), torch.randn(1, 1, 1000)
    assert torch.equal(one.encode(audio.double()), one.encode(audio))


def test_a_half_precision_codec_codes_and_decodes():
    one, audio = small().bfloat16(), torch.randn(1, 1, 1000)
    with torch.no_grad():
        estimate, quantized = one(audio)
        assert estimate.dtype == torch.bfloat16 and torch.equal(one.encode(audio), quantized.codes)
        assert torch.equal(one.decode(quantized.codes, 1000), estimate)
    assert all(codebook.vectors.dtype == torch.float32 for codebook in one.quantizer.codebooks)


@pytest.mark.parametrize("length", [0, -5, 10**9])
def test_an_impossible_length_is_refused(length):
    one = small()
    codes = one.encode(torch.randn(1, 1, 1000))
    with pytest.raises(ValueError, match="length must be 1 to"):
        one.decode(codes, length)
    with pytest.raises(ValueError, match="codes must be int64"):
        one.decode(codes[..., :0])


@torch.no_grad()
def test_a_codec_without_codes_decodes_its_latents():
    one = model("autoencoder=tiny", "quantizer=none")
    audio = torch.randn(1, 1, 1000)
    assert torch.equal(one.decode(one.encode(audio), 1000), one(audio)[0])


def test_a_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"state_dict": {}, "model": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ConfigError, match=r"evil.ckpt: not a checkpoint of codec-train"):
        codec.load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


def test_damage_is_noticed(tmp_path):
    small().save(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-100], b"", whole[:1000], whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]):
        weights.write_bytes(damaged)
        with pytest.raises(ConfigError, match=str(tmp_path)):
            codec.load(tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(ConfigError, match="damaged"):
        codec.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such model"):
        codec.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quantizer.codebook.codebook_size=0", "codebook_size must be at least 2, got 0"),
        ("quantizer.num_quantizers=0", "num_quantizers must be at least 1, got 0"),
        ("autoencoder.strides=[2,0]", "strides must be at least 1, got 0"),
        ("autoencoder.layers.activation=gelu", "activation must be one of elu, leaky_relu, snake"),
        ("quantizer.dim=7", "the quantizer's dim 7 is not latent_dim 256"),
        ("quantizer.dropout=2", "dropout is a share of examples"),
        ("sample_rate=0", "sample_rate must be at least 1 Hz"),
        ("quantizer.num_quantisers=4", "did you mean num_quantizers"),
        ("quantizer.num_quantizers=4.5", "quantizer.num_quantizers: expected int, got 4.5"),
    ],
)
def test_an_impossible_option_is_named(override, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        build_codec(config("+" + override if "quantisers" in override else override)["model"])
