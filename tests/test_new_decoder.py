"""A new decoder for the codes of another codec, more codebooks, and a discriminator that goes along."""

import numpy as np
import pytest
import soxr
import torch
from composed import config, tiny_run
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from test_autoencoders import Foreign

from codec.audio.reading import read_audio, read_info
from codec.audio.synthetic import write_synthetic_folder
from codec.audio.writing import write_wav
from codec.autoencoders import SEANet
from codec.autoencoders.halves import Halves
from codec.bitstream.compress import compress, decompress
from codec.commands.decode import decode_dataset
from codec.config import ConfigError
from codec.export.graphs import inference_codec, programs
from codec.export.streaming_graphs import require_causal
from codec.huggingface import convert as huggingface
from codec.layers.base import context_of
from codec.layers.sinc import Resample
from codec.model.saving import build_codec, load
from codec.testing import check_autoencoder
from codec.tokens.dataset import TokenDataset
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings
from codec.training import run
from codec.training.build import build_parts
from codec.training.finetuning import adopt
from codec.training.resolve import resolve

RATE = 16_000
DECODER = "inherit=[encoder,quantizer]"


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavs")
    write_synthetic_folder(folder, seconds=4, sample_rate=24000)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Saved codec of 16 samples a frame at 16 kHz, with fitted codebooks."""
    codec, folder = fitted(), tmp_path_factory.mktemp("source")
    codec.save(folder)
    return codec, folder


@torch.no_grad()
def fitted(*overrides: str):
    torch.manual_seed(1)
    sizes = ["autoencoder.latent_dim=6", "autoencoder.encoder_channels=4", "autoencoder.strides=[4,4]"]
    stages = ["quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=16", f"sample_rate={RATE}"]
    plain = [] if any(option.startswith("quantizer=") for option in overrides) else stages
    codec = build_codec(config("autoencoder=tiny", "quantizer=rvq", *sizes, *plain, *overrides)["model"])
    codec.quantizer.initialise(codec.latents(torch.rand(1, 1, 16 * 800) - 0.5)[0].T.clone())
    return codec.eval()


def training(tmp_path, wavs, weights, *overrides: str):
    return OmegaConf.create(
        tiny_run(tmp_path, wavs, f"weights={weights}", "trainer.max_steps=2", *overrides)
    )


def given(monkeypatch, *options: str) -> list[str]:
    """Options, as if they were on the command line."""
    tasks = OmegaConf.create({"overrides": {"task": list(options)}})
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: tasks))
    return list(options)


def built(composed):
    composed, codec = adopt(composed)
    return build_parts(resolve(composed), codec)[1].codec.eval()


def same_state(one, other) -> bool:
    """Equality bit for bit, with names that may begin differently."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def band_limited(rate: int, samples: int, highest: float) -> np.ndarray:
    spectrum = np.fft.rfft(np.random.default_rng(0).uniform(-0.5, 0.5, samples))
    spectrum[int(highest * samples / rate) :] = 0
    return np.fft.irfft(spectrum, samples).astype(np.float32)


@pytest.mark.parametrize("rate", [48000, 24000, 44100])
@torch.no_grad()
def test_the_resampler_is_that_of_soxr(rate):
    audio = band_limited(rate, rate, 6800.0)
    layer = Resample(2, rate, RATE)
    output = layer(torch.from_numpy(audio)[None, None].expand(1, 2, -1).clone())[0].numpy()
    error = (output - soxr.resample(audio, rate, RATE, quality="VHQ"))[:, 300:-300]
    assert output.shape == (2, RATE) and error.std() < 1e-4 * output.std()  # -80 dB
    tone = torch.sin(2 * torch.pi * 9000 * torch.arange(rate) / rate)
    assert layer(tone[None, None].expand(1, 2, -1).clone())[..., 300:-300].abs().max() < 1e-3  # no alias


@pytest.mark.parametrize(
    ("strides", "rate"), [([4, 4], RATE), ([2, 3, 4], 24000), ([6, 8], 48000), ([3, 3, 7, 7], 44100)]
)
def test_two_halves_keep_the_contract_of_autoencoders(strides, rate):
    torch.manual_seed(0)
    sizes = {"encoder_channels": 2, "decoder_channels": 2}
    encoder = SEANet(2, 4, strides=[4, 4, 10] if rate == 44100 else [4, 4], **sizes)
    halves = Halves(encoder, SEANet(2, 4, strides=strides, **sizes), RATE, rate)
    check_autoencoder(halves)
    if rate > RATE:
        reach = context_of(halves.encoder[0])
        assert halves.encoder_context.after == reach.after == np.ceil(48 * rate / RATE)
    else:
        assert halves.encoder_context == encoder.encoder_context


