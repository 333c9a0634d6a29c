"""Measure the bits per second of a token dataset under context, by a tiny language model.

    codec-encode runs/mine /speech -o tokens
    python scripts/token_entropy.py tokens -o entropy.csv --minutes 5

A causal Transformer over frames predicts each code from all codes of the frames before it and from the codes
of the stages below it in its frame. A tenth of the recordings chooses the best of ten states of the training,
another tenth is measured. `entropy.csv` has a row for each stage and one for their sum: bits per second of
codes of equal length, of an ideal coder with the frequencies of the codes, and of the model. Frequencies and
model are of the training's recordings. The same seed and `--steps` repeat a result. Ctrl-C ends the training
early, and its best state is measured.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.commands.errors import report_errors
from codec.config import ConfigError
from codec.layers.transformer import Transformer
from codec.system.device import default_device
from codec.system.files import write_whole
from codec.system.progress import progress_bar
from codec.tokens.dataset import TokenDataset

COLUMNS = ("stage", "codebook_size", "nominal_bps", "unigram_bps", "model_bps")
CHANNELS, LAYERS, HEADS, WINDOW = 128, 4, 4, 128
BATCH, CROP = 8, 128  # recordings and frames of a training step
RATE, WARM_UP, WEIGHT_DECAY = 2e-3, 0.05, 0.05
STATES = 10  # of the training, of which the best is measured
PIECE = 1000  # frames that are measured together
COUNTED, MEASURED, COMPARED = 2_000_000, 100_000, 5_000  # most frames of each part of the dataset
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
        inputs = codes.clamp(min=0).unbind(1)
        frames = torch.stack([stage.past(code) for stage, code in zip(self.stages, inputs, strict=True)]).sum(
            0
        )
        past = torch.cat([self.start.expand(len(codes), 1, -1), frames[:, :-1]], 1)
        x = self.transformer(past.transpose(1, 2)).transpose(1, 2)
        losses = []
        for stage, code, target in zip(self.stages, inputs, codes.unbind(1), strict=True):
            logits = stage(x).transpose(1, 2)
            losses.append(functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum"))
            x = x + stage.code(code)
        return torch.stack(losses)


def logarithms(counts: Tensor) -> Tensor:
    """Natural logarithms of the codes' frequencies, with half an occurrence more of each."""
    smoothed = counts.double() + 0.5
    return (smoothed / smoothed.sum()).log().float()


def divide(recordings: int, seed: int) -> Parts:
    """Draw a tenth of the recordings twice; ConfigError for fewer than three."""
    if recordings < 3:
        raise ConfigError(
            f"the dataset has {recordings} recordings: one to train on and two others are needed"
        )
    order, tenth = np.random.default_rng(seed).permutation(recordings), max(1, recordings // 10)
    return Parts(order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth])


def pieces(tokens: TokenDataset, numbers: np.ndarray, most: int) -> Iterator[Tensor]:
    """Yield codes `[1, K, F]` of at most `PIECE` frames, and at most `most` frames in all."""
    for number in map(int, numbers):
        frames = min(int(tokens.index.n_frames[number]), most)
        for start in range(0, frames, PIECE):
            yield tokens.codes(number, start, min(start + PIECE, frames))[None]
        most -= frames
        if most <= 0:
            break


def count(tokens: TokenDataset, numbers: np.ndarray) -> list[Tensor]:
    """Number of occurrences of each code of each stage."""
    counts = [torch.zeros(size, dtype=torch.int64) for size in tokens.codebook_sizes]
    for codes in pieces(tokens, numbers, COUNTED):
        for total, code in zip(counts, codes[0], strict=True):
            total += torch.bincount(code, minlength=len(total))
    return counts


def crops(tokens: TokenDataset, numbers: np.ndarray, random: np.random.Generator) -> Tensor:
    """Random crops `[B, K, F]` of recordings drawn by their length, padded with -1."""
    lengths = np.asarray(tokens.index.n_frames)[numbers]
    batch = torch.full((BATCH, len(tokens.codebook_sizes), CROP), -1)
    for row, n in zip(batch, random.choice(len(numbers), BATCH, p=lengths / lengths.sum()), strict=True):
        start = int(random.integers(max(1, lengths[n] - CROP + 1)))
        codes = tokens.codes(int(numbers[n]), start, min(start + CROP, int(lengths[n])))
        row[:, : codes.shape[1]] = codes
    return batch


@torch.inference_mode()
def bits(model: TokenModel, tokens: TokenDataset, numbers: np.ndarray, most: int) -> np.ndarray:
    """Bits per frame of each stage `[K]` under a model."""
    total, frames, device = np.zeros(len(tokens.codebook_sizes)), 0, model.start.device
    for codes in pieces(tokens, numbers, most):
        total += model(codes.to(device)).double().cpu().numpy() / math.log(2)
        frames += codes.shape[2]
    return total / frames


