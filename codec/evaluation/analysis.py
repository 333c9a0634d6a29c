"""Analysis of a model beside its scores: costs, stability of its tokens, energies of its stages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.evaluation.complexity import Cost, cost
from codec.evaluation.reading import Recordings, read_clips
from codec.evaluation.runs import read_json
from codec.evaluation.systems import NeuralCodec
from codec.layers.streaming import NotStreamable
from codec.model.codec import Codec
from codec.system.files import write_whole

ANALYZED_CLIPS = 8  # number of clips for token stability
GAIN = 10 ** (6 / 20)
BATCH = (1.0, 0.5, -1.0, 0.25)  # gains of the items of a batch, of which the first is compared


@dataclass(frozen=True)
class Analysis:
    """Id of a codec, its cost, shares of codes that a perturbation changes, energies left after stages."""

    codec: str
    cost: Cost
    stability: dict[str, float]
    energy_left: list[float]


def analyze(
    system: NeuralCodec, files: Recordings, path: Path, max_seconds: float, fresh: bool = False
) -> Analysis:
    """Measure costs and token stability; cached in a file until the codec changes, or `fresh`."""
    identity = system.codec.codec_id()
    if path.is_file() and not fresh:
        cache = read_json(path)
        if cache.get("codec") == identity:
            cache["cost"] = Cost(**cache["cost"])
            return Analysis(**cache)
    clips = list(itertools.islice(read_clips(system, files, max_seconds), ANALYZED_CLIPS))
    analysis = Analysis(
        codec=identity,
        cost=cost(system.codec, clips[0]),
        stability=token_stability(system.codec, clips),
        energy_left=stage_energy(system.codec, clips),
    )
    write_whole(path, json.dumps(asdict(analysis), indent=2) + "\n")
    return analysis


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
        "batch": lambda audio, codes: codec.encode(torch.cat([gain * audio for gain in BATCH]))[:1],
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


def can_stream(codec: Any) -> bool:
    """Return True if a codec has an encoder with a streaming form."""
    try:
        return hasattr(codec, "streaming") and bool(codec.streaming().require("encoder"))
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
