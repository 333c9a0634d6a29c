"""Parts of a trained codec, and of its run, in a new one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from codec.autoencoders.halves import Halves, half
from codec.config import ConfigError
from codec.model.codec import Codec
from codec.model.saving import open_checkpoint
from codec.quantizers.base import Bottleneck
from codec.training.module import CodecTraining

FRAMES = 256  # random frames whose codes are compared


def inherit(source: Codec, codec: Codec) -> None:
    """Give a new codec the encoder, or all of the autoencoder, the quantizer and the conditioning of another.

    The quantizer may have more stages than the source's; ConfigError unless they keep its first codes.
    """
    old, new = source.config or {}, codec.config or {}
    if old["autoencoder"] == new["autoencoder"]:
        codec.autoencoder = source.autoencoder
    elif isinstance(codec.autoencoder, Halves):
        codec.autoencoder.encoder[1] = half(source.autoencoder, "encoder")
    same = old["quantizer"] == new["quantizer"]
    codec.quantizer = source.quantizer if same else more_stages(source.quantizer, codec.quantizer)
    codec.conditioning = source.conditioning
    codec.train()


@torch.no_grad()
def more_stages(source: Bottleneck, quantizer: Bottleneck) -> Bottleneck:
    """Quantizer with the source's stages as its first; ConfigError unless their codes stay."""
    count = source.num_quantizers
    problem = f"quantizer: {quantizer.num_quantizers} stages are fewer than the {count} of weights"
    if quantizer.num_quantizers < count:
        raise ConfigError(problem)
    try:
        unknown = quantizer.load_state_dict(source.state_dict(), strict=False).unexpected_keys
        problem = ", ".join(unknown[:3])
    except RuntimeError as error:  # another shape
        problem = str(error).splitlines()[-1].strip()
    latents = torch.randn(1, source.dim, FRAMES * source.stride)
    depth = count or None
    if problem or not torch.equal(quantizer.encode(latents, depth), source.encode(latents, depth)):
        raise ConfigError(
            "quantizer: its first stages differ from those of weights; keep them, and append stages"
            + (f" ({problem})" if problem else "")
        )
    return quantizer


class Inherited(Callback):
    """Begins a run with the state of another run's optimizer for the discriminator."""

    def __init__(self, state: Mapping[str, Any]):
        self.state = state

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        """Load it at the first step, after the first stage has reset the optimizers."""
        if trainer.global_step == 0:
            optimizer = trainer.optimizers[1]
            groups = optimizer.state_dict()["param_groups"]  # the options are this run's
            optimizer.load_state_dict({"state": self.state, "param_groups": groups})


def inherit_discriminator(weights: str, module: CodecTraining) -> Inherited:
    """Load the discriminator of a run folder, or of a checkpoint, into a training that starts.

    ConfigError without a checkpoint, and for another discriminator or optimizer.
    """
    path, prefix = Path(weights), "discriminator."
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"inherit: {weights} has no discriminator, no {path}: leave out discriminator")
    checkpoint = open_checkpoint(path)
    saved = {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    current = module.discriminator.state_dict()
    differing = {(name, v.shape) for name, v in saved.items()} ^ {(n, v.shape) for n, v in current.items()}
    if differing or not saved:
        first = ", ".join(sorted({name for name, _ in differing})[:3]) or "it has none"
        raise ConfigError(
            f"inherit: the discriminator of {path} is another ({first}): give the options of that run, as "
            "discriminator=..., or leave out discriminator"
        )
    module.discriminator.load_state_dict(saved)
    optimizer = checkpoint["optimizer_states"][1]
    fresh = module.optimization.discriminator(module.discriminator.parameters()).state_dict()
    if optimizer["param_groups"][0].keys() != fresh["param_groups"][0].keys():
        raise ConfigError(
            f"inherit: {path} has another optimizer for its discriminator: give that of the run, as "
            "optimizer=..., or leave out discriminator"
        )
    return Inherited(optimizer["state"])
