"""A new decoder for the codes of another codec, more codebooks, and a discriminator that goes along."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soxr
import test_huggingface
import test_mimi
import torch
from composed import config, tiny_run, unresolved
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from test_autoencoders import Foreign

from codec.audio.reading import read_audio, read_info
from codec.audio.synthetic import write_synthetic_folder
from codec.audio.writing import write_wav
from codec.autoencoders import SEANet, Vocos
from codec.autoencoders.halves import Halves
from codec.bitstream.compress import compress, decompress
from codec.bitstream.format import BitstreamError
from codec.commands.decode import decode_dataset
from codec.commands.export import main as export_command
from codec.config import ConfigError
from codec.export.comparison import compare_steps
from codec.export.formats import Options
from codec.export.graphs import inference_codec, programs
from codec.export.model_card import streaming
from codec.export.streaming_graphs import step_names, step_programs
from codec.huggingface import convert as huggingface
from codec.layers import Layers
from codec.layers.base import context_of
from codec.layers.sinc import Resample
from codec.layers.streaming import NotStreamable
from codec.model.codec import Codec
from codec.model.saving import build_codec, load
from codec.quantizers import Identity
from codec.testing import check_autoencoder
from codec.tokens.dataset import TokenDataset
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings
from codec.training import run
from codec.training.build import build_parts
from codec.training.finetuning import adopt
from codec.training.resolve import resolve

RATE = 16_000


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
    """Codec of 16 samples a frame with started codebooks."""
    torch.manual_seed(1)
    sizes = ["autoencoder.latent_dim=6", "autoencoder.encoder_channels=4", "autoencoder.strides=[4,4]"]
    stages = ["quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=16", f"sample_rate={RATE}"]
    plain = [] if any(option.startswith("quantizer=") for option in overrides) else stages
    codec = build_codec(config("autoencoder=tiny", "quantizer=rvq", *sizes, *plain, *overrides)["model"])
    pool = codec.latents(torch.rand(1, 1, 16 * max(800, codec.quantizer.pool_size())) - 0.5)
    codec.quantizer.initialise(pool[0].T.clone())
    return codec.eval()


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory, wavs):
    """Config of a tiny run, composed once."""
    folder, steps = tmp_path_factory.mktemp("plain"), "trainer.max_steps=2"
    return tiny_run(folder, wavs, steps, "autoencoder.strides=[4,4]", "sample_rate=16000")


def varied(plain: dict, options: dict):
    """Composed config with other options."""
    composed = OmegaConf.create(plain)
    for name, value in options.items():
        OmegaConf.update(composed, name, value, merge=False)
    return composed


def trained_for(weights: Path, folder: Path, strides: str) -> tuple[Codec, Codec]:
    """A codec, and one whose decoder at 24 kHz was trained for its codes by two steps."""
    write_synthetic_folder(folder / "wavs", seconds=2, sample_rate=24000)
    overrides = [f"autoencoder.strides={strides}", "sample_rate=24000"]
    plain = tiny_run(folder, folder / "wavs", "trainer.max_steps=2", *overrides)
    options = {"weights": str(weights), "inherit": ["encoder", "quantizer"], "run_dir": str(folder / "run")}
    assert run.train(varied(plain, options)) == 0
    source, model = huggingface.load_any(weights), load(folder / "run")
    assert model.autoencoder.codes_of == source.codec_id()
    return source, model


def given(monkeypatch, *options: str) -> None:
    """Put options on the command line."""
    tasks = OmegaConf.create({"overrides": {"task": list(options)}, "mode": None})
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: tasks))


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
    assert output.shape == (2, RATE) and error.std() < 2e-4 * output.std()  # -74 dB
    tone = torch.sin(2 * torch.pi * 9000 * torch.arange(rate).double() / rate).float()
    assert layer(tone[None, None].expand(1, 2, -1).clone())[..., 300:-300].abs().max() < 1e-3  # no alias


@pytest.mark.parametrize(("strides", "rate"), [([4, 4], RATE), ([2, 3, 4], 24000), ([3, 3, 7, 7], 44100)])
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
    foreign, ours = Foreign(), SEANet(1, 16, strides=[5, 12], encoder_channels=2, decoder_channels=2)
    check_autoencoder(Halves(foreign, ours, 16000, 24000))
    halves, audio = Halves(foreign, foreign, 8000, 8000), torch.randn(1, 1, 400)
    with torch.no_grad():
        assert torch.equal(halves.decode(halves.encode(audio)), foreign.decode(foreign.encode(audio)))


PATH = "autoencoder.strides"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 24000}, r"are 24 at 24000 Hz, but the decoder's hop is 16: .* of the product 24"),
        ({"sample_rate": 24100}, r"are 24\.1 at 24100 Hz, no hop: rates that fit are multiples of 1000 Hz"),
        ({"sample_rate": 8000}, "a decoder at 8000 Hz for an encoder at 16000 Hz: it needs at least that"),
        ({"quantizer": {}}, "brings its encoder and quantizer: leave out quantizer"),
        ({"autoencoder.latent_dim": 5}, "leave out autoencoder.latent_dim"),
        ({"conditioning": {}}, "leave out conditioning"),
        ({"inherit": ["decoder"]}, "inherit=.*expected a list of encoder, quantizer"),
        ({"inherit": "encoder"}, "inherit=encoder: expected a list of encoder, quantizer"),
        ({"weights": None}, "inherit: .* give weights="),
        (
            {"inherit": ["encoder", "quantizer", "decoder"], PATH: [4]},
            r"leave out autoencoder.strides.*inherit=",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_what_fits(source, plain_run, monkeypatch, options, message):
    options = {"weights": str(source[1]), "inherit": ["encoder", "quantizer"]} | options
    given(monkeypatch, *(f"{name}={value}" for name, value in options.items()))
    with pytest.raises(ConfigError, match=message):
        built(varied(plain_run, options))


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory, plain_run):
    """Folder and options of a run that trained a decoder at 24 kHz for the codes of `source`."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"weights": str(source[1]), "run_dir": str(folder / "run"), "inherit": ["encoder", "quantizer"]}
    options |= {"autoencoder.strides": [2, 3, 4], "sample_rate": 24000, "optimizer.generator.lr": 0.01}
    assert run.train(varied(plain_run, options)) == 0
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
    with pytest.raises(
        ConfigError, match=r"not of the shape of WavTokenizer.*encoder_rate is not decoder_rate"
    ):
        huggingface.shape_of(model)


