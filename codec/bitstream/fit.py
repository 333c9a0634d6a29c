"""Fitting of entropy tables to codes: multinomial logistic regression in floats, rounded to integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.bitstream.entropy_model import (
    LOG_BITS,
    Context,
    EntropyTables,
    StageTables,
    alphabet,
    low_bits,
    place_contexts,
)
from codec.config import ConfigError
from codec.system.progress import progress_bar

RANK = 32  # dimension of a context's embeddings
UNIT = 2 ** (LOG_BITS // 2)  # of embeddings and outputs; their products have LOG_BITS fractional bits
BATCH, EPOCHS, RATE = 2048, 4, 0.02
WEIGHT_DECAY = 0.3  # best of 0 to 2 on held-out speakers
LEAST_STEPS, MOST_STEPS = 200, 4000
HELD_OUT = 10  # every tenth piece is held out, to compare contexts with static tables
PIECE = 1000  # frames; longer sequences are cut, to train starts without contexts


class Fit(NamedTuple):
    """Tables, and bits per symbol of held-out codes by stage, with static tables and with these."""

    tables: EntropyTables
    static_bits: tuple[float, ...]
    bits: tuple[float, ...]


def fit_tables(
    sequences: Iterable[np.ndarray],
    codec_id: str,
    codebook_sizes: Sequence[int],
    max_frames: int = 2_000_000,
    device: str | torch.device = "cpu",
) -> Fit:
    """Fit tables to sequences of codes `[K, F]`, one per recording; deterministic.

    At most the first `max_frames` frames are used: shuffle a longer corpus. A stage gets static tables
    unless contexts save bits on held-out codes. ConfigError for too few codes, ValueError for codes of
    other codebooks.
    """
    if not codebook_sizes:
        raise ConfigError("this codec has continuous latents and no codes to fit tables to")
    pieces = collect(sequences, tuple(codebook_sizes), max_frames)
    held_out, training = pieces[::HELD_OUT], [p for i, p in enumerate(pieces) if i % HELD_OUT]
    if not training:
        raise ConfigError("too few codes to fit tables to: two recordings, or 1001 frames, are the least")
    frames, choices = sum(piece.shape[1] for piece in held_out), []
    for stage in progress_bar(range(len(codebook_sizes)), "fitting", unit="stage"):
        static = fit_static([piece[stage] for piece in training], alphabet(codebook_sizes[stage]))
        fitted = fit_contexts(training, stage, codebook_sizes, static, device)
        static_bits, fitted_bits = (
            sum(tables.bits(piece[: stage + 1]) for piece in held_out) / frames for tables in (static, fitted)
        )
        better = fitted if fitted_bits < static_bits else static
        choices.append((better, static_bits, min(static_bits, fitted_bits)))
    stages, static_bits, bits = zip(*choices, strict=True)
    return Fit(EntropyTables(codec_id, tuple(codebook_sizes), stages), static_bits, bits)


def collect(
    sequences: Iterable[np.ndarray], codebook_sizes: tuple[int, ...], max_frames: int
) -> list[np.ndarray]:
    """Pieces of symbols `[K, <= PIECE]` of the first `max_frames` frames."""
    shifts = np.array([low_bits(size) for size in codebook_sizes])[:, None]
    sizes, pieces, frames = np.array(codebook_sizes)[:, None], [], 0
    for codes in sequences:
        if codes.ndim != 2 or len(codes) != len(sizes) or ((codes < 0) | (codes >= sizes)).any():
            raise ValueError(f"codes {list(codes.shape)} are not of codebooks {codebook_sizes}")
        symbols = (codes[:, : max_frames - frames].astype(np.int64) >> shifts).astype(np.int16)
        pieces += [symbols[:, i : i + PIECE] for i in range(0, symbols.shape[1], PIECE)]
        frames += symbols.shape[1]
        if frames >= max_frames:
            break
    return pieces


def fit_static(symbols: Sequence[np.ndarray], size: int) -> StageTables:
    """Fit tables without contexts to the symbols' frequencies."""
    counts = np.bincount(np.concatenate(symbols), minlength=size) + 0.5
    bias = np.round(np.log2(counts / counts.max()) * 2**LOG_BITS).astype(np.int32)
    return StageTables(bias, np.zeros((0, size), np.int8), np.zeros((0, 0), np.int8))


def fit_contexts(
    pieces: Sequence[np.ndarray],
    stage: int,
    codebook_sizes: Sequence[int],
    static: StageTables,
    device: str | torch.device,
) -> StageTables:
    """Fit tables with contexts: the stage's last two symbols, current and last of each stage below."""
    pairs = [(stage, -1), (stage, -2)] + [(below, shift) for below in range(stage) for shift in (0, -1)]
    contexts = place_contexts(pairs, codebook_sizes)
    empty = StageTables(static.bias, static.output, static.embeddings, contexts)
    rows = np.concatenate([empty.rows(piece, contexts).T.astype(np.int32) for piece in pieces])
    symbols = torch.from_numpy(np.concatenate([piece[stage] for piece in pieces]).astype(np.int64))
    model = LogBilinear(contexts, torch.from_numpy(static.bias) / 2**LOG_BITS).to(device)
    steps = min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * len(symbols) // BATCH))
    train(model, torch.from_numpy(rows), symbols, steps, device)
    return model.tables(contexts)


class LogBilinear(nn.Module):
    """Log-bilinear model: base-2 logarithms of the symbols' frequencies from the rows of their contexts."""

    def __init__(self, contexts: Sequence[Context], bias: Tensor):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        rows, size = contexts[-1].missing + 1, len(bias)
        self.embeddings = nn.Parameter(torch.randn(rows, RANK, generator=generator) / 8)
        self.output = nn.Parameter(torch.randn(RANK, size, generator=generator) / 8)
        self.bias = nn.Parameter(bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Logarithms `[N, V]` for rows `[N, contexts]`."""
        return functional.embedding_bag(rows, self.embeddings, mode="sum") @ self.output + self.bias

    @torch.no_grad()
    def tables(self, contexts: tuple[Context, ...]) -> StageTables:
        """Round to the nearest integer tables."""
        # Equal ranges of both factors minimize the rounding error of their product.
        ratio = (self.output.abs().amax(1) / self.embeddings.abs().amax(0)).clamp(1e-3, 1e3).sqrt()
        embeddings, output = self.embeddings * ratio, self.output / ratio[:, None]
        bias = (self.bias - self.bias.max()) * 2**LOG_BITS
        embeddings, output = (
            (array * UNIT).round().clamp(-127, 127).to(torch.int8).cpu().numpy()
            for array in (embeddings, output)
        )
        bias = bias.round().clamp(-(2**24), 0).int().cpu().numpy()
        return StageTables(bias, output, embeddings, contexts)


def train(model: LogBilinear, rows: Tensor, symbols: Tensor, steps: int, device: str | torch.device) -> None:
    """Fit by AdamW, with a learning rate that rises over a tenth of the steps and falls to zero."""
    vectors = {"params": [model.embeddings, model.output], "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.AdamW([vectors, {"params": [model.bias], "weight_decay": 0}], lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(symbols), (min(BATCH, len(symbols)),), generator=generator)
        logits = model(rows[batch].to(device)) * log(2)
        loss = functional.cross_entropy(logits, symbols[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
