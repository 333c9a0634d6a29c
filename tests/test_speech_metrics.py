"""Word error rate and speaker similarity by models in local folders, against transformers and brute force."""

import functools
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from codec.config import ConfigError
from codec.metrics import registry, speech
from codec.metrics.process import MetricProcess
from codec.metrics.registry import choose_metrics
from codec.metrics.speech import speaker_similarity, word_error_rate, word_errors, words

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

RATE = 24_000
SMALL = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    **{"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
}
WHISPER = {
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
    **{"d_model": 16, "vocab_size": 64, "max_source_positions": 50, "max_target_positions": 12},
    **{"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3},
    **{"suppress_tokens": None, "begin_suppress_tokens": None, "init_std": 1.0},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Random models of one layer: two recognizers, a speaker model for 8 kHz, a bare encoder."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABC"]
    (root / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(vocabulary)}))
    transformers.Wav2Vec2CTCTokenizer(str(root / "vocab.json")).save_pretrained(root / "ctc")
    tokens = {f"Ġw{n}": n for n in range(4, 64)} | {"x": 0, "<p>": 1, "<|endoftext|>": 2, "<s>": 3}
    transformers.WhisperTokenizer(vocab=tokens, merges=[]).save_pretrained(root / "whisper")
    for name, kind, config in (
        ("ctc", "Wav2Vec2ForCTC", transformers.Wav2Vec2Config(**SMALL, vocab_size=len(vocabulary))),
        ("bare", "Wav2Vec2Model", transformers.Wav2Vec2Config(**SMALL)),
        ("speaker", "WavLMForXVector", transformers.WavLMConfig(**SMALL, tdnn_dim=(16,) * 5)),
        ("whisper", "WhisperForConditionalGeneration", transformers.WhisperConfig(**WHISPER)),
    ):
        getattr(transformers, kind)(config).save_pretrained(root / name)
        transformers.Wav2Vec2FeatureExtractor(
            sampling_rate=8000 if name == "speaker" else 16_000
        ).save_pretrained(root / name)
    transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained(root / "whisper")
    return root


def recordings() -> tuple[np.ndarray, np.ndarray]:
    """A sweep of 1.6 s whose harmonics change, and the same with noise."""
    seconds = np.arange(int(1.6 * RATE)) / RATE
    generator = np.random.default_rng(0)
    clean = sum(np.sin(2 * np.pi * k * (80 + 300 * seconds) * seconds) for k in (1, 2, 5)) / 5
    return clean.astype(np.float32), (clean + 0.2 * generator.standard_normal(len(clean))).astype(np.float32)


@functools.cache
def distance(one: tuple, other: tuple) -> int:
    """Edit distance by its recursive definition."""
    if not one or not other:
        return len(one) + len(other)
    change = distance(one[1:], other[1:]) + (one[0] != other[0])
    return min(change, 1 + distance(one[1:], other), 1 + distance(one, other[1:]))


def test_word_errors_are_the_edit_distance():
    lists = [combination for n in range(5) for combination in itertools.product("ab", repeat=n)]
    for one, other in itertools.product(lists, lists):
        assert word_errors(one, other) == distance(one, other)
    assert words("It's OK; “ÜBER” 3,5!") == ["it's", "ok", "über", "3", "5"]