@torch.no_grad()
def test_a_causal_decoder_has_a_step_graph_at_a_higher_rate_than_its_encoder(trained):
    model = load(trained[0] / "run")
    (graph,) = step_programs(model).values()
    step = {"decoder_step": graph.program.module()}
    compare_steps(model, step, {"decoder_step": graph.initial}, 1).require("it")
    assert "There is no `encoder_step`" in streaming(model, Options(streaming=True))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # of torch about its own format
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_a_step_graph_of_a_decoder_alone_is_exported(trained, tmp_path, form):
    assert export_command([f"{trained[0]}/run", "--to", form, "--streaming", "-o", f"{tmp_path}/out"]) == 0
    assert {path.stem for path in tmp_path.glob("out/*_step.*")} == {"decoder_step"}
    assert "There is no `encoder_step`" in (tmp_path / "out/README.md").read_text()


def test_a_network_without_step_graphs_is_told_what_helps():
    sizes = {"encoder_channels": 2, "decoder_channels": 2}
    halves = {
        (causal, hop): SEANet(1, 4, strides=[hop], layers=Layers(causal=causal), **sizes)
        for causal in (True, False)
        for hop in (4, 6)
    }
    vocos = partial(Vocos, 1, 4, hop=4, windows=(8, 8), channels=(4, 4), causal=True)

    def names(autoencoder, rate: int) -> list[str]:
        return step_names(Codec(autoencoder, Identity(autoencoder.latent_dim), rate))

    causal, centered, both = halves[True, 4], halves[False, 4], ["encoder_step", "decoder_step"]
    assert names(Halves(causal, causal, 16000, 16000), 16000) == names(vocos(), 16000) == both
    for encoder, decoder, rate in (
        (causal, halves[True, 6], 24000),
        (centered, causal, 16000),
        (Foreign(), SEANet(1, 16, strides=[5, 8], layers=Layers(causal=True), **sizes), 16000),
    ):
        assert names(Halves(encoder, decoder, 16000, rate), rate) == ["decoder_step"]
    for autoencoder, message in (
        (Halves(causal, centered, 16000, 16000), r"looks ahead.*layers\.causal=true"),
        (centered, r"looks ahead.*layers\.causal=true"),
        (vocos(lookahead=1), "lookahead=0"),
        (Foreign(), r"has no streaming form\)\. Train one for the same codes"),
    ):
        with pytest.raises(NotStreamable, match=rf"decoder is not causal: .*{message}"):
            names(autoencoder, 16000)


@pytest.mark.exhaustive
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
    with pytest.raises(BitstreamError, match=r"take the model that wrote it.* not the reverse"):
        decompress(codec, tmp_path / "new.codec", tmp_path / "refused.wav")
    with pytest.raises(ConfigError, match="is of another codec"):
        decode_dataset(fitted("autoencoder.encoder_channels=3"), tokens, tmp_path / "refused")


