"""Training stages: a pure function of the step, without state to restore on resume."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from codec.config import TARGET, ConfigError, build, validate
from codec.data.crops import Batch
from codec.data.module import AudioDataModule
from codec.layers.recompute import in_parts
from codec.losses.base import Forward
from codec.losses.objective import Objective, has_adversarial_weight
from codec.model.codec import Codec
from codec.quantizers.base import Bottleneck
from codec.quantizers.channel import GaussianChannel
from codec.quantizers.continuous import Identity
from codec.system.distributed import all_gather_rows, rank, world_size
from codec.training.optimization import Cosine, Exponential, freeze_submodules

BOTTLENECKS = ("codes", "channel", "none")
ENDLESS = sys.maxsize  # steps of the only stage of a run without `training.stages`


@dataclass(frozen=True)
class Stage:
    """Part of a run with fresh optimizers and its own step count.

    `bottleneck` "none" passes the latents to the decoder without the quantizer (ESC, arXiv 2404.19441).
    "channel" adds the noise of an ideal quantizer of the same bitrate, see `GaussianChannel`.
    Codebooks are initialized from the latents of the first stage that quantizes and does not freeze them.
    `freeze` lists submodules of the codec that are not trained, `adversarial` adds the discriminator, and
    `weights` override weights of the loss. `lr` is the codec's base learning rate and `schedule` its
    schedule, None for the optimizer's; a `Cosine` without `total_steps` spans the stage.
    """

    name: str
    steps: int
    bottleneck: str = "codes"
    freeze: Sequence[str] = ()
    adversarial: bool = False
    weights: Mapping[str, float] | None = None
    lr: float | None = None
    schedule: Exponential | Cosine | None = None

    def __post_init__(self):
        if self.steps < 1 or (self.lr is not None and self.lr < 0):
            raise ValueError(f"steps must be at least 1 and lr at least 0, got {self.steps} and {self.lr}")
        if self.bottleneck not in BOTTLENECKS:
            raise ValueError(f"bottleneck must be {', '.join(BOTTLENECKS)}, got {self.bottleneck!r}")

    @property
    def frozen(self) -> list[str]:
        """Submodules of the codec that are not trained, including an unused quantizer."""
        return [*self.freeze, *([] if self.bottleneck == "codes" else ["quantizer"])]

    @property
    def teaches_quantizer(self) -> bool:
        """True if codebooks, or the covariance of a channel, are updated from the latents."""
        return self.bottleneck == "channel" or "quantizer" not in self.frozen

    def course(self, default: Exponential | Cosine) -> Exponential | Cosine:
        """Learning-rate schedule of the stage; ValueError if it spans an endless stage."""
        schedule = self.schedule or default
        if not isinstance(schedule, Cosine) or schedule.total_steps is not None:
            return schedule
        if self.steps == ENDLESS:
            raise ValueError(
                "optimizer.schedule.total_steps: null means the length of a stage, and there are no stages: "
                "give a number of steps, or training.stages"
            )
        return replace(schedule, total_steps=self.steps)

    def __str__(self) -> str:
        """Summary of the stage's options, for the terminal."""
        parts = [
            f"{self.steps} steps",
            {"codes": "", "channel": "Gaussian channel", "none": "not quantized"}[self.bottleneck],
            f"{', '.join(self.freeze)} frozen" if self.freeze else "",
            "adversarial" if self.adversarial else "",
            "weights " + ", ".join(f"{k} {v:g}" for k, v in self.weights.items()) if self.weights else "",
            "" if self.lr is None else f"lr {self.lr:g}",
            repr(self.schedule) if self.schedule else "",
        ]
        return ", ".join(part for part in parts if part)


def locate(lengths: Sequence[int], step: int) -> tuple[int, int]:
    """Index of the stage that contains a step of the run, and the step within it, both from 0.

    `lengths` are the stages' steps. Steps beyond their sum belong to the last stage.
    """
    number = 0
    while number < len(lengths) - 1 and step >= lengths[number]:
        step -= lengths[number]
        number += 1
    return number, step


def label(stages: Sequence[Stage], number: int) -> str:
    """Label of a stage for the terminal, `stage 2/3 codebooks`; empty in a run without stages."""
    name = stages[number].name
    return f"stage {number + 1}/{len(stages)} {name}" if name else ""


