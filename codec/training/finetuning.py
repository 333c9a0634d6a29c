"""`weights=PATH`: train a saved codec further, give it a new decoder, or add codebooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from torch import nn

from codec.codebooks.base import Codebook
from codec.config import ConfigError, build, fits, trusting
from codec.huggingface.convert import load_any
from codec.model.codec import CONFIG_FILE, Codec
from codec.model.saving import load
from codec.model.untrusted import read_yaml
from codec.system.resuming import flat
from codec.training.checkpoint_path import find_checkpoint

MODEL_OPTIONS = ("autoencoder", "quantizer", "model", "sample_rate", "channels")
# Options of the last part of a quantizer's path that keep the first codes, or the training of all of them.
STAGE_COUNTS = ("num_quantizers", "codebook_sizes", "strides")
STAGE_OPTIONS = (*STAGE_COUNTS, "depths", "dropout")
PARTS = ("encoder", "quantizer", "decoder", "discriminator")
DEFAULT_PARTS = PARTS[:3]
FIXED = ("autoencoder.encoder", "quantizer", "conditioning")  # parts that determine the codes


def adopt(composed: Any) -> tuple[Any, Codec | None]:
    """Composed config with the model that its `weights` begin, and their codec; None without weights.

    With `inherit` without the decoder, the model is a new decoder for the codec's codes (`Halves`); options
    of stages change its quantizer. `build_parts` builds such a model. A codec without conditioning gets the
    one of the option, if any.
    A resumed run loads the codec of its own checkpoint instead; the path is not read. ConfigError for
    options that the saved model determines.
    """
    path, parts = composed.get("weights"), inherited_parts(composed)
    if path is None:
        return composed, None
    keys = given_options()
    new_decoder = "decoder" not in parts
    check_options(path, keys, new_decoder, bool(composed.get("sweep")))
    checkpoint = find_checkpoint(Path(composed.run_dir), composed.resume)
    with trusting(composed.get("trust") or ()):
        codec = load(checkpoint) if checkpoint else load_any(Path(path))
    assert codec.config is not None
    if codec.conditioning.names and any(key.split(".")[0] == "conditioning" for key in keys):
        raise ConfigError(f"weights={path} has conditions: leave out conditioning, or leave out weights")
    model = copy.deepcopy(codec.config)
    if new_decoder:
        model |= new_half(composed, codec, resumed=checkpoint is not None)
    stage_options = list(filter(is_stage_option, keys))
    for key in stage_options:
        set_stages(model, key, composed, path)
    composed = with_model(composed, model, codec)
    free = not stage_options or any(key.startswith(("training.freeze", "training.stages")) for key in keys)
    if names := () if free else first_codes(model, codec, checkpoint, stage_options):
        freeze(composed, names)
        rank_zero_only(print)(
            f"{path}: {', '.join(names)} are frozen, so that the first codes stay as they are; "
            "training.freeze=[] trains all of the codec"
        )
    elif model["autoencoder"].get("codes_of"):
        freeze(composed, FIXED)
    if not codec.conditioning.names:  # a new one starts as the identity
        node = OmegaConf.to_container(composed.conditioning, resolve=True)
        codec.conditioning = build(node, path="conditioning")
        codec.config["conditioning"] = node
    return composed, codec.train()


def inherited_parts(composed: Any) -> tuple[str, ...]:
    """Parts in `inherit`; ConfigError for unknown parts, no weights, no encoder or no quantizer."""
    path, parts = composed.get("weights"), composed.get("inherit", DEFAULT_PARTS)
    parts = tuple(parts) if OmegaConf.is_list(parts) else parts
    if path is not None and not isinstance(path, str):
        raise ConfigError(f"weights: expected a run, a saved codec or a transformers directory, got {path!r}")
    if not isinstance(parts, tuple) or not {"encoder", "quantizer"} <= set(parts) <= set(PARTS):
        raise ConfigError(
            f"inherit={parts}: expected a list of {', '.join(PARTS)} with encoder and quantizer, whose codes "
            "the others are trained for; for another encoder leave out weights"
        )
    if path is None and set(parts) != set(DEFAULT_PARTS):
        raise ConfigError("inherit: parts of weights, and there are none: give weights=...")
    return parts


def given_options() -> list[str]:
    """Names of the options on the command line."""
    tasks = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [override.partition("=")[0].lstrip("+~") for override in tasks]


def is_stage_option(key: str) -> bool:
    """True for the name of an option of the quantizer's stages."""
    return key.startswith("quantizer.") and key.rpartition(".")[2] in STAGE_OPTIONS