def test_an_autoencoder_from_elsewhere_is_a_half_as_a_whole():
    torch.manual_seed(0)
    ours = SEANet(1, 16, strides=[5, 12], encoder_channels=2, decoder_channels=2)
    halves, foreign = Halves(Foreign(), ours, 16000, 24000), Foreign()
    check_autoencoder(halves)
    halves = Halves(ours, foreign, 16000, 16000 * 40 // 60) if False else Halves(foreign, foreign, 8000, 8000)
    audio = torch.randn(1, 1, 400)
    with torch.no_grad():
        assert torch.equal(halves.encode(audio), foreign.encode(audio))
        assert torch.equal(halves.decode(halves.encode(audio)), foreign.decode(foreign.encode(audio)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sample_rate=24000"], r"are 24 at 24000 Hz, but the decoder's hop is 16: .* of the product 24"),
        (["sample_rate=24100"], r"are 24\.1 at 24100 Hz, no hop: rates that fit are multiples of 1000 Hz"),
        (["sample_rate=8000"], "a decoder at 8000 Hz for an encoder at 16000 Hz: it needs at least that"),
        (["quantizer=fsq"], "brings its encoder and quantizer: leave out quantizer"),
        (["autoencoder.latent_dim=5"], "leave out autoencoder.latent_dim"),
        (["inherit=[decoder]"], "inherit=.*expected a list of encoder, quantizer"),
        (["inherit=encoder"], "inherit=encoder: expected a list of encoder, quantizer"),
        (["weights=null"], "inherit: .* give weights="),
        (["conditioning=clean"], "leave out conditioning"),
    ],
)
def test_what_fits_no_frame_is_told_with_what_fits(source, tmp_path, wavs, monkeypatch, options, message):
    options = given(monkeypatch, DECODER, "autoencoder=tiny", "autoencoder.strides=[4,4]", *options)
    with pytest.raises(ConfigError, match=message):
        built(training(tmp_path, wavs, source[1], *options))


def test_options_of_the_autoencoder_lead_to_a_new_decoder(source, tmp_path, wavs, monkeypatch):
    given(monkeypatch, "autoencoder.strides=[4,4]")
    with pytest.raises(ConfigError, match=r"leave out autoencoder.strides.*inherit=\[encoder,quantizer\]"):
        adopt(training(tmp_path, wavs, source[1]))


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory, wavs):
    """Run of a decoder at 24 kHz for the codes of `source`, and its options."""
    folder = tmp_path_factory.mktemp("trained")
    options = [DECODER, "autoencoder.strides=[2,3,4]", "sample_rate=24000", "optimizer.generator.lr=0.01"]
    assert run.train(training(folder, wavs, source[1], *options)) == 0
    return folder, options


@torch.no_grad()
def test_one_saved_model_encodes_with_the_old_half_and_decodes_with_the_new(source, trained):
    codec, model = source[0], load(trained[0] / "run")
    assert same_state(model.autoencoder.encoder, codec.autoencoder.encoder)
    assert same_state(model.quantizer, codec.quantizer)
    assert (model.sample_rate, model.hop_length, model.frame_rate) == (24000, 24, codec.frame_rate)
    assert codec.codec_id() == model.autoencoder.codes_of != model.codec_id()
    audio = torch.from_numpy(band_limited(24000, 24000, 6800.0))[None, None]
    heard = torch.from_numpy(soxr.resample(audio[0, 0].numpy(), 24000, RATE, quality="VHQ"))[None, None]
    agreement = (model.encode(audio) == codec.encode(heard))[..., 20:-20].float().mean()
    assert agreement > 0.99
    with model.streaming() as stream:
        parts = [stream.encode(piece) for piece in audio.split(777, 2)]
        codes = torch.cat([*parts, stream.encode(audio[..., :0], final=True)], 2)
    assert (codes == model.encode(audio)).float().mean() > 0.999  # ties of rounding
    with pytest.raises(ConfigError, match="the autoencoder is Halves"):
        huggingface.shape_of(model)
    with pytest.raises(ConfigError, match="not causal"):
        require_causal(model)


@torch.no_grad()
def test_the_graph_of_two_halves_is_the_model(trained):
    model = load(trained[0] / "run")
    encoder = programs(inference_codec(model))["encoder"].module()
    audio = torch.rand(2, 1, 2400) - 0.5
    assert (encoder(audio) == model.encode(audio)).float().mean() > 0.99


@torch.no_grad()
def test_tokens_and_files_of_the_old_codec_are_decoded_at_the_new_rate(source, trained, tmp_path):
    codec, model = source[0], load(trained[0] / "run")
    (tmp_path / "wavs").mkdir()
    write_wav(tmp_path / "wavs" / "a.wav", band_limited(44100, 4411, 6000.0)[None], 44100)
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "tokens", Settings("npy", workers=0))
    tokens = TokenDataset(tmp_path / "tokens")
    decode_dataset(model, tokens, tmp_path / "out")
    samples = 4411 * RATE // 44100 * 24000 // RATE
    assert read_info(tmp_path / "out" / "a.wav") == (samples, 24000, 1)
    expected = model.decode(tokens[0][None], samples)[0].clamp(-1, 1).numpy()
    assert np.abs(read_audio(tmp_path / "out" / "a.wav")[0] - expected).max() < 1e-4
    part = tokens.decode(model, 0, 10, 20)
    torch.testing.assert_close(part, model.decode(tokens[0][None])[0, :, 240:480], atol=1e-5, rtol=0)
    for name, writer in (("old", codec), ("new", model)):
        compress(writer, tmp_path / "wavs" / "a.wav", tmp_path / f"{name}.codec")
        assert decompress(model, tmp_path / f"{name}.codec", tmp_path / f"{name}.wav") == []
    assert np.abs(read_audio(tmp_path / "old.wav")[0] - expected).max() < 1e-4
    with pytest.raises(ConfigError, match="is of another codec"):
        decode_dataset(fitted("autoencoder.encoder_channels=3"), tokens, tmp_path / "refused")


