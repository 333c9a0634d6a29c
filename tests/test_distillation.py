"""Semantic distillation: features of transformers, in time, learned, and left out of checkpoints."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from codebook_purity import count, purity, read_labels, shuffled
from codebook_purity import main as measure
from composed import config, small_autoencoder, small_quantizer
from omegaconf import OmegaConf
from test_training import assert_same, last
from tokenized import small_codec
from torch import Tensor
from torch.nn import functional

from codec import load
from codec.audio.writing import write_wav
from codec.commands.features import main as features_command
from codec.config import ConfigError, build
from codec.data.augmentation import Augmentation, Mix
from codec.data.crops import Batch
from codec.data.degradation import Degradation, Noise
from codec.data.module import AudioDataModule
from codec.huggingface.speech import SpeechModel, SpeechTeacher
from codec.losses.base import Forward
from codec.losses.distillation import Distillation, pooled
from codec.quantizers.base import Quantized
from codec.tokens.dataset import TokenDataset
from codec.tokens.encoding import encode_corpus
from codec.tokens.features import Features
from codec.tokens.sources import Settings
from codec.training.build import build_parts
from codec.training.resolve import check_plain_options
from codec.training.run import train

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

RATE = 16_000
TONES = 250, 900, 1750, 2600  # Hz, whole periods in a frame of the teacher
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
POSITIONS = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
CONVOLUTIONS = {"conv_dim": (16,) * 7, "feat_extract_norm": "layer", **POSITIONS}
KINDS = {
    "wavlm": ("WavLM", CONVOLUTIONS, {"do_normalize": True}),
    "hubert": ("Hubert", CONVOLUTIONS | {"do_stable_layer_norm": True}, {"do_normalize": False}),
    "bert": ("Wav2Vec2Bert", {}, None),
}


def save_teacher(folder: Path, kind: str) -> Path:
    """Save a randomly initialized speech model of one layer, and its feature extractor."""
    name, options, extractor = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**SMALL, **options))
    model.save_pretrained(folder)
    maker = transformers.Wav2Vec2FeatureExtractor if extractor else transformers.SeamlessM4TFeatureExtractor
    maker(**(extractor or {})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("teachers")
    for kind in KINDS:
        save_teacher(root / kind, kind)
    return root


def tones(count: int, seed: int) -> Tensor:
    """Recordings `[count, 1, 4800]` of three tones each, at random levels."""
    random, seconds = np.random.default_rng(seed), np.arange(1600) / RATE
    parts = [
        10 ** random.uniform(-1.5, -0.4) * np.sin(2 * np.pi * random.choice(TONES) * seconds)
        for _ in range(3 * count)
    ]
    return torch.from_numpy(np.stack(parts).astype(np.float32).reshape(count, 1, -1))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Recordings of 0.3 s; crops of that length begin where they do."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, audio in enumerate(tones(40, seed=0)):
        path = folder / f"part {number % 2}" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        write_wav(path, audio.numpy(), RATE)
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory, teachers, recordings) -> Path:
    """Features in float32 of the recordings, by the command."""
    folder = tmp_path_factory.mktemp("features") / "wavlm"
    options = ["--format", "npy", "--dtype", "float32", "--workers", "0"]
    assert features_command([str(teachers / "wavlm"), str(recordings), "-o", str(folder), *options]) == 0
    return folder


def audio_of(samples: int, batch: int = 2) -> Tensor:
    return 0.1 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers_for_audio_with_half_a_window_at_each_end(teachers, kind):
    audio = audio_of(3200)
    model = getattr(transformers, f"{KINDS[kind][0]}Model").from_pretrained(teachers / kind).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(teachers / kind)
    # A window of 25 ms (two of w2v-BERT's frames: 35 ms) every 20 ms, and its center in the middle of these.
    sides = {"bert": 120}.get(kind, 40)
    if kind == "bert":
        padded = [functional.pad(one[0], (sides, sides)).numpy() for one in audio]
        inputs = dict(extractor(padded, sampling_rate=RATE, return_tensors="pt"))
    else:
        plain = extractor([one[0].numpy() for one in audio], sampling_rate=RATE, return_tensors="pt")
        inputs = {"input_values": functional.pad(plain["input_values"], (sides, sides))}
    states = model(**inputs, output_hidden_states=True).hidden_states
    for layer, expected in ((1, states[1]), ("average", (states[0] + states[1]) / 2)):
        found = SpeechModel(teachers / kind, layer)(audio)
        assert found.shape == (2, 16, 10)
        torch.testing.assert_close(found.mT, expected, atol=2e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["wavlm", "bert"])
def test_blocks_of_a_long_signal_that_see_all_of_it_change_nothing(teachers, kind, monkeypatch):
    model, audio = SpeechModel(teachers / kind), audio_of(320 * 23)
    whole = model(audio)
    monkeypatch.setattr(model.inputs, "block", 7)
    monkeypatch.setattr(model.inputs, "context", 23)
    torch.testing.assert_close(model(audio), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_of_whisper_are_those_of_transformers_in_windows_filled_with_zeros(tmp_path):
    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 60}
    special = {name: 1 for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")}
    config = transformers.WhisperConfig(**sizes, **decoder, **special, max_source_positions=50)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
    extractor.save_pretrained(tmp_path)
    encoder = transformers.WhisperModel.from_pretrained(tmp_path).eval().encoder
    audio = audio_of(RATE + 320 * 7)
    for layer in (1, "average"):
        found = SpeechModel(tmp_path, layer)(audio)
        assert found.shape == (2, 16, 57)
        for start, frames in ((0, 50), (50, 7)):
            window = [one[0, start * 320 :][:RATE].numpy() for one in audio]
            inputs = extractor(window, sampling_rate=RATE, return_tensors="pt").input_features
            states = encoder(inputs, output_hidden_states=True).hidden_states
            expected = states[1] if layer == 1 else (states[0] + states[1]) / 2
            torch.testing.assert_close(
                found.mT[:, start:][:, :frames], expected[:, :frames], atol=1e-4, rtol=0
            )


@pytest.mark.parametrize(
    ("length", "step", "width"), [(40, 4, 4), (40, 4, 8), (12, 0.4, 0.4), (33, 1.7, 2.5), (9, 0.5, 1.0)]
)
def test_a_frame_is_compared_with_the_mean_of_the_features_in_its_window(length, step, width):
    features = torch.randn(1, 3, length, dtype=torch.float64)
    frames = int(length / step)
    found = pooled(features.float(), frames, step, width)
    fine = 10_000  # samples of the piecewise constant features, for one feature
    signal = features.repeat_interleave(fine, 2)
    for frame in range(frames):
        begin, end = ((frame + 0.5) * step + sign * width / 2 for sign in (-1, 1))
        window = signal[..., max(0, round(begin * fine)) : min(round(end * fine), length * fine)]
        torch.testing.assert_close(found[..., frame].double(), window.mean(2), atol=2e-3, rtol=0)
    if (step, width) == (4, 8):  # Mimi's: kernel 8, stride 4
        expected = functional.avg_pool1d(features, 8, 4, padding=2, count_include_pad=False)
        torch.testing.assert_close(found.double(), expected[..., :frames], atol=1e-5, rtol=0)


class Given:
    """Teacher of given features, 50 per second."""

    dim, frame_rate = 3, 50.0

    def __call__(self, outputs: Forward) -> Tensor:
        assert outputs.features is not None
        return outputs.features


def outputs_of(latents: Tensor, quantized: Quantized, features: Tensor) -> Forward:
    audio = torch.zeros(len(latents), 1, latents.shape[2] * 320)
    return Forward(audio, audio, audio, latents, quantized, features=features, hop_length=320)


@pytest.mark.parametrize("form", ["cosine", "cosine_over_time", "l2"])
def test_the_forms_are_the_formulas(form):
    torch.manual_seed(0)
    latents, features = torch.randn(2, 4, 6), torch.randn(2, 3, 6)
    loss = Distillation(Given(), 4, RATE, "latents", form)
    found = loss(outputs_of(latents, Quantized(latents, latents, {}, latents), features))
    student = torch.einsum("dk,bkf->bdf", loss.projection.weight, latents) + loss.projection.bias[:, None]
    total = 0.0
    for one, other in zip(student.detach().numpy(), features.numpy(), strict=True):
        axis = 1 if form == "cosine_over_time" else 0
        norms = np.linalg.norm(one, axis=axis) * np.linalg.norm(other, axis=axis)
        cosines = (one * other).sum(axis) / norms
        total += {
            "cosine": 1 - np.mean(cosines),
            "cosine_over_time": np.mean(-np.log(1 / (1 + np.exp(-cosines)))),
            "l2": np.mean((one - other) ** 2),
        }[form]
    assert found.item() == pytest.approx(total / 2, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["rvq", "rvq_rotation", "factorized_rvq", "multiscale_rvq", "split_rvq", "vq", "simvq", "fsq"]
)
def test_the_first_codebook_alone_is_what_is_compared(name):
    torch.manual_seed(0)
    quantizer, latents = small_quantizer(name, 16), torch.randn(2, 16, 8 * 4)
    quantizer.initialise(torch.randn(max(quantizer.pool_size(), 1), 16))
    latents.requires_grad_()
    quantized = quantizer(latents)
    first = quantizer.semantic.num_quantizers if name == "split_rvq" else 1
    if name == "multiscale_rvq":
        first = quantizer.per_frame[0]
    compared = (*quantized.branches, quantized)[0].latents
    with torch.no_grad():
        expected = quantizer.decode(quantized.codes[:, :first])
    torch.testing.assert_close(compared, expected, atol=1e-5, rtol=1e-5)
    loss = Distillation(Given(), 16, RATE)
    loss(outputs_of(latents, quantized, torch.randn(2, 3, 32))).backward()
    assert latents.grad is not None and latents.grad.abs().amax(1).min() > 0


def test_a_wrapped_quantizer_has_its_first_codebook_in_the_latents_of_the_codec():
    torch.manual_seed(0)
    inner = config("quantizer=rvq")["quantizer"] | {"_partial_": True, "num_quantizers": 3}
    inner.pop("dim")
    node = {"_target_": "codec.quantizers.Projected", "dim": 6, "quantizer": inner, "quantizer_dim": 4}
    quantizer = build(node)
    quantized = quantizer(torch.randn(1, 6, 5))
    torch.testing.assert_close(quantized.branches[0].latents, quantizer.decode(quantized.codes[:, :1]))


def run(folder: Path, wavs: Path, *overrides: str) -> int:
    """Train a codec small enough for a second or two; the exit status."""
    return train(OmegaConf.create(run_config(folder, wavs, *overrides)))


def run_config(folder: Path, wavs: Path, *overrides: str) -> dict:
    return config(
        *("experiment=tiny", "optimizer=adamw", "data=folder", f"data.root={wavs}", "data.num_workers=0"),
        *("autoencoder=vocos_small", *small_autoencoder("vocos_small", 16, 16), "logger=none", "evaluate=0"),
        *("quantizer.num_quantizers=2", "quantizer.codebook.codebook_size=16", "trainer.accelerator=cpu"),
        *("loss=mel", "discriminator=none", "training.adversarial_from=0", "trainer.val_check_interval=1000"),
        *("data.batch_size=4", "data.segment_seconds=0.3", "trainer.max_steps=4", f"run_dir={folder}/run"),
        *(f"data.index.cache_dir={folder}/cache", "optimizer.schedule.warmup_steps=1", *overrides),
    )


def by(kind: str, path: Path) -> list[str]:
    return [f"teacher={kind}", f"teacher.path={path}"]


@torch.no_grad()
def explained(folder: Path, teacher: Path) -> float:
    """Cosine, on new recordings, of a least-squares prediction from the first codebook, around the mean."""
    codec, audio = load(folder / "run").eval(), tones(40, seed=1)
    features = SpeechModel(teacher)(audio).mT
    coded = codec.quantizer(codec.latents(audio)).branches[0].latents.mT
    assert coded.shape[:2] == features.shape[:2]
    coded = functional.pad(coded, (0, 1), value=1.0)
    centered = features - features[:20].mean((0, 1))
    fit = torch.linalg.lstsq(coded[:20].flatten(0, 1), centered[:20].flatten(0, 1), driver="gelsd").solution
    return float(functional.cosine_similarity(coded[20:] @ fit, centered[20:], dim=2).mean())


def test_a_teacher_is_matched_better_with_the_loss_than_without(tmp_path, teachers, recordings):
    stages = "[{name: latents, steps: 28, bottleneck: none},{name: codes, steps: 4}]"
    settings = ["optimizer.generator.lr=0.006", "loss.weights.mel=1", "loss.weights.waveform=10"]
    settings += [f"training.stages={stages}", "trainer.max_steps=null", "training.average_decay=0.9"]
    matched = {}
    folder = shutil.copytree(teachers / "wavlm", tmp_path / "teacher")
    for weight in (0, 100):
        teacher = [*by("transformers", folder), f"loss.weights.distillation={weight}"]
        assert run(tmp_path / str(weight), recordings, *settings, *teacher) == 0
        matched[weight] = explained(tmp_path / str(weight), teachers / "wavlm")
    assert matched[100] > max(0.6, matched[0] + 0.3), matched
    # The teacher leaves no trace but the projection, which is for training alone.
    names = {name for name in last(tmp_path / "100")["state_dict"] if name.startswith("objective.")}
    assert names == {f"objective.reconstruction.distillation.projection.{one}" for one in ("weight", "bias")}
    shutil.rmtree(folder)
    codec = load(tmp_path / "100" / "run")
    assert "teacher" not in json.dumps(codec.config)
    assert not any("projection" in name or "teacher" in name for name in codec.state_dict())


@pytest.mark.parametrize("kind", ["features", pytest.param("transformers", marks=pytest.mark.exhaustive)])
def test_a_run_is_resumed_bit_for_bit(tmp_path, teachers, recordings, features, kind):
    teacher = by(kind, {"transformers": teachers / "bert", "features": features}[kind])
    assert run(tmp_path / "whole", recordings, *teacher) == 0
    assert run(tmp_path / "parts", recordings, *teacher, "trainer.max_steps=2") == 0
    assert run(tmp_path / "parts", recordings, *teacher, "resume=auto") == 0
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    with pytest.raises(ConfigError, match="another discriminator or loss"):
        run(tmp_path / "parts", recordings, "resume=auto", "trainer.max_steps=6")


def data_of(recordings: Path, path: Path, seconds: float, **options) -> AudioDataModule:
    data = AudioDataModule(
        str(recordings), RATE, segment_seconds=seconds, num_workers=0, features=Features(str(path)), **options
    )
    data.setup()
    return data


def test_both_teachers_give_the_same_features_of_the_same_crop(teachers, recordings, features):
    batch = data_of(recordings, features, 0.3).train_crops.__getitems__(range(6))
    assert isinstance(batch, Batch) and batch.features is not None and batch.features.shape == (6, 16, 15)
    teacher = SpeechTeacher(str(teachers / "wavlm"), RATE)
    computed = teacher(Forward(batch.audio, batch.target, batch.target))
    torch.testing.assert_close(batch.features, computed, atol=1e-5, rtol=0)
    given = Features(str(features))
    assert (given.dim, given.frame_rate) == (teacher.dim, teacher.frame_rate) == (16, 50.0)


def test_crops_have_the_features_of_their_own_time(recordings, features):
    data, dataset = data_of(recordings, features, 0.1, seed=5), TokenDataset(features)
    batch = data.train_crops.__getitems__(range(12))
    assert batch.features is not None and batch.features.shape == (12, 16, 5)
    paths = [recordings / dataset.utterance(number).path for number in range(len(dataset))]
    contents = [soundfile.read(path, dtype="float32")[0].tobytes() for path in paths]
    starts = set()
    for crop, found in zip(batch.audio[:, 0].numpy(), batch.features, strict=True):
        places = [(number, one.find(crop.tobytes()) // 4) for number, one in enumerate(contents)]
        ((number, start),) = [place for place in places if place[1] >= 0]
        starts.add(start)
        times = (start / 320 + np.arange(5)).clip(0, 14)
        expected = [np.interp(times, np.arange(15), row) for row in dataset[number].numpy()]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(starts) > 6
    again = data_of(recordings, features, 0.1, seed=5).train_crops.__getitems__([7])
    assert torch.equal(again.features[0], batch.features[7])  # type: ignore[index]


def test_noise_leaves_features_alone_and_other_speeds_or_mixtures_are_refused(recordings, features):
    noisy = Degradation(Noise(str(recordings), probability=1.0))
    plain, degraded = (
        data_of(recordings, features, 0.1, **options).train_crops.__getitems__(range(4))
        for options in ({}, {"degradation": noisy})
    )
    assert not torch.equal(plain.audio, degraded.audio)
    assert torch.equal(plain.features, degraded.features)  # type: ignore[arg-type]
    for option in ({"speed": [0.9, 1.1]}, {"mix": Mix(probability=0.1)}):
        with pytest.raises(
            ConfigError, match=r"augmentation\.speed=null and .*probability=0, or choose teacher="
        ):
            data_of(recordings, features, 0.1, augmentation=Augmentation(**option))


def test_the_command_writes_a_latent_dataset_resumes_and_tells_layers_apart(
    tmp_path, teachers, recordings, capsys
):
    arguments = [str(teachers / "hubert"), str(recordings / "part 0"), "-o", str(tmp_path / "out")]
    arguments += ["--format", "npy", "--workers", "0", "--layer"]
    assert features_command([*arguments, "1"]) == 0
    dataset = TokenDataset(tmp_path / "out")
    assert dataset.description["dtype"] == "float16" and len(dataset) == 20
    audio = torch.from_numpy(soundfile.read(recordings / "part 0" / dataset.utterance(3).path)[0]).float()
    expected = SpeechModel(teachers / "hubert", 1)(audio[None, None])[0]
    torch.testing.assert_close(dataset[3], expected.detach(), atol=4e-3, rtol=0)
    capsys.readouterr()
    assert features_command([*arguments, "1"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was made with other settings: --layer 1 → 0; name another folder"):
        features_command([*arguments, "0"])
    with pytest.raises(ConfigError, match=r"other settings: the model \(codec_id\) \w+… → \w+…; name"):
        features_command([str(teachers / "wavlm"), *arguments[1:], "1"])


def test_a_teacher_that_cannot_teach_is_named(tmp_path, teachers):
    with pytest.raises(
        ConfigError, match=r"teacher\.path=/x: without effect under teacher=none; add teacher="
    ):
        check_plain_options(config("teacher.path=/x"))
    loss = config("experiment=tiny", *by("transformers", teachers / "wavlm"))["loss"]
    distillation = loss["reconstruction"]["distillation"]

    def refused(message: str, width: float = 1.0, **teacher: object) -> None:
        node = distillation | {"width": width, "teacher": distillation["teacher"] | teacher}
        with pytest.raises(ConfigError, match=message):
            build({"reconstruction": {"distillation": node}}, path="loss")

    refused(r"nowhere: no folder of a model of transformers \(config.json\)", path="nowhere")
    refused("is for audio of 16000 Hz, and the codec's has 8000 Hz", sample_rate=8000)
    refused("layer must be average or 0 to 1, as .* has, got 2", layer=2)
    refused("loss.reconstruction.distillation.* width must be positive", width=0)
    text = tmp_path / "text"
    transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(text)
    refused("no speech model: model_type is 'bert', not .*wavlm", path=str(text))
    broken = tmp_path / "broken"
    for name in ("preprocessor_config.json", "model.safetensors"):
        shutil.copytree(teachers / "wavlm", broken, dirs_exist_ok=True)
        (broken / name).unlink()
        refused("save_pretrained of model and feature extractor writes them", path=str(broken))
    weights = safetensors.torch.load_file(teachers / "wavlm" / "model.safetensors")
    del weights["encoder.layers.0.attention.q_proj.weight"]
    safetensors.torch.save_file(weights, broken / "model.safetensors", {"format": "pt"})
    shutil.copy(teachers / "wavlm" / "preprocessor_config.json", broken)
    refused("1 weights are missing, as encoder.layers.0.attention.q_proj.weight", path=str(broken))


def test_a_teacher_of_frozen_codes_is_refused(tmp_path, recordings, features):
    teacher = by("features", features)
    with pytest.raises(ConfigError, match=r"teacher: .* are frozen, .*: leave out teacher"):
        run(tmp_path, recordings, *teacher, "training.freeze=[autoencoder.encoder,quantizer]")
    stages = "[{name: a, steps: 2, freeze: [autoencoder.encoder, quantizer]}, {name: b, steps: 2}]"
    options = *teacher, f"training.stages={stages}", "trainer.max_steps=null"
    assert build_parts(run_config(tmp_path, recordings, *options))


def test_features_of_other_recordings_are_refused(tmp_path, recordings, features, codec):
    with pytest.raises(ConfigError, match=r"nowhere: holds no token dataset.*codec-features writes"):
        Features("nowhere")
    encode_corpus(codec, [recordings / "part 0"], tmp_path / "codes", Settings("npy", workers=0))
    with pytest.raises(ConfigError, match="is a dataset of codes; features are written by codec-features"):
        Features(str(tmp_path / "codes"))
    changed = tmp_path / "changed"
    shutil.copytree(recordings, changed)
    write_wav(changed / "new.wav", tones(1, seed=3)[0].numpy(), RATE)
    with pytest.raises(
        ConfigError, match=r"lacks the features of 1 of \d+ recordings, as .*new.wav: run codec-"
    ):
        data_of(changed, features, 0.1)
    (changed / "new.wav").unlink()
    for path in changed.glob("*/*.wav"):  # other content of the same length
        write_wav(path, tones(1, seed=int(path.stem) + 50)[0].numpy(), RATE)
    with pytest.raises(ConfigError, match=r"computed from other recordings: .*\.wav differs"):
        data_of(changed, features, 0.1)
    with pytest.raises(ConfigError, match="the data have no features: set"):
        Features(str(features))(Forward(*[torch.zeros(1, 1, 10)] * 3))


def test_the_purity_of_a_codebook_is_counted_by_frames(tmp_path, codec, capsys):
    (tmp_path / "wavs").mkdir()
    write_wav(tmp_path / "wavs/a.wav", tones(1, seed=0)[0].numpy(), RATE)
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "tokens", Settings("npy", workers=0))
    tokens = TokenDataset(tmp_path / "tokens")
    codes, rate = tokens[0][1].tolist(), tokens.frame_rate
    frames = [(place, "ab"[place % 7 < 3]) for place in range(3, len(codes) - 2)]
    rows = [f"a,{place / rate},{(place + 1) / rate},{label}" for place, label in frames]
    (tmp_path / "labels.csv").write_text("\n".join(["file,start,end,label", *rows, "b,0,1,c"]))
    pairs = count(tokens, read_labels(tmp_path / "labels.csv"), 1)
    assert pairs == Counter((codes[place], label) for place, label in frames)
    assert purity(Counter({(0, "a"): 3, (0, "b"): 1, (1, "b"): 4})) == pytest.approx(
        {
            "phone_purity": 7 / 8,
            "cluster_purity": 7 / 8,
            "normalized_information": 1 - 0.56234 / 2 / 0.66156,
            "frames": 8,
        },
        rel=1e-3,
    )
    source = Counter({(n, "ab"[n]): 5000 for n in (0, 1)})
    assert purity(source)["phone_purity"] == 1
    assert purity(shuffled(source))["phone_purity"] == pytest.approx(0.5, abs=0.03)
    capsys.readouterr()
    assert measure([str(tmp_path / "tokens"), str(tmp_path / "labels.csv"), "--stage", "1"]) == 0
    share = purity(shuffled(pairs))["phone_purity"]
    assert f"phone_purity {purity(pairs)['phone_purity']:.4g} (chance {share:.4g})" in capsys.readouterr().out
    vae = small_codec("quantizer=kl")
    encode_corpus(vae, [tmp_path / "wavs"], tmp_path / "latents", Settings("npy", workers=0))
    with pytest.raises(ConfigError, match="holds continuous latents: only codes have a purity"):
        measure([str(tmp_path / "latents"), str(tmp_path / "labels.csv")])