def transcripts(folder: Path, audio: np.ndarray) -> list[str]:
    """Words by plain calls of transformers."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    audio = soxr.resample(audio, RATE, 16_000, quality="HQ")
    if folder.name == "ctc":
        model = transformers.Wav2Vec2ForCTC.from_pretrained(folder).eval()
        codes = model(**extractor(audio, sampling_rate=16_000, return_tensors="pt")).logits.argmax(-1)
        return tokenizer.decode(codes[0]).lower().translate(str.maketrans("<>/", "   ")).split()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    codes = [
        model.generate(extractor(piece, sampling_rate=16_000, return_tensors="pt").input_features)[0]
        for piece in (audio[:16_000], audio[16_000:])
    ]
    return [word for one in codes for word in tokenizer.decode(one, skip_special_tokens=True).split()]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ctc", "whisper"])
def test_word_error_rate_is_that_of_transcripts_by_transformers(models, kind):
    clean, noisy = recordings()
    expected, found = (tuple(transcripts(models / kind, audio)) for audio in (clean, noisy))
    rate = 100 * distance(found, expected) / len(expected)
    score = word_error_rate(str(models / kind))
    assert score(noisy, clean, RATE) == pytest.approx(rate) and rate > 0
    assert score(clean, clean, RATE) == 0


@torch.no_grad()
def test_speaker_similarity_is_the_cosine_at_the_rate_of_the_model(models):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(models / "speaker")
    model = transformers.WavLMForXVector.from_pretrained(models / "speaker").eval()
    vectors = []
    for audio in recordings():
        low = soxr.resample(audio, RATE, 8000, quality="HQ")
        vectors.append(model(**extractor(low, sampling_rate=8000, return_tensors="pt")).embeddings[0])
    clean, noisy = recordings()
    score = speaker_similarity(str(models / "speaker"))
    assert score(noisy, clean, RATE) == pytest.approx(
        float(torch.cosine_similarity(*vectors, dim=0)), abs=1e-5
    )
    assert score(clean, clean, RATE) == pytest.approx(1) and score(noisy, clean, RATE) < 0.9999


def test_an_original_without_words_has_no_score(monkeypatch):
    monkeypatch.setattr(speech, "transcriber", lambda folder: lambda audio, rate: " ...")
    with pytest.raises(ValueError, match="hears no words in the original"):
        word_error_rate("")(*recordings(), RATE)


def test_a_reference_is_transcribed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(speech, "transcriber", lambda _: lambda audio, rate: calls.append(rate) or "a b")
    score, (clean, noisy) = word_error_rate(""), recordings()
    assert [score(gain * noisy, clean, RATE) for gain in (1, 2, 3)] == [0, 0, 0] and len(calls) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "nowhere: no folder of a model of transformers"),
        ("openai/whisper-tiny", "hf download openai/whisper-tiny --local-dir whisper-tiny"),
        ("speaker", "its architecture is WavLMForXVector, not …ForCTC, …WhisperForConditionalGeneration"),
        ("bare", "its architecture is Wav2Vec2Model"),
        ("renamed", r"renamed: \d weights are missing, as lm_head"),
        ("pickled", "pickled: .*safetensors"),
        ("mute", r"mute: its tokenizer cannot be read \(tokenizer.json, or vocab.json"),
    ],
)
def test_folders_of_other_models_are_refused(models, name, words):
    folder = models / name
    if name in ("renamed", "pickled", "mute"):
        shutil.copytree(models / ("bare" if name == "renamed" else "ctc"), folder, dirs_exist_ok=True)
    if name == "renamed":
        config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Wav2Vec2ForCTC"]}
        (folder / "config.json").write_text(json.dumps(config))
    if name == "pickled":
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
    if name == "mute":
        for file in ("vocab.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"):
            (folder / file).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=words):
        word_error_rate(name if "/" in name else str(folder))


def test_the_option_names_a_folder_and_its_content_is_the_version(models, monkeypatch):
    clean, noisy = recordings()
    process = MetricProcess()
    monkeypatch.setattr(process, "close", lambda: None)  # one process, because it imports transformers
    monkeypatch.setattr(registry, "MetricProcess", lambda: process)
    plugins = [f"wer={models}/ctc", f"speaker_similarity={models}/speaker"]
    try:
        chosen, _ = choose_metrics([], plugins)
        assert [(metric.title, metric.unit, metric.lower) for metric in chosen] == [
            ("WER", "%", True),
            ("speaker similarity", "", False),
        ]
        assert chosen[0].version.startswith(f"transformers {transformers.__version__}, files ")
        value, _ = process.score(chosen[0], noisy[None], clean[None], RATE)
        inside = word_error_rate(str(models / "ctc"))
        assert value == pytest.approx(inside(noisy.clip(-1, 1), clean.clip(-1, 1), RATE))
        (models / "ctc/notes.txt").write_text("changed")
        (changed,), _ = choose_metrics([], plugins[:1])
        assert len({chosen[0].version, chosen[1].version, changed.version}) == 3
    finally:
        monkeypatch.undo()
        process.close()
    with pytest.raises(ConfigError, match="metric wer: a/b: no such folder, and nothing is downloaded"):
        choose_metrics([], ["wer=a/b"])
    with pytest.raises(ConfigError, match="--metrics wer: it takes a model: --metric wer=FOLDER"):
        choose_metrics(["wer"])
    with pytest.raises(ConfigError, match="--metric wer: it takes a model: --metric wer=FOLDER"):
        choose_metrics([], ["wer"])