def test_a_new_decoder_is_resumed_and_trained_further_for_the_same_codes(source, trained, tmp_path, wavs):
    folder, options = trained
    more = [*options, "resume=auto", "trainer.max_steps=3"]
    with pytest.raises(ConfigError, match=r"decoder.strides: \[2, 3, 4\] in the checkpoint, \[4, 6\] now"):
        run.train(training(folder, wavs, "nowhere", *more, "autoencoder.strides=[4,6]"))
    assert run.train(training(folder, wavs, "nowhere", *more)) == 0
    composed, _ = adopt(training(tmp_path, wavs, folder / "run"))
    assert set(composed.training.freeze) == {"autoencoder.encoder", "quantizer", "conditioning"}
    again = built(training(tmp_path, wavs, folder / "run"))
    assert again.codec_id() == load(folder / "run").codec_id()
    stages = "training.stages=[{name: one, steps: 2, freeze: [quantizer]}]"
    late = ["training.adversarial_from=0", "trainer.max_steps=null", "loss=mel", "discriminator=none"]
    composed, _ = adopt(training(tmp_path, wavs, source[1], *options, stages, *late))
    assert set(composed.training.stages[0].freeze) == {"autoencoder.encoder", "quantizer", "conditioning"}


KINDS = {
    "encodec": ("test_huggingface", "theirs", ["encodec"], "[4,5,6]"),
    "dac": ("test_huggingface", "theirs", ["dac"], "[4,4,12]"),
    "mimi": ("test_mimi", "theirs", [], "[2,3,6]"),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_codes_of_models_of_transformers_get_a_decoder(kind, tmp_path, wavs):
    pytest.importorskip("transformers", reason='needs transformers: pip install -e ".[export]"')
    module, name, arguments, strides = KINDS[kind]
    model = getattr(__import__(module), name)(*arguments)
    model.save_pretrained(tmp_path / kind)
    rate = model.config.sampling_rate
    audio = torch.from_numpy(band_limited(rate, rate, 0.4 * rate))[None, None]
    expected = getattr(model.encode(audio[..., : rate // 160 * 160]), "audio_codes")
    expected = expected[0] if kind == "encodec" else expected
    same, hop = huggingface.load(tmp_path / kind), {"encodec": 40, "dac": 64, "mimi": 12}[kind]
    for times, factors in ((1, {40: "[5,8]", 64: "[8,8]", 12: "[3,4]"}[hop]), (3, strides)):
        options = [DECODER, f"autoencoder.strides={factors}", f"sample_rate={times * rate}"]
        new = built(training(tmp_path, wavs, tmp_path / kind, *options))
        assert same_state(new.autoencoder.encoder, same.autoencoder.encoder)
        higher = torch.from_numpy(soxr.resample(audio[0, 0].numpy(), rate, times * rate, quality="VHQ"))
        codes = new.encode(higher[None, None, : rate // 160 * 160 * times])
        agreement = (codes[:, : expected.shape[1]] == expected).float().mean()
        assert agreement == 1.0 if times == 1 else agreement > 0.9
        assert new.decode(codes).shape[-1] == codes.shape[-1] * hop * times


def test_a_discriminator_goes_along_with_its_optimizer(tmp_path, wavs, monkeypatch):
    adversarial = ["training.adversarial_from=0", "sample_rate=16000"]
    assert run.train(training(tmp_path / "a", wavs, "null", *adversarial)) == 0
    first = torch.load(tmp_path / "a/run/checkpoints/last.ckpt", weights_only=True)
    still = ["optimizer.discriminator.lr=0.0", "optimizer.discriminator.weight_decay=0.0"]
    options = ["inherit=[encoder,quantizer,decoder,discriminator]", *adversarial, *still]
    options += ["~optimizer.discriminator", "+optimizer.discriminator=${optimizer.generator}"][:0]
    composed = training(tmp_path / "b", wavs, tmp_path / "a/run", *options[:2], "sample_rate=16000")
    composed.optimizer.discriminator = {**composed.optimizer.generator, "lr": 0.0, "weight_decay": 0.0}
    composed.trainer.max_steps = 1
    assert run.train(composed) == 0
    second = torch.load(tmp_path / "b/run/checkpoints/last.ckpt", weights_only=True)
    names = [name for name in first["state_dict"] if name.startswith("discriminator.")]
    assert names
    for name in names:
        assert torch.equal(first["state_dict"][name], second["state_dict"][name])
    states = [checkpoint["optimizer_states"][1]["state"] for checkpoint in (first, second)]
    assert [float(state[0]["step"]) for state in states] == [2, 3]
    assert second["optimizer_states"][1]["param_groups"][0]["lr"] == 0.0
