"""Metrics by speech models of `transformers` in local folders: word errors, and similarity of speakers.

Nothing is downloaded, and weights are read from safetensors only. torch is imported with the first model,
because the metrics' processes import this file.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from codec.audio.conversion import resample
from codec.config import ConfigError
from codec.metrics.base import Metric, Score
from codec.system.local_model import load_local_model

# Ends of the names of architectures in config.json, and the classes that load them.
RECOGNIZERS = {"ForCTC": "AutoModelForCTC", "WhisperForConditionalGeneration": "AutoModelForSpeechSeq2Seq"}
SPEAKERS = {"ForXVector": "AutoModelForAudioXVector"}


def load_model(folder: str, kinds: dict[str, str]) -> tuple[Any, Any]:
    """Model, on the `default_device`, and feature extractor of a local folder; ConfigError for others."""
    from codec.system.device import default_device  # torch is slow to import

    def choose(config: Any) -> str:
        architecture = str((config.architectures or ["none"])[0])
        loader = next((name for end, name in kinds.items() if architecture.endswith(end)), None)
        if loader is None:
            raise ConfigError(f"{folder}: its architecture is {architecture}, not …{', …'.join(kinds)}")
        return loader

    model, extractor = load_local_model(folder, choose)
    return model.to(default_device()), extractor


def inputs_of(extractor: Any, model: Any, audio: np.ndarray) -> Any:
    """Inputs of a model for audio `[T]` at its own rate."""
    return extractor(audio, sampling_rate=extractor.sampling_rate, return_tensors="pt").to(model.device)


def transcriber(folder: str) -> Callable[[np.ndarray, int], str]:
    """Function of audio `[T]` and its rate in Hz to text: Whisper or a CTC model, with greedy search.

    Whisper transcribes pieces of 30 s one by one.
    """
    model, extractor = load_model(folder, RECOGNIZERS)
    tokenizer = load_tokenizer(folder)
    no_grad = importlib.import_module("torch").inference_mode

    def transcribe(audio: np.ndarray, rate: int) -> str:
        audio = resample(audio[None], rate, extractor.sampling_rate)[0]
        with no_grad():
            if model.config.model_type != "whisper":
                logits = model(**inputs_of(extractor, model, audio)).logits
                return tokenizer.batch_decode(logits.argmax(-1))[0]
            pieces = [audio[n : n + extractor.n_samples] for n in range(0, len(audio), extractor.n_samples)]
            features = [inputs_of(extractor, model, piece).input_features for piece in pieces]
            codes = [model.generate(one, do_sample=False, num_beams=1)[0] for one in features]
            return " ".join(tokenizer.decode(one, skip_special_tokens=True) for one in codes)

    return transcribe


def load_tokenizer(folder: str) -> Any:
    """Tokenizer of a local folder; ConfigError without one."""
    tokenizers = importlib.import_module("transformers").AutoTokenizer
    try:
        return tokenizers.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many types, for files that are missing or damaged
        raise ConfigError(
            f"{folder}: its tokenizer cannot be read (tokenizer.json, or vocab.json, and "
            f"tokenizer_config.json; save_pretrained of the tokenizer writes them): {error}"
        ) from error


def words(text: str) -> list[str]:
    """Words of a text without case and punctuation; apostrophes stay."""
    return re.findall(r"[\w']+", unicodedata.normalize("NFKC", text).lower())


def word_errors(estimate: Sequence[str], reference: Sequence[str]) -> int:
    """Least number of substitutions, insertions and deletions (Levenshtein 1966)."""
    row = list(range(len(reference) + 1))
    for number, word in enumerate(estimate, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(reference, start=1):
            change = diagonal + (word != other)
            diagonal, row[place] = row[place], min(change, row[place] + 1, row[place - 1] + 1)
    return row[-1]


def cached(function: Callable[[np.ndarray, int], Any]) -> Callable[[np.ndarray, int], Any]:
    """Function that keeps its last two results: a reference is scored with several reconstructions."""
    results = lru_cache(2)(lambda audio, rate: function(np.frombuffer(audio, np.float32).copy(), rate))
    return lambda audio, rate: results(audio.astype(np.float32).tobytes(), rate)


def word_error_rate(folder: str) -> Score:
    """Word error rate in %, of transcripts by one model; ValueError for an original without words."""
    transcribe = cached(transcriber(folder))

    def score(estimate: np.ndarray, reference: np.ndarray, rate: int) -> float:
        expected = words(transcribe(reference, rate))
        if not expected:
            raise ValueError("the model hears no words in the original")
        return 100 * word_errors(words(transcribe(estimate, rate)), expected) / len(expected)

    return score


def speaker_similarity(folder: str) -> Score:
    """Cosine of the X-vectors (Snyder et al. 2018) of estimate and reference."""
    model, extractor = load_model(folder, SPEAKERS)
    no_grad = importlib.import_module("torch").inference_mode

    def embed(audio: np.ndarray, rate: int) -> np.ndarray:
        audio = resample(audio[None], rate, extractor.sampling_rate)[0]
        with no_grad():
            vector = model(**inputs_of(extractor, model, audio)).embeddings[0].cpu().double().numpy()
        return vector / np.linalg.norm(vector)

    embedded = cached(embed)
    return lambda estimate, reference, rate: embedded(estimate, rate) @ embedded(reference, rate)


WER = Metric("wer", "WER",
    "Words that a recognizer hears otherwise than in the original, of all of the original, mean over files.",
    word_error_rate, unit="%", lower=True, package="transformers", place=__name__)  # fmt: skip
SPEAKER_SIMILARITY = Metric("speaker_similarity", "speaker similarity",
    "Cosine of X-vectors of reconstruction and original, -1 to 1.",
    speaker_similarity, package="transformers", place=__name__)  # fmt: skip
