"""Codecs of Hugging Face's `transformers` whose networks are built by it, from untrusted configs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from codec.config import ConfigError

CLASSES = {
    "higgs_audio_v2_tokenizer": "HiggsAudioV2Tokenizer",
    "neucodec": "NeuCodec",
    "xcodec": "Xcodec",
    "xcodec2": "Xcodec2",
}
BERT = {"semantic_model_config": ("wav2vec2-bert",)}
DAC_AND_SPEECH = {"acoustic_model_config": ("dac",), "semantic_model_config": ("hubert", "wavlm")}
# Configs inside of a config, each with the values of its `model_type`; the first is the default.
PARTS = {
    "higgs_audio_v2_tokenizer": DAC_AND_SPEECH,
    "neucodec": BERT,
    "xcodec": DAC_AND_SPEECH,
    "xcodec2": BERT,
}

SET_LATE = {"hidden_size", "upsampling_ratios"}  # options of DAC that its config class does not declare


def library_with(kind: str) -> Any:
    """Import `transformers`; ConfigError if it is not installed or lacks the model."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]

        getattr(transformers, f"{CLASSES[kind]}Model")
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"autoencoder: {CLASSES[kind]} needs a recent transformers: pip install -U transformers ({error})"
        ) from error
    return transformers


def network_config(kind: str, given: Mapping[str, Any]) -> Any:
    """Config object of `transformers` with the architecture in a mapping; ValueError for invalid values.

    Options that all models of `transformers` have are left out: some of them name code to be downloaded.
    """
    if kind not in CLASSES:
        raise ValueError(f"kind must be one of {', '.join(CLASSES)}, got {kind!r}")
    library = library_with(kind)
    with value_errors(kind):
        config_class = getattr(library, f"{CLASSES[kind]}Config")
        options = own_options(config_class, given)
        for name, types in PARTS[kind].items():
            if part := given.get(name):
                type_name = part.get("model_type", types[0])
                if type_name not in types:
                    raise ValueError(f"{name} is of {type_name!r}, not {' or '.join(types)}")
                part_class = type(library.AutoConfig.for_model(type_name))
                options[name] = own_options(part_class, part) | {"model_type": type_name}
        return config_class(**options)


def build_network(kind: str, config: Any) -> Any:
    """Model of `transformers` with random weights, in eval mode; ValueError if its sizes do not fit."""
    with value_errors(kind):
        return getattr(library_with(kind), f"{CLASSES[kind]}Model")(config).eval()


@contextmanager
def value_errors(kind: str) -> Iterator[None]:
    """Turn errors of `transformers`, which have many types, into a ValueError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ValueError(f"no {kind}: {' '.join(str(error).split())} ({type(error).__name__})") from error


def own_options(config_class: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a config class itself."""
    own = inspect.get_annotations(config_class).keys() | (
        SET_LATE if config_class.model_type == "dac" else ()
    )
    return {name: value for name, value in given.items() if name in own}


def complete(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Plain architecture in a `config.json`, with the defaults written out."""
    config = network_config(kind, given)

    def plain(part: Any) -> dict[str, Any]:
        values = own_options(type(part), vars(part))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    parts = {name: getattr(config, name) for name in PARTS[kind]}
    return plain(config) | {
        name: plain(part) | {"model_type": part.model_type} for name, part in parts.items()
    }
