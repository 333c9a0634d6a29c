"""Check of an exported directory with Hugging Face's `transformers`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from codec.export.verification import Comparison, compare, optional
from codec.huggingface import dac as dac_format
from codec.huggingface.convert import CONFIG_FILE
from codec.huggingface.foreign import read_json
from codec.model.codec import Codec


def check(codec: Codec, directory: Path) -> Comparison:
    """Load a directory with `transformers` and compare it with the codec on whole frames.

    ConfigError if the results differ or `transformers` is missing.
    """
    transformers = optional("transformers")
    name = read_json(directory / CONFIG_FILE)["architectures"][0]
    with quiet():
        model = getattr(transformers, name).from_pretrained(directory, local_files_only=True).eval()
    hop = codec.hop_length
    shapes = [(1, hop * frames) for frames in (1, 2, 7, 50)] + [(3, hop * 24)]
    trimmed = 0
    if name == "DacModel":
        encode, decode = partial(encode_dac, model), partial(decode_dac, model)
        trimmed = dac_format.unequal_end(model.config.downsampling_ratios)
        shapes = [shape for shape in shapes if shape[1] > trimmed]
        shapes = shapes or [(1, trimmed + hop * 8)]
    elif name in ("MimiModel", "WavTokenizerModel"):
        encode, decode = partial(encode_dac, model), partial(decode_mimi, model)
    else:
        encode, decode = partial(encode_encodec, model), partial(decode_encodec, model)
    comparison = compare(codec, encode, decode, shapes, trimmed)
    comparison.require(f"the model that {name} loads")
    return comparison


def encode_encodec(theirs: Any, audio: Tensor) -> Tensor:
    """Encode with all codebooks of an `EncodecModel`; returns codes `[B, K, F]`."""
    return theirs.encode(audio, bandwidth=theirs.config.target_bandwidths[-1]).audio_codes[0]


def decode_encodec(theirs: Any, codes: Tensor) -> Tensor:
    """Decode with an `EncodecModel`; returns audio `[B, C, T]`."""
    return theirs.decode(codes[None], [None]).audio_values


def encode_dac(theirs: Any, audio: Tensor) -> Tensor:
    """Encode with a `DacModel`, `MimiModel` or `WavTokenizerModel`; returns codes `[B, K, F]`."""
    return theirs.encode(audio).audio_codes


def decode_dac(theirs: Any, codes: Tensor) -> Tensor:
    """Decode with a `DacModel`; returns audio `[B, 1, T]`."""
    return theirs.decode(audio_codes=codes).audio_values.view(len(codes), 1, -1)


def decode_mimi(theirs: Any, codes: Tensor) -> Tensor:
    """Decode with a `MimiModel` or `WavTokenizerModel`; returns audio `[B, C, T]`."""
    return theirs.decode(codes).audio_values


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars and warnings of `transformers`."""
    logging = optional("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
