"""Health of codebooks and losses, and warnings about them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codec.metrics.signal import codebook_usage
from codec.quantizers.base import Bottleneck
from codec.system.distributed import all_gather_rows
from codec.training.step import Step

SETTLED = 500  # steps; earlier statistics are of an encoder that is hardly trained


def residual_energy(quantizer: Bottleneck, latents: Tensor) -> list[float]:
    """Energy of the residual after each quantizer, in dB relative to the latents' energy."""
    codes = quantizer.encode(latents)
    energy = latents.float().square().sum()
    shares = [
        (latents - quantizer.decode(codes[:, : k + 1])).square().sum() / energy for k in range(codes.shape[1])
    ]
    return [10 * float(torch.log10(share.clamp(min=1e-10))) for share in shares]


def codebook_health(quantizer: Bottleneck, steps: list[Step]) -> dict[str, float]:
    """Usage, perplexity, normalized entropy, replaced codes and residual energy in dB of each quantizer.

    Computed from the codes and latents of all processes.
    """
    if not quantizer.codebook_sizes:
        return {}
    codes = all_gather_rows(torch.cat([step.codes for step in steps]))
    health: dict[str, Any] = dict(codebook_usage(codes.cpu(), quantizer.codebook_sizes))
    replaced = [step.replaced for step in steps if step.replaced is not None]
    if replaced:
        health["replaced"] = torch.stack(replaced).sum(0)
    latents = steps[-1].latents
    # Hundreds of codes per frame (channelwise VQ) would take long; NaN latents are logged as skipped steps.
    if latents is not None and quantizer.num_quantizers <= 64:
        latents = all_gather_rows(latents)
        if bool(torch.isfinite(latents).all()):
            with torch.no_grad():
                health["residual_db"] = residual_energy(quantizer, latents)
    return {
        f"codebook/{name}_{k + 1}": float(v) for name, values in health.items() for k, v in enumerate(values)
    }


def diverging(losses: Mapping[str, float], best: dict[str, float]) -> list[str]:
    """Warnings of losses above twice their lowest value; `best` holds the lowest values and is updated."""
    for name, value in losses.items():
        best[name] = min(value, best.get(name, value))
    return [
        f"{name} is {value:.3g} after {best[name]:.3g}: training diverges. Lower the learning rates and "
        "resume from best.ckpt, or raise training.adversarial_from"
        for name, value in losses.items()
        if value > 2 * best[name]
    ]


def warnings_in_words(
    losses: Mapping[str, float], codebook: Mapping[str, float], speed: Mapping[str, float], num_workers: int
) -> list[str]:
    """Warnings of codebook collapse, a dominant discriminator and slow data, each with a remedy."""
    warnings = []
    collapsed = [
        name.rpartition("_")[2] for name, value in codebook.items() if "/entropy_" in name and value < 0.2
    ]
    if collapsed:
        warnings.append(
            f"codebook {', '.join(collapsed)} is collapsing: its codes carry less than 20 % of their bits. "
            "Lower the learning rate, raise quantizer.codebook.dead_threshold, or use a smaller codebook"
        )
    if losses.get("discriminator", 1.0) < 0.02:
        warnings.append(
            "the discriminator separates all real and decoded audio: the generator learns little from it. "
            "Lower optimizer.discriminator.lr or raise training.adversarial_from"
        )
    if speed["speed/data_wait"] > 0.3:
        advice = (
            f"raise data.num_workers ({num_workers} now), or store the corpus as wav at sample_rate"
            if num_workers < (os.cpu_count() or 1)
            else "its cores are busy, or the files slow to read (flac, mp3, another rate, a network); store "
            "the corpus as wav at sample_rate on a local disk"
        )
        warnings.append(f"{speed['speed/data_wait']:.0%} of the time is spent waiting for data: {advice}")
    return warnings
