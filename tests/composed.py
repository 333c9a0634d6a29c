"""Configs for tests: composed by Hydra as the commands do, shrunk so that a test takes moments."""

import os
import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from codec.config import CONFIG_DIR, build
from codec.quantizers.base import Quantizer
from codec.training.resolve import to_plain

NO_CODES = {"kl", "none", "sigma_vae"}  # quantizers whose latents are not quantized


def options(group: str) -> list[str]:
    """Names of all yaml files of a config group: a new one is tested because it exists."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def distinct(group: str) -> list[str]:
    """Names without those of another size, which tests shrink to the same; all with CODEC_TEST_ALL."""
    names = options(group)
    sizes = [name for name in names if re.fullmatch(r".*_\d+", name) and name.rpartition("_")[0] in names]
    return names if os.environ.get("CODEC_TEST_ALL") else sorted(set(names) - set(sizes))


def unresolved(*overrides: str) -> Any:
    """The training config with overrides, as commands get it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train", ["name=test", "data.root=wavs", *overrides])


def config(*overrides: str) -> dict[str, Any]:
    """The resolved training config with overrides."""
    composed = unresolved(*overrides)
    if composed.training.stages:  # whose steps are those of the run
        return to_plain(composed)
    return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]


def small_autoencoder(name: str, dim: int = 8, width: int = 4) -> list[str]:
    """Overrides that make an autoencoder of `configs/autoencoder` narrow, whatever its family."""
    return narrowed(config(f"autoencoder={name}")["autoencoder"], "autoencoder", dim, width)


def narrowed(node: dict[str, Any], path: str, dim: int, width: int) -> list[str]:
    """Overrides that make the autoencoder of a config, or both of its halves, narrow."""
    sizes: dict[str, Any] = {"latent_dim": dim, "encoder_channels": width, "decoder_channels": width}
    sizes |= {"channels": [max(8, width)] * len(node.get("channels", []))}  # fewer make normalization a sign
    small = [f"{path}.{key}={size}" for key, size in sizes.items() if key in node]
    if node.get("latent_layers"):
        sizes = {"num_layers": 2, "num_heads": 2, "window": 5, "layer_scale": 0.5}
        small += [f"{path}.latent_layers.{key}={size}" for key, size in sizes.items()]
    if "num_groups" in (node.get("bottleneck") or {}):
        small += [f"{path}.bottleneck.num_groups=4"]
    halves = [half for half in ("encoder", "decoder") if half in node]
    return small + [text for half in halves for text in narrowed(node[half], f"{path}.{half}", dim, width)]


def causality(name: str, causal: bool) -> str:
    """Override that makes an autoencoder of `configs/autoencoder`, or its encoder, causal or centered."""
    node, path = config(f"autoencoder={name}")["autoencoder"], "autoencoder"
    if "encoder" in node:
        node, path = node["encoder"], "autoencoder.encoder"
    return f"{path}{'.layers' if 'layers' in node else ''}.causal={causal}"


def small_quantizer(name: str, dim: int = 16, most_stages: int = 32) -> Quantizer:
    """A quantizer of `configs/quantizer` for few dimensions, with codebooks that a small batch fills."""
    node = config(f"quantizer={name}", f"autoencoder.latent_dim={dim}")["quantizer"]
    shrink(node, {"codebook_size": 32, "quantizer_dim": 8, "num_quantizers": most_stages})
    return build(node)


def shrink(node: Any, most: dict[str, int]) -> None:
    """Lower the numbers of these names, anywhere below a node."""
    for key, value in node.items():
        if key in most:
            lower = min if not isinstance(value, list) else lambda sizes, size: [min(n, size) for n in sizes]
            node[key] = lower(value, most[key])
        elif key == "depths" and value:
            node[key] = [depth for depth in value if depth <= most["num_quantizers"]]
        elif isinstance(value, dict):
            shrink(value, most)


SMALL_RVQ = ["quantizer.num_quantizers=2", "quantizer.codebook.codebook_size=16"]
SMALL_DISCRIMINATOR = ["discriminator.windows=[256]", "discriminator.channels=2"]


def tiny_run(folder: Path, wavs: Path, *overrides: str, swap_quantizer: str = "") -> dict[str, Any]:
    """A whole training that takes a second or two: a codec of some thousand parameters on 0.1 s crops."""
    return config(
        "experiment=tiny",
        "optimizer=adamw",
        "data=folder",
        f"data.root={wavs}",
        "data.num_workers=0",
        "data.batch_size=4",
        "data.segment_seconds=0.1",
        f"data.index.cache_dir={folder}/cache",
        "autoencoder.latent_dim=8",
        "autoencoder.encoder_channels=2",
        "autoencoder.decoder_channels=2",
        *([f"quantizer={swap_quantizer}"] if swap_quantizer else SMALL_RVQ),
        *([] if any(option.startswith("discriminator=") for option in overrides) else SMALL_DISCRIMINATOR),
        "trainer.accelerator=cpu",
        "trainer.val_check_interval=1000",
        "trainer.log_every_n_steps=2",
        "training.adversarial_from=2",
        "training.revive_every=2",
        "checkpoint.save_every=2",
        f"run_dir={folder}/run",
        "logger=none",
        "evaluate=0",
        *overrides,
    )