def test_a_new_decoder_is_resumed_and_trained_further_for_the_same_codes(trained, plain_run, tmp_path):
    folder, options = trained
    more = options | {"weights": "nowhere", "resume": "auto", "trainer.max_steps": 3}
    with pytest.raises(ConfigError, match=r"decoder.strides \[2, 3, 4\] → \[4, 6\]"):
        run.train(varied(plain_run, more | {"autoencoder.strides": [4, 6]}))
    assert run.train(varied(plain_run, more)) == 0
    whole = options | {"run_dir": str(tmp_path / "whole"), "trainer.max_steps": 3}
    assert run.train(varied(plain_run, whole)) == 0
    assert same_state(load(tmp_path / "whole"), load(folder / "run"))
    fixed = {"autoencoder.encoder", "quantizer", "conditioning"}
    further = {"weights": str(folder / "run"), "run_dir": str(tmp_path / "run")}
    composed, codec = adopt(varied(plain_run, further))
    assert set(composed.training.freeze) == fixed
    again = build_parts(resolve(composed), codec)[1].codec
    assert again.codec_id() == load(folder / "run").codec_id()
    stages = {"training.stages": [{"name": "one", "steps": 2, "freeze": ["quantizer"]}]}
    composed, _ = adopt(varied(plain_run, further | stages))
    assert set(composed.training.stages[0].freeze) == fixed and not composed.training.freeze


def test_a_decoder_for_a_codec_with_conditions_needs_no_noise(plain_run, tmp_path):
    codec = fitted("conditioning=clean")
    codec.save(tmp_path / "source")
    options = {"weights": f"{tmp_path}/source", "run_dir": f"{tmp_path}/run"}
    options |= {"inherit": ["encoder", "quantizer"], "autoencoder.strides": [4, 4]}
    assert run.train(varied(plain_run, options)) == 0
    model = load(tmp_path / "run")
    assert model.conditioning.names and same_state(model.conditioning, codec.conditioning)


def test_conditions_and_a_teacher_fit_the_latents_of_weights_that_do_not_name_their_size(trained, tmp_path):
    check_latent_dim(trained[0] / "run", tmp_path)


def check_latent_dim(weights: Path, folder: Path) -> None:
    dim = huggingface.load_any(weights).autoencoder.latent_dim
    options = ["conditioning=clean", "teacher=features", "teacher.path=nowhere", f"run_dir={folder}/other"]
    resolved = resolve(adopt(unresolved(f"weights={weights}", *options))[0])
    assert "latent_dim" not in resolved["model"]["autoencoder"]
    sizes = resolved["model"]["conditioning"], resolved["loss"]["reconstruction"]["distillation"]
    assert [part["dim"] for part in sizes] == [dim, dim]


