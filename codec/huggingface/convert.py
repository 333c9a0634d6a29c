"""Loading and saving of EnCodec, DAC, Mimi and WavTokenizer in the format of Hugging Face's `transformers`.

VibeVoice's acoustic tokenizer is loaded only; so are X-Codec, X-Codec 2, NeuCodec and the tokenizer of
Higgs Audio v2, which require `transformers`, as `check` does. Weights are read from safetensors, never from
pickles.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from codec.autoencoders.halves import Halves
from codec.autoencoders.seanet import SEANet
from codec.config import ConfigError
from codec.huggingface import dac as dac_format
from codec.huggingface import encodec as encodec_format
from codec.huggingface import mimi as mimi_format
from codec.huggingface import vibevoice as vibevoice_format
from codec.huggingface import wavtokenizer as wavtokenizer_format
from codec.huggingface import xcodec as xcodec_format
from codec.huggingface import xcodec2 as xcodec2_format
from codec.huggingface.foreign import GAIN, folded, normalized, read_json, read_json_config, read_safetensors
from codec.model import saving
from codec.model.codec import WEIGHTS_FILE, Codec
from codec.model.saving import assemble, build_empty
from codec.system.local_model import weight_files

CONFIG_FILE = "config.json"
SEANETS: dict[str, ModuleType] = {"encodec": encodec_format, "dac": dac_format, "mimi": mimi_format}
FORMATS = SEANETS | {"wavtokenizer": wavtokenizer_format}
LOADED = FORMATS | {
    "xcodec": xcodec_format,
    "xcodec2": xcodec2_format,
    "neucodec": xcodec2_format,
    "higgs_audio_v2_tokenizer": xcodec_format,
    "vibevoice_acoustic_tokenizer": vibevoice_format,
}


def is_huggingface(path: Path) -> bool:
    """Return True for the directory of a model of `transformers`."""
    return (path / CONFIG_FILE).is_file()


def load(path: str | Path, zero_padding: bool = False) -> Codec:
    """Load a codec from a local directory that a model of `transformers` was saved to, one of `LOADED`.

    Codes and audio of whole frames equal those of `transformers`. `zero_padding` also accepts an EnCodec with
    reflection padding, whose codes then differ near the edges. A DAC of odd strides loses samples in
    `transformers`, none here.
    ConfigError for a damaged file or a model that cannot be represented, FileNotFoundError without weights.
    """
    path = Path(path)
    if not is_huggingface(path):
        raise FileNotFoundError(f"{path}: {CONFIG_FILE} is missing: it describes a model of transformers")
    shards = weight_files(path)
    given = read_json(path / CONFIG_FILE)
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in LOADED:
        kinds = ", ".join(LOADED)
        raise ConfigError(f"{path / CONFIG_FILE}: model_type is {kind!r}; {kinds} can be loaded")
    form = LOADED[kind]
    settings = read_json_config(path / CONFIG_FILE, form.DEFAULTS or dict.fromkeys(given))
    try:
        config = form.from_config(settings, zero_padding)
        plain = folded(read_safetensors(shards))
        empty = build_empty(config, plain)
        weights = form.from_weights(empty, plain, settings)
    # Raised by torch and Python for wrong shapes and numbers out of range.
    except (ValueError, ArithmeticError, RuntimeError, TypeError, LookupError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return assemble(config, normalized(weights, empty.state_dict()), path)


def load_any(path: Path, zero_padding: bool = False) -> Codec:
    """Load a directory of `transformers`, or anything supported by `codec.load`."""
    return load(path, zero_padding) if is_huggingface(path) else saving.load(path)


def shape_of(codec: Codec) -> str:
    """Return the codec's architecture, a key of `FORMATS`; ConfigError with the reasons if it has none."""
    network = codec.autoencoder
    if not isinstance(network, SEANet | Halves):
        raise ConfigError(
            "EncodecModel, DacModel and MimiModel are SEANets, WavTokenizerModel has Halves, the autoencoder "
            f"is {type(network).__name__}"
        )
    if codec.conditioning.names:
        raise ConfigError(f"no model of transformers has conditions ({', '.join(codec.conditioning.names)})")
    reasons = []
    for kind in SEANETS if isinstance(network, SEANet) else FORMATS.keys() - SEANETS:
        try:
            FORMATS[kind].to_config(codec)
        except ConfigError as error:
            reasons.append(str(error))
        else:
            return kind
    raise ConfigError("\n".join(reasons))


@torch.no_grad()
def save(codec: Codec, directory: Path) -> str:
    """Write a codec as a directory of `transformers`; returns the name of the class that loads it.

    ConfigError if the codec has none of the architectures. The result is verified by `check`, not here.
    """
    kind = shape_of(codec)
    config = FORMATS[kind].to_config(codec)
    weights: dict[str, Tensor] = FORMATS[kind].to_weights(codec, folded(codec.state_dict()), config)
    if kind in ("encodec", "wavtokenizer"):  # the others' weights are stored folded
        convolutions = [name for name in weights if name.endswith(".conv.weight")]
        gains = {f"{name.removesuffix('weight')}{GAIN}": weights[name][:, :1, :1] for name in convolutions}
        weights = normalized(weights, gains)
    directory.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in weights.items()}
    (directory / WEIGHTS_FILE).write_bytes(serialize(plain, metadata={"format": "pt"}))
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config["architectures"][0]