def check_stages(
    stages: Sequence[Stage], codec: Codec, objective: Objective, has_discriminator: bool
) -> None:
    """Freeze the submodules that no stage trains; ValueError for a stage that cannot be trained."""
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names) or (len(names) > 1 and "" in names):
        raise ValueError(f"stages: each needs a name of its own, got {names}")
    any_adversarial = False
    for number, stage in enumerate(stages):
        prefix = f"stages: {stage.name}: " if stage.name else ""
        try:
            freeze_submodules(codec, stage.frozen)
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from error
        try:
            adversarial = has_adversarial_weight(objective.reweighted(stage.weights or {}))
        except ValueError as error:
            remedy = f"with another loss, begin without them: ~training.stages.{number}.weights"
            raise ValueError(f"{prefix}{error} ({remedy})") from error
        if stage.name and stage.adversarial and not (adversarial and has_discriminator):
            raise ValueError(
                f"{prefix}adversarial needs a discriminator, and a weight of adversarial or feature_matching "
                "above 0: choose both, or adversarial: false"
            )
        any_adversarial = any_adversarial or adversarial
    if has_discriminator and not any_adversarial:
        raise ValueError(
            "this loss has no part for a discriminator: choose discriminator=none or another loss"
        )
    if any_adversarial and not has_discriminator:
        raise ValueError("this loss needs a discriminator: choose one, or a loss without (loss=mel)")
    freeze_submodules(codec, sorted(set.intersection(*(set(stage.frozen) for stage in stages))))


def reconstruct(
    codec: Codec,
    quantizer: Bottleneck,
    batch: Batch,
    num_quantizers: Tensor | None = None,
    generator: torch.Generator | None = None,
    parts: int = 1,
) -> Forward:
    """Reconstruct as `Codec.forward` with this quantizer; no backward through leading frozen parts.

    Encoder and decoder get `parts` of the batch one after the other, the quantizer all of it.
    """
    audio, condition = batch.audio, batch.condition if codec.conditioning.names else None
    latents = joined(in_parts(codec.latents, parts, audio, None, condition))
    quantized = quantizer(latents, num_quantizers, generator=generator)
    estimate = joined(in_parts(codec.autoencoder.decode, parts, quantized.latents.to(codec.dtype)))
    teaching: dict[str, Any] = {"features": batch.features, "hop_length": codec.autoencoder.hop_length}
    return Forward(audio, batch.target, estimate[..., : audio.shape[-1]], latents, quantized, **teaching)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts of a batch; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def stand_ins(stages: Sequence[Stage], quantizer: Bottleneck) -> nn.ModuleDict:
    """Bottlenecks of stages without codes, by name; ValueError for a channel without a bitrate."""
    modules: dict[str, nn.Module] = {"none": Identity(quantizer.dim)}
    channels = [number for number, stage in enumerate(stages) if stage.bottleneck == "channel"]
    if channels:
        if not quantizer.codebook_sizes:
            raise ValueError(
                "stages: a channel has the rate of the codes, and this quantizer has no codes: take another, "
                f"or training.stages.{channels[0]}.bottleneck=none"
            )
        depths = range(1, quantizer.num_quantizers + 1)
        rates = [quantizer.bits_per_frame(depth) / quantizer.stride for depth in depths]
        modules["channel"] = GaussianChannel(quantizer.dim, rates)
    return nn.ModuleDict(modules)


@torch.no_grad()
def start_quantizer(quantizer: Bottleneck, codec: Codec, data: AudioDataModule) -> None:
    """Initialize a quantizer from `pool_size` latents of training crops, gathered from all processes."""
    frames = -(-data.segment_length // codec.hop_length) * codec.quantizer.stride
    crops = -(-quantizer.pool_size() // frames)
    crops += -crops % data.batch_size
    share = crops // world_size()
    device = next(codec.parameters()).device
    pool = []
    for start in range(rank() * share, (rank() + 1) * share, chunk := min(share, 16)):
        count = min(chunk, (rank() + 1) * share - start)
        latents = codec.latents(data.crops(start, count).to(device))
        pool.append(latents.float().permute(0, 2, 1).reshape(-1, latents.shape[1]))
    quantizer.initialise(all_gather_rows(torch.cat(pool)))


def plain(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Stages as plain numbers, strings and lists, for a checkpoint."""
    return [asdict(stage) | {"freeze": list(stage.freeze)} for stage in stages if stage.name]


def settle(config: dict[str, Any], max_steps: int | None) -> None:
    """Add `_target_` to the mappings in `training.stages`; set `trainer.max_steps` to the sum of steps.

    ConfigError for invalid stages, and for a `max_steps` that is not their sum.
    """
    training = config["training"]
    if isinstance(training["stages"], list):
        target = f"{Stage.__module__}.{Stage.__qualname__}"
        training["stages"] = [
            {TARGET: target, **node} if isinstance(node, dict) else node for node in training["stages"]
        ]
    validate({"training": training})
    total = sum(stage.steps for stage in build(training["stages"], path="training.stages"))
    if max_steps not in (None, total):
        raise ConfigError(
            f"trainer.max_steps={max_steps}, but training.stages have {total} steps: set "
            "trainer.max_steps=null, which means their sum"
        )
    config["trainer"]["max_steps"] = total