# Module and function of a tiny model, samples a frame, strides of decoders at its rate and three times that.
KINDS = {
    "encodec": (test_huggingface.theirs, ["encodec"], 40, [5, 8], [5, 4, 6]),
    "dac": (test_huggingface.theirs, ["dac"], 64, [8, 8], [4, 4, 12]),
    "mimi": (test_mimi.theirs, [], 12, [3, 4], [3, 12]),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_codes_of_models_of_transformers_get_a_decoder(kind, tmp_path, plain_run):
    make, arguments, hop, *strides = KINDS[kind]
    model = make(*arguments)
    model.save_pretrained(tmp_path / kind)
    rate = model.config.sampling_rate
    audio = torch.from_numpy(band_limited(rate, 80 * hop, 0.4 * rate))[None, None]
    expected = model.encode(audio).audio_codes.view(1, -1, 80)
    for times, factors in zip((1, 3), strides, strict=True):
        options = {"weights": str(tmp_path / kind), "inherit": ["encoder", "quantizer"]}
        options |= {"autoencoder.strides": factors, "sample_rate": times * rate}
        codec = built(varied(plain_run, options))
        heard = soxr.resample(audio[0, 0].numpy(), rate, times * rate, quality="VHQ")
        codes = codec.encode(torch.from_numpy(heard)[None, None])[:, : expected.shape[1]]
        agreement = (codes == expected)[..., 20:-20].float().mean()
        assert agreement == 1.0 if times == 1 else agreement > 0.95
        assert codec.decode(codes).shape[-1] == 80 * hop * times


def test_a_discriminator_goes_along_with_its_optimizer(plain_run, tmp_path):
    adversarial = {"training.adversarial_from": 0}
    assert run.train(varied(plain_run, adversarial | {"run_dir": f"{tmp_path}/a"})) == 0
    first = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)
    composed = varied(plain_run, adversarial | {"weights": f"{tmp_path}/a", "run_dir": f"{tmp_path}/b"})
    composed.inherit = ["encoder", "quantizer", "decoder", "discriminator"]
    still = {"lr": 0.0, "weight_decay": 0.0}
    composed.optimizer.discriminator = {**composed.optimizer.generator, **still}
    composed.trainer.max_steps = 1
    assert run.train(composed) == 0
    second = torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)
    names = [name for name in first["state_dict"] if name.startswith("discriminator.")]
    assert names and all(torch.equal(first["state_dict"][n], second["state_dict"][n]) for n in names)
    old, new = (checkpoint["optimizer_states"][1] for checkpoint in (first, second))
    assert (float(old["state"][0]["step"]), float(new["state"][0]["step"])) == (2, 3)
    assert new["param_groups"][0]["lr"] == 0.0  # options are those of the new run
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    for name, value, message in (
        ("weights", f"{tmp_path}/a/model", r"no discriminator, no .*last\.ckpt"),
        ("discriminator.channels", 3, "is another"),
        ("optimizer.discriminator", sgd, "another optimizer"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.train(varied(composed, {"run_dir": f"{tmp_path}/c", name: value}))


def larger(composed, monkeypatch, **options):
    """Codec with options of its quantizer's stages."""
    given(monkeypatch, *(f"+quantizer.{name.replace('__', '.')}={value}" for name, value in options.items()))
    for name, value in options.items():
        OmegaConf.update(composed, f"quantizer.{name.replace('__', '.')}", value, force_add=True)
    return adopt(composed)


@torch.no_grad()
def test_codebooks_are_added_behind_those_that_are_there(source, plain_run, tmp_path, monkeypatch, capsys):
    codec, folder = source
    composed = OmegaConf.create(plain_run | {"weights": str(folder), "run_dir": str(tmp_path / "run")})
    composed.trainer.max_steps = 2
    frozen = ["autoencoder.encoder", "conditioning", *(f"quantizer.codebooks.{stage}" for stage in range(3))]
    adopted, begun = larger(composed, monkeypatch, num_quantizers=5)
    assert adopted.training.freeze == frozen
    assert "the first codes stay as they are; training.freeze=[] trains all" in capsys.readouterr().out
    module = build_parts(resolve(adopted), begun)[1]
    assert module.codec.quantizer.pool_size() > 0  # k-means starts the new stages
    audio = torch.rand(1, 1, 8000) - 0.5
    with torch.enable_grad():
        assert run.train(composed) == 0
        composed.trainer.max_steps, composed.resume, composed.weights = 3, "auto", "nowhere"
        assert run.train(composed) == 0  # the frozen parts are in the config of the run
    model = load(tmp_path / "run")
    assert torch.equal(model.encode(audio)[:, :3], codec.encode(audio))
    assert same_state(model.autoencoder.encoder, codec.autoencoder.encoder)
    latents = model.latents(audio)
    errors = [
        (model.quantizer.decode(model.quantizer.encode(latents, depth)) - latents).square().mean()
        for depth in (3, 4, 5)
    ]
    assert errors[2] < errors[1] < errors[0]
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for stage in range(3):
        for name in ("vectors", "usage"):
            name = f"quantizer.codebooks.{stage}.{name}"
            assert torch.equal(state[f"codec.{name}"], codec.state_dict()[name])


def test_codebooks_that_would_change_the_first_codes_are_refused(source, plain_run, tmp_path, monkeypatch):
    composed = OmegaConf.create(plain_run | {"weights": str(source[1])})
    for options, message in (
        ({"num_quantizers": 2}, "2 stages are fewer than the 3 of weights"),
        (
            {"num_quantizers": 4, "codebook_sizes": [16, 16, 8, 8]},
            "first stages differ from those of weights",
        ),
        (
            {"acoustic__quantizer__num_quantizers": 4},
            r"has no quantizer.acoustic.*\+quantizer.num_quantizers",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            adopted, codec = larger(composed.copy(), monkeypatch, **options)
            build_parts(resolve(adopted), codec)
    sizes = [f"quantizer.{part}.quantizer.codebook.codebook_size=16" for part in ("semantic", "acoustic")]
    split = fitted("quantizer=split_rvq", "quantizer.acoustic.quantizer.num_quantizers=2", *sizes)
    split.save(tmp_path)
    composed.weights = str(tmp_path)
    adopted, codec = larger(composed.copy(), monkeypatch, acoustic__quantizer__num_quantizers=3)
    split = build_parts(resolve(adopted), codec)[1].codec.quantizer
    assert split.num_quantizers == 4 and not any(p.requires_grad for p in split.semantic.parameters())
    branch = "quantizer.acoustic.quantizer.codebooks"
    assert {f"{branch}.0", f"{branch}.1"} < set(adopted.training.freeze)
    assert f"{branch}.2" not in adopted.training.freeze
    given(monkeypatch, "+quantizer.acoustic.quantizer.num_quantizers=3", "training.freeze=[]")
    assert not adopt(composed)[0].training.freeze
    with pytest.raises(ConfigError, match="first stages differ from those of weights"):
        adopted, codec = larger(composed.copy(), monkeypatch, semantic__quantizer__num_quantizers=2)
        build_parts(resolve(adopted), codec)
