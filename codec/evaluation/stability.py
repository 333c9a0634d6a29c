"""Token stability: codes that change under batching, streaming, shift, gain, re-encoding; stage energies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from codec.layers.streaming import NotStreamable
from codec.model.codec import Codec

GAIN = 10 ** (6 / 20)


@torch.inference_mode()
def token_stability(codec: Codec, clips: Iterable[Tensor]) -> dict[str, float]:
    """Shares of codes, over clips `[1, C, T]` of any lengths, that change under a perturbation.

    `batch`: in a batch of four; `chunks`: streamed, if the codec can stream; `shift`: delayed by one sample
    (same frames compared); `gain_up`, `gain_down`: by 6 dB; `reencode`: of the decoded audio. Empty for a
    quantizer without codes.
    """
    if not codec.quantizer.codebook_sizes:
        return {}
    changes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "batch": lambda audio, codes: codec.encode(audio.repeat(4, 1, 1) * powers(audio))[:1],
        "shift": lambda audio, codes: codec.encode(torch.nn.functional.pad(audio, (1, 0))[..., :-1]),
        "gain_up": lambda audio, codes: codec.encode(GAIN * audio),
        "gain_down": lambda audio, codes: codec.encode(audio / GAIN),
        "reencode": lambda audio, codes: codec.encode(codec.decode(codes, audio.shape[-1])),
    }
    if can_stream(codec):
        changes["chunks"] = lambda audio, codes: stream(codec, audio)
    differ, total = dict.fromkeys(changes, 0), 0
    for audio in clips:
        codes = codec.encode(audio)
        total += codes.numel()
        for name, change in changes.items():
            differ[name] += int((change(audio, codes) != codes).sum())
    return {name: count / total for name, count in differ.items()} if total else {}


def powers(audio: Tensor) -> Tensor:
    """Gains `[4, 1, 1]` of a batch: 1 for the first item, others for the rest."""
    return torch.tensor([1.0, 0.5, -1.0, 0.25], device=audio.device)[:, None, None]


def can_stream(codec: Any) -> bool:
    """Return True if a codec has a streaming form."""
    try:
        return hasattr(codec, "streaming") and bool(codec.streaming())
    except NotStreamable:
        return False


def stream(codec: Any, audio: Tensor, chunks: int = 7) -> Tensor:
    """Codes of audio that is streamed in `chunks` of arbitrary length."""
    length = -(-audio.shape[-1] // chunks)
    with codec.streaming(batch=1) as streaming:
        parts = [streaming.encode(chunk) for chunk in audio.split(length, dim=-1)]
        parts.append(streaming.encode(audio[..., :0], final=True))
    return torch.cat(parts, dim=-1)


@torch.inference_mode()
def stage_energy(codec: Codec, clips: Iterable[Tensor]) -> list[float]:
    """Energy of the residual after each stage, relative to the latents' energy."""
    stages = len(codec.quantizer.codebook_sizes)
    residual, energy = torch.zeros(stages, dtype=torch.float64), 0.0
    for audio in clips:
        latents = codec.latents(audio)
        codes = codec.quantizer.encode(latents)
        energy += float(latents.cpu().double().square().sum())
        for stage in range(stages):
            error = latents - codec.quantizer.decode(codes[:, : stage + 1])
            residual[stage] += float(error.cpu().double().square().sum())
    return [round(value, 4) for value in (residual / max(energy, 1e-30)).tolist()]
