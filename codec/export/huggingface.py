"""EnCodec and DAC models of Hugging Face's `transformers`: load them here, save ours as theirs.

Neither needs `transformers`, only `check` does. Weights are read from safetensors, never from pickles.
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
    """Whether a directory is of a model of `transformers`."""
    return (path / CONFIG_FILE).is_file()


def load(path: str | Path, zero_padding: bool = False) -> Codec:
    """Codec of a local directory that `EncodecModel` or `DacModel` wrote with `save_pretrained`.

    The same codes and audio as theirs for whole frames; `zero_padding` also takes an EnCodec that pads by
    reflection, whose codes then differ near the edges. A DAC of odd strides
    loses samples there, none here.
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
    # Raised by torch and Python for tensors of another shape and for numbers out of range.
    except (ValueError, ArithmeticError, RuntimeError, TypeError, LookupError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return assemble(config, normalised(weights, empty.state_dict()), path)


def load_any(path: Path, zero_padding: bool = False) -> Codec:
    """Whatever `codec.load` reads, or a directory of `transformers`."""
    return load(path, zero_padding) if is_huggingface(path) else model.load(path)


def shape_of(codec: Codec) -> str:
    """`encodec` or `dac`, whichever shape a codec has; ConfigError says why it has neither."""
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

    ConfigError when it has neither shape. Nothing is checked here: see `check`.
    """
    kind = shape_of(codec)
    config = FORMATS[kind].to_config(codec)
    weights: dict[str, Tensor] = FORMATS[kind].to_weights(codec, folded(codec.state_dict()), config)
    if kind == "encodec":  # DAC's are stored plain
        convolutions = [name for name in weights if name.endswith(".conv.weight")]
        made_of = [name.removesuffix("weight") + "parametrizations.weight.original0" for name in convolutions]
        weights = normalised(weights, made_of)
    directory.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in weights.items()}
    (directory / WEIGHTS_FILE).write_bytes(serialise(plain, metadata={"format": "pt"}))
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config["architectures"][0]


def check(codec: Codec, directory: Path) -> Comparison:
    """Let `transformers` load a directory and compare it with the codec on whole frames.

    ConfigError when it does not do the same; or when `transformers` is missing.
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
    """Codes `[B, K, F]` of an `EncodecModel`, all codebooks."""
    return theirs.encode(audio, bandwidth=theirs.config.target_bandwidths[-1]).audio_codes[0]


def decode_encodec(theirs: Any, codes: Tensor) -> Tensor:
    """Audio `[B, C, T]` of an `EncodecModel`."""
    return theirs.decode(codes[None], [None]).audio_values


def encode_dac(theirs: Any, audio: Tensor) -> Tensor:
    """Codes `[B, K, F]` of a `DacModel`."""
    return theirs.encode(audio).audio_codes


def decode_dac(theirs: Any, codes: Tensor) -> Tensor:
    """Audio `[B, 1, T]` of a `DacModel`."""
    return theirs.decode(audio_codes=codes).audio_values.view(len(codes), 1, -1)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and warnings of `transformers` while it loads what was just written."""
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
