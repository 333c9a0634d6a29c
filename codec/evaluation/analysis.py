"""Analysis of a model beside its scores: costs, token stability, energies of stages."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from codec.evaluation.complexity import Cost, cost
from codec.evaluation.reading import Recordings, read_clips
from codec.evaluation.runs import read_json
from codec.evaluation.stability import stage_energy, token_stability
from codec.evaluation.systems import NeuralCodec
from codec.system.files import write_whole

ANALYZED_CLIPS = 8  # number of clips for token stability


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