def unigram_bits(counts: Sequence[Tensor], tokens: TokenDataset, numbers: np.ndarray) -> np.ndarray:
    """Bits per frame of each stage `[K]` of an ideal coder with these frequencies."""
    tables, total, frames = [logarithms(count) for count in counts], np.zeros(len(counts)), 0
    for codes in pieces(tokens, numbers, MEASURED):
        sums = [-float(table[code].double().sum()) for table, code in zip(tables, codes[0], strict=True)]
        total, frames = total + np.array(sums) / math.log(2), frames + codes.shape[2]
    return total / frames


def train(model: TokenModel, tokens: TokenDataset, parts: Parts, steps: int, seed: int) -> TokenModel:
    """Train, and return the best state; on Ctrl-C, the best one so far."""
    random, device = np.random.default_rng(seed), model.start.device
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.95), weight_decay=WEIGHT_DECAY)
    best, least = copy.deepcopy(model), math.inf
    states = {round(steps * n / STATES) for n in range(1, STATES + 1)}
    try:
        for step in progress_bar(range(1, steps + 1), "training", unit="step"):
            progress = step / steps
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, progress / WARM_UP) * (1 + math.cos(math.pi * progress)) / 2
            codes = crops(tokens, parts.training, random).to(device)
            loss = model(codes).sum() / (codes[:, 0] >= 0).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step in states and (value := bits(model, tokens, parts.choice, COMPARED).sum()) < least:
                best, least = copy.deepcopy(model), value
    except KeyboardInterrupt:
        if least == math.inf:
            raise
        print("training ended early: its best state is measured", file=sys.stderr)
    return best


def steps_in(seconds: float, model: TokenModel, tokens: TokenDataset, parts: Parts, seed: int) -> int:
    """Number of training steps in a time, at the speed of a few steps of a copy."""
    copied, began = copy.deepcopy(model), time.monotonic()
    train(copied, tokens, parts._replace(choice=parts.choice[:0]), PROBE, seed)
    return max(STATES, int(SHARE * seconds / (time.monotonic() - began) * PROBE))


def measure(
    tokens: TokenDataset, *, steps: int | None, minutes: float, seed: int, device: str
) -> list[dict[str, Any]]:
    """Rows of the table; ConfigError for datasets that no model can be trained on."""
    sizes = tokens.codebook_sizes
    if not sizes or max(sizes) > LARGEST:
        raise ConfigError(f"{tokens.path}: needs codes of at most {LARGEST} a stage, has {list(sizes)}")
    parts = divide(len(tokens), seed)
    counts = count(tokens, parts.training)
    torch.manual_seed(seed)
    model = TokenModel(counts).to(device)
    if steps is None:
        steps = steps_in(60 * minutes, model, tokens, parts, seed)
        print(f"{steps} steps: --steps {steps} repeats them", file=sys.stderr)
    model = train(model, tokens, parts, steps, seed)
    nominal = [math.log2(size) for size in sizes]
    unigram = unigram_bits(counts, tokens, parts.measured).tolist()
    columns = (sizes, nominal, unigram, bits(model, tokens, parts.measured, MEASURED).tolist())
    values = [(f"{n}", *row) for n, row in enumerate(zip(*columns, strict=True), start=1)]
    values.append(("total", "", *(sum(column) for column in columns[1:])))
    rates = [(*row[:2], *(round(value * tokens.frame_rate, 2) for value in row[2:])) for row in values]
    return [dict(zip(COLUMNS, row, strict=True)) for row in rates]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("tokens", type=Path, help="token dataset of codec-encode")
    add("-o", "--output", type=Path, required=True, help="the CSV to write")
    add("--minutes", type=float, default=5.0, help="of training; default: %(default)s")
    add("--steps", type=int, help="of training, instead of --minutes")
    add("--num-quantizers", type=int, help="first stages only; default: all")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--device", help="default: a GPU if there is one")
    options = parser.parse_args(argv)
    if not options.minutes > 0 or (options.steps is not None and options.steps < 1):
        raise ConfigError("--minutes must be above 0, and --steps at least 1")
    if options.output.is_dir() or not options.output.parent.is_dir():  # before a training that would be lost
        raise ConfigError(f"--output {options.output}: name a file in a folder that exists")
    rows = measure(
        TokenDataset(options.tokens, options.num_quantizers),
        steps=options.steps,
        minutes=options.minutes,
        seed=options.seed,
        device=options.device or default_device(),
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(options.output, text.getvalue())
    print(text.getvalue(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
