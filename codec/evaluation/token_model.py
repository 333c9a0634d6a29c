"""Tiny language model of a codec's codes: their bits per second under context, stage by stage.

A causal Transformer over frames predicts each code from all codes of the frames before it and from the codes
of the stages below it in its frame. A tenth of the recordings chooses the best of ten states of the training,
another tenth is measured. Original to this project.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.config import ConfigError
from codec.layers.transformer import Transformer
from codec.system.progress import progress_bar

SEED = 0
CHANNELS, LAYERS, HEADS, WINDOW = 128, 4, 4, 128
BATCH, CROP = 8, 128  # recordings and frames of a training step
RATE, WARM_UP, WEIGHT_DECAY = 2e-3, 0.05, 0.05
STATES = 10  # of the training, of which the best is measured
PIECE = 1000  # frames that are measured together
COUNTED, MEASURED, COMPARED = 2_000_000, 100_000, 5_000  # most frames of each part of the recordings
PROBE = 8  # steps that measure the speed
SHARE = 0.85  # of the time for steps; the rest compares states
LARGEST = 2**16  # codes of a codebook


class Parts(NamedTuple):
    """Numbers of the recordings for training, for the choice of a state, and for the measurement."""

    training: np.ndarray
    choice: np.ndarray
    measured: np.ndarray


class Stage(nn.Module):
    """Logarithms of the probabilities of a stage's codes, initially of their frequencies."""

    def __init__(self, counts: Tensor):
        super().__init__()
        channels = CHANNELS
        self.code = nn.Embedding(len(counts), channels)
        self.past = nn.Embedding(len(counts), channels)
        self.hidden = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            nn.Linear(2 * channels, channels),
        )
        self.norm = nn.LayerNorm(channels)
        self.output = nn.Linear(channels, len(counts))
        for table in (self.code, self.past):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.output.weight)
        self.output.bias.data.copy_(logarithms(counts))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, F, V]` of contexts `[B, F, C]`."""
        return self.output(self.norm(x + self.hidden(x)))


class TokenModel(nn.Module):
    """Language model of codes `[B, K, F]`, from the number of occurrences of each code of each stage."""

    def __init__(self, counts: Sequence[Tensor]):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(CHANNELS))
        options = {"num_layers": LAYERS, "num_heads": HEADS, "window": WINDOW, "layer_scale": 0.3}
        self.transformer = Transformer(CHANNELS, **options)
        self.stages = nn.ModuleList(Stage(count) for count in counts)

    def forward(self, codes: Tensor) -> Tensor:
        """Cross-entropies `[K]` in nats, summed over the frames; codes of -1 are padding."""
        stages, inputs = cast(Sequence[Stage], self.stages), codes.clamp(min=0).unbind(1)
        pasts = [stage.past(code) for stage, code in zip(stages, inputs, strict=True)]
        frames = torch.stack(pasts).sum(0)
        past = torch.cat([self.start.expand(len(codes), 1, -1), frames[:, :-1]], 1)
        x = self.transformer(past.transpose(1, 2)).transpose(1, 2)
        losses = []
        for stage, code, target in zip(stages, inputs, codes.unbind(1), strict=True):
            logits = stage(x).transpose(1, 2)
            losses.append(functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum"))
            x = x + stage.code(code)
        return torch.stack(losses)


def logarithms(counts: Tensor) -> Tensor:
    """Natural logarithms of the codes' frequencies, with half an occurrence more of each."""
    smoothed = counts.double() + 0.5
    return (smoothed / smoothed.sum()).log().float()


def divide(recordings: int) -> Parts:
    """Draw a tenth of the recordings twice; ConfigError for fewer than three."""
    if recordings < 3:
        raise ConfigError(f"of {recordings} recordings, one to train on and two others are needed")
    order, tenth = np.random.default_rng(SEED).permutation(recordings), max(1, recordings // 10)
    return Parts(order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth])


def pieces(recordings: Sequence[Tensor], numbers: np.ndarray, most: int) -> Iterator[Tensor]:
    """Yield codes `[1, K, F]` of at most `PIECE` frames, and at most `most` frames in all."""
    for number in numbers:
        codes = recordings[number][None, :, :most]
        yield from codes.split(PIECE, dim=2)
        most -= codes.shape[2]
        if most <= 0:
            break


def count(recordings: Sequence[Tensor], numbers: np.ndarray, sizes: Sequence[int]) -> list[Tensor]:
    """Number of occurrences of each code of each stage."""
    counts = [torch.zeros(size, dtype=torch.int64) for size in sizes]
    for codes in pieces(recordings, numbers, COUNTED):
        for total, code in zip(counts, codes[0], strict=True):
            total += torch.bincount(code, minlength=len(total))
    return counts


def crops(recordings: Sequence[Tensor], numbers: np.ndarray, random: np.random.Generator) -> Tensor:
    """Random crops `[B, K, F]` of recordings drawn by their length, padded with -1."""
    lengths = np.array([recordings[number].shape[1] for number in numbers])
    batch = torch.full((BATCH, len(recordings[0]), CROP), -1)
    for row, n in zip(batch, random.choice(len(numbers), BATCH, p=lengths / lengths.sum()), strict=True):
        start = int(random.integers(max(1, lengths[n] - CROP + 1)))
        codes = recordings[int(numbers[n])][:, start : start + CROP]
        row[:, : codes.shape[1]] = codes
    return batch


@torch.inference_mode()
def bits(model: TokenModel, recordings: Sequence[Tensor], numbers: np.ndarray, most: int) -> np.ndarray:
    """Bits per frame of each stage `[K]` under a model."""
    total, frames, device = np.zeros(len(recordings[0])), 0, model.start.device
    for codes in pieces(recordings, numbers, most):
        total += model(codes.to(device)).double().cpu().numpy() / math.log(2)
        frames += codes.shape[2]
    return total / max(1, frames)


def unigram_bits(counts: Sequence[Tensor], recordings: Sequence[Tensor], numbers: np.ndarray) -> np.ndarray:
    """Bits per frame of each stage `[K]` of an ideal coder with these frequencies."""
    tables, total, frames = [logarithms(count) for count in counts], np.zeros(len(counts)), 0
    for codes in pieces(recordings, numbers, MEASURED):
        sums = [-float(table[code].double().sum()) for table, code in zip(tables, codes[0], strict=True)]
        total, frames = total + np.array(sums) / math.log(2), frames + codes.shape[2]
    return total / frames


def train(model: TokenModel, recordings: Sequence[Tensor], parts: Parts, steps: int, name: str) -> TokenModel:
    """Train, and return the best state."""
    random, device = np.random.default_rng(SEED), model.start.device
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.95), weight_decay=WEIGHT_DECAY)
    best, least = copy.deepcopy(model), math.inf
    states = {round(steps * n / STATES) for n in range(1, STATES + 1)}
    for step in progress_bar(range(1, steps + 1), f"token model of {name}", unit="step"):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, progress / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2
        codes = crops(recordings, parts.training, random).to(device)
        loss = model(codes).sum() / (codes[:, 0] >= 0).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step in states and (value := bits(model, recordings, parts.choice, COMPARED).sum()) < least:
            best, least = copy.deepcopy(model), value
    return best


def steps_in(seconds: float, model: TokenModel, recordings: Sequence[Tensor], parts: Parts) -> int:
    """Number of training steps in a time, at the speed of a few steps of a copy."""
    copied, began = copy.deepcopy(model), time.monotonic()
    train(copied, recordings, parts._replace(choice=parts.choice[:0]), PROBE, "a probe")
    return max(STATES, int(SHARE * seconds / (time.monotonic() - began) * PROBE))


def measure(
    recordings: Sequence[Tensor],
    sizes: Sequence[int],
    minutes: float,
    device: str,
    name: str = "codec",
    steps: int | None = None,
) -> tuple[list[list[float]], int]:
    """Bits per frame of each stage, and the number of training steps, by default those of `minutes`.

    `recordings` are codes `[K, F]`, int64, of codebooks of these `sizes`. A stage has its nominal bits, those
    of an ideal coder with the frequencies of its codes, and those under the model; frequencies and model are
    of the training's recordings. ConfigError for codes that no model can be trained on.
    """
    if not sizes or max(sizes) > LARGEST:
        content = f"codebooks of up to {max(sizes)} codes" if sizes else "continuous latents"
        raise ConfigError(f"it is for codes, at most {LARGEST} a stage, and these are {content}")
    parts = divide(len(recordings))
    counts = count(recordings, parts.training, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = TokenModel(counts).to(device)
    steps = steps or steps_in(60 * minutes, model, recordings, parts)
    model = train(model, recordings, parts, steps, name)
    columns = [math.log2(size) for size in sizes], unigram_bits(counts, recordings, parts.measured).tolist()
    rows = zip(*columns, bits(model, recordings, parts.measured, MEASURED).tolist(), strict=True)
    return [list(row) for row in rows], steps
