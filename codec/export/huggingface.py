"""Loading and saving of EnCodec and DAC models in the format of Hugging Face's `transformers`.

Only `check` requires `transformers`. Weights are read from safetensors, never from pickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from codec import model
from codec.autoencoders.seanet import SEANet
from codec.config import ConfigError
from codec.export import dac as dac_format
from codec.export import encodec as encodec_format
from codec.export.foreign import folded, normalised, read_json, read_json_config, read_safetensors
from codec.export.verification import Comparison, compare, optional
from codec.model import WEIGHTS_FILE, Codec, assemble, build_empty

CONFIG_FILE = "config.json"
FORMATS: dict[str, ModuleType] = {"encodec": encodec_format, "dac": dac_format}


def is_huggingface(path: Path) -> bool:
    """Return True for the directory of a model of `transformers`."""
    return (path / CONFIG_FILE).is_file()


def load(path: str | Path, zero_padding: bool = False) -> Codec:
    """Load a codec from a local directory written by `save_pretrained` of `EncodecModel` or `DacModel`.

    Codes and audio of whole frames equal those of `transformers`. `zero_padding` also accepts an EnCodec with
    reflection padding, whose codes then differ near the edges. A DAC of odd strides loses samples in
    `transformers`, none here.
    ConfigError for a damaged file or a model that cannot be represented, FileNotFoundError without weights.
    """
    path = Path(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path}: {name} is missing: a model of transformers is read from it and its like "
                "(pickled weights are not read: save them with save_pretrained of a recent transformers)"
            )
    kind = read_json(path / CONFIG_FILE).get("model_type")
    if not isinstance(kind, str) or kind not in FORMATS:
        known = " and ".join(FORMATS)
        raise ConfigError(f"{path / CONFIG_FILE}: model_type is {kind!r}; {known} can be loaded")
    form = FORMATS[kind]
    given = read_json_config(path / CONFIG_FILE, form.DEFAULTS)
    try:
        config = form.from_config(given, zero_padding)
        plain = folded(read_safetensors(path / WEIGHTS_FILE))
        empty = build_empty(config, plain)
        weights = form.from_weights(empty, plain, given)
    # Raised by torch and Python for wrong shapes and numbers out of range.
    except (ValueError, ArithmeticError, RuntimeError, TypeError, LookupError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return assemble(config, normalised(weights, empty.state_dict()), path)


def load_any(path: Path, zero_padding: bool = False) -> Codec:
    """Load a directory of `transformers`, or anything supported by `codec.load`."""
    return load(path, zero_padding) if is_huggingface(path) else model.load(path)


def shape_of(codec: Codec) -> str:
    """Return `encodec` or `dac`, the codec's architecture; ConfigError with the reasons if it has neither."""
    network = codec.autoencoder
    if not isinstance(network, SEANet):
        raise ConfigError(
            f"EncodecModel and DacModel are SEANets, the autoencoder is {type(network).__name__}"
        )
    reasons = []
    for kind, form in FORMATS.items():
        try:
            form.to_config(codec)
        except ConfigError as error:
            reasons.append(str(error))
        else:
            return kind
    raise ConfigError("\n".join(reasons))


@torch.no_grad()
def save(codec: Codec, directory: Path) -> str:
    """Write a codec as a directory of `transformers`; returns the name of the class that loads it.

    ConfigError if the codec has neither architecture. The result is verified by `check`, not here.
    """
    kind = shape_of(codec)
    config = FORMATS[kind].to_config(codec)
    weights: dict[str, Tensor] = FORMATS[kind].to_weights(codec, folded(codec.state_dict()), config)
    if kind == "encodec":  # DAC's weights are stored folded
        convolutions = [name for name in weights if name.endswith(".conv.weight")]
        made_of = [name.removesuffix("weight") + "parametrizations.weight.original0" for name in convolutions]
        weights = normalised(weights, made_of)
    directory.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in weights.items()}
    (directory / WEIGHTS_FILE).write_bytes(serialise(plain, metadata={"format": "pt"}))
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config["architectures"][0]


def check(codec: Codec, directory: Path) -> Comparison:
    """Load a directory with `transformers` and compare it with the codec on whole frames.

    ConfigError if the results differ or `transformers` is missing.
    """
    transformers = optional("transformers")
    name = read_json(directory / CONFIG_FILE)["architectures"][0]
    with quiet():
        theirs = getattr(transformers, name).from_pretrained(directory, local_files_only=True).eval()
    hop = codec.hop_length
    shapes = [(1, hop * frames) for frames in (1, 2, 7, 50)] + [(3, hop * 24)]
    trimmed = 0
    if name == "DacModel":
        encode, decode = partial(encode_dac, theirs), partial(decode_dac, theirs)
        trimmed = dac_format.unequal_end(theirs.config.downsampling_ratios)
        shapes = [shape for shape in shapes if shape[1] > trimmed]
        shapes = shapes or [(1, trimmed + hop * 8)]
    else:
        encode, decode = partial(encode_encodec, theirs), partial(decode_encodec, theirs)
    found = compare(codec, encode, decode, shapes, trimmed)
    found.require(f"what {name} loads")
    return found


def encode_encodec(theirs: Any, audio: Tensor) -> Tensor:
    """Encode with all codebooks of an `EncodecModel`; returns codes `[B, K, F]`."""
    return theirs.encode(audio, bandwidth=theirs.config.target_bandwidths[-1]).audio_codes[0]


def decode_encodec(theirs: Any, codes: Tensor) -> Tensor:
    """Decode with an `EncodecModel`; returns audio `[B, C, T]`."""
    return theirs.decode(codes[None], [None]).audio_values


def encode_dac(theirs: Any, audio: Tensor) -> Tensor:
    """Encode with a `DacModel`; returns codes `[B, K, F]`."""
    return theirs.encode(audio).audio_codes


def decode_dac(theirs: Any, codes: Tensor) -> Tensor:
    """Decode with a `DacModel`; returns audio `[B, 1, T]`."""
    return theirs.decode(audio_codes=codes).audio_values.view(len(codes), 1, -1)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars and warnings of `transformers`."""
    logging = optional("transformers.utils.logging")
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