def check_options(path: str, keys: Sequence[str], new_decoder: bool, sweep: bool) -> None:
    """ConfigError for options on the command line that the saved model determines."""

    def is_free(key: str) -> bool:
        if not new_decoder:
            return is_stage_option(key)
        fixed = ("autoencoder.latent_dim", "autoencoder.audio_channels")
        return key.split(".")[0] in ("autoencoder", "sample_rate") and key not in fixed

    determined = (*MODEL_OPTIONS, "conditioning") if new_decoder else MODEL_OPTIONS
    conflicting = [key for key in keys if key.split(".")[0] in determined and not is_free(key)]
    if conflicting or sweep:
        options = ", ".join(conflicting) or "sweep"
        raise ConfigError(
            f"weights={path} brings its {'encoder and quantizer' if new_decoder else 'architecture'}: "
            f"leave out {options}, or leave out weights"
            + ("" if new_decoder else " (inherit=[encoder,quantizer] trains another decoder for its codes)")
        )


def new_half(composed: Any, codec: Codec, resumed: bool) -> dict[str, Any]:
    """Autoencoder and sample rate of a model that decodes a codec's codes with the composed autoencoder.

    The codec of a resumed run has its two halves already.
    """
    composed, network = copy.deepcopy(composed), codec.autoencoder
    OmegaConf.update(composed, "channels", codec.audio_channels)
    if "latent_dim" in composed.autoencoder:
        OmegaConf.update(composed, "autoencoder.latent_dim", network.latent_dim)
    decoder = OmegaConf.to_container(composed.autoencoder, resolve=True)
    node, model = {"decoder": decoder, "decoder_rate": composed.sample_rate}, codec.config or {}
    if resumed:
        node = model["autoencoder"] | node
    else:
        node |= {"_target_": "codec.autoencoders.Halves", "encoder": model["autoencoder"]}
        node |= {"encoder_rate": codec.sample_rate, "codes_of": network.codes_of or codec.codec_id()}
    return {"autoencoder": node, "sample_rate": composed.sample_rate}


def set_stages(model: dict[str, Any], key: str, composed: Any, path: str) -> None:
    """Set an option of the quantizer's stages; ConfigError if the saved quantizer has no such part."""
    *parents, name = key.split(".")
    node: Any = model
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or (name == "num_quantizers" and name not in node):
        options = [option for option, _ in flat(model) if option.endswith(".num_quantizers")]
        raise ConfigError(f"weights={path} has no {key}; it has +{', +'.join(options) or 'no stages'}")
    value = OmegaConf.select(composed, key)
    node[name] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if name == "num_quantizers" and node.get("depths") and fits(value, int):
        node["depths"] = sorted({*node["depths"], value})  # else no training example would use the new ones


def first_codes(
    model: dict[str, Any], codec: Codec, checkpoint: Path | None, stage_options: Sequence[str]
) -> list[str]:
    """Parts that determine the codes of a codec, if its quantizer has more stages in a model.

    Of a resumed run, whose codec has all stages, the frozen parts in its config; ConfigError without one.
    """
    if checkpoint:
        saved = checkpoint.parent.parent / CONFIG_FILE
        if not saved.is_file():
            raise ConfigError(f"{saved} is missing, with the frozen parts of the run: give training.freeze")
        training = read_yaml(saved)["training"]
        lists = [part["freeze"] for part in training["stages"] or [training]]
        return [name for name in lists[0] if all(name in other for other in lists)]
    old, new = OmegaConf.create(codec.config), OmegaConf.create(model)
    counts = [key for key in stage_options if key.rpartition(".")[2] in STAGE_COUNTS]
    if all(OmegaConf.select(old, key) == OmegaConf.select(new, key) for key in counts):
        return []
    return ["autoencoder.encoder", "conditioning", *stages_of(codec.quantizer, "quantizer")]


def stages_of(module: nn.Module, name: str) -> Iterator[str]:
    """Yield names of a quantizer's codebooks and other parts, but of no list that stages may be added to."""
    has_lists = any(isinstance(part, nn.ModuleList) for part in module.modules())
    if has_lists and not isinstance(module, Codebook):
        for child, part in module.named_children():
            yield from stages_of(part, f"{name}.{child}")
    elif module.state_dict():
        yield name


def with_model(composed: Any, model: dict[str, Any], codec: Codec) -> Any:
    """Copy of a composed config with a model; the conditioning stays if the codec has none."""
    config = copy.deepcopy(composed)
    parts = {name: model[name] for name in ("quantizer", "sample_rate")}
    # Conditioning and teacher refer to latent_dim, which not every autoencoder has as an option.
    parts |= {"autoencoder": {"latent_dim": codec.autoencoder.latent_dim} | model["autoencoder"]}
    parts |= {"channels": codec.audio_channels}
    parts |= {"conditioning": model["conditioning"]} if codec.conditioning.names else {}
    parts |= {"model": model | {"conditioning": "${conditioning}"}}
    for name, value in parts.items():
        OmegaConf.update(config, name, value, merge=False, force_add=True)
    return config


def freeze(composed: Any, names: Sequence[str]) -> None:
    """Add submodules to those that are frozen in every part of the run."""
    for part in composed.training.stages or [composed.training]:
        frozen = part.get("freeze") or []
        if OmegaConf.is_list(frozen) or not frozen:  # another value is refused later, by name
            missing = [name for name in names if name not in frozen]
            OmegaConf.update(part, "freeze", [*frozen, *missing], force_add=True)
