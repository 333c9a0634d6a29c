"""Entropy model: symbol frequencies for the range coder from integer tables, the same on every machine.

The frequency of symbol x is 2^(bias[x] + sum over contexts of embedding . output[:, x]), all in integers:
fixed-point logarithms, then a table of powers of two. Contexts are codes already decoded, of earlier frames
and of the stages below (a log-bilinear model, Mnih and Hinton 2007).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import NamedTuple

import numpy as np

from codec.bitstream.range_coder import RangeDecoder, encode_intervals, pack_bits, unpack_bits
from codec.config import ConfigError

FORMAT = "codec entropy tables 1"
LOG_BITS = 10  # fractional bits of bias, and of embeddings times output
POWER_BITS = 8  # fractional bits of the exponents in POWERS
ALPHABET_BITS = 12  # modeled bits of a code; the lower bits of larger codes are stored raw
BLOCK = 64  # frames per block: their frequencies stay in the processor's cache


def integer_powers() -> np.ndarray:
    """Table of floor(2^(16 - i / 256)) for i in 0..4095, int32, by integer square roots."""
    powers = []
    for i in range(16 << POWER_BITS):
        root = 1 << (16 << POWER_BITS) - i
        for _ in range(POWER_BITS):
            root = isqrt(root)
        powers.append(root)
    return np.array(powers, np.int32)


POWERS = integer_powers()


class TablesError(ConfigError):
    """Missing or damaged entropy tables, or tables of another codec."""


def low_bits(codebook_size: int) -> int:
    """Number of low bits of a code that are stored raw; 0 unless the codebook exceeds `ALPHABET_BITS`."""
    return max(0, (codebook_size - 1).bit_length() - ALPHABET_BITS)


def alphabet(codebook_size: int) -> int:
    """Number of symbols, the values of a code without its low bits."""
    return (codebook_size - 1 >> low_bits(codebook_size)) + 1


class Context(NamedTuple):
    """Symbol of `stage` at `shift` <= 0 frames; its embeddings are rows `first` to `missing`."""

    stage: int
    shift: int
    first: int
    missing: int


def place_contexts(pairs: Sequence[tuple[int, int]], codebook_sizes: Sequence[int]) -> tuple[Context, ...]:
    """Contexts of (stage, shift) pairs with consecutive rows of embeddings."""
    contexts, first = [], 0
    for stage, shift in pairs:
        missing = first + alphabet(codebook_sizes[stage])
        contexts.append(Context(stage, shift, first, missing))
        first = missing + 1
    return tuple(contexts)


@dataclass(frozen=True)
class StageTables:
    """Tables of one stage with V symbols; contexts are in this stage and in the stages below.

    `bias` int32 `[V]` and `embeddings` int8 `[N, R]` times `output` int8 `[R, V]` are in bits * 2^LOG_BITS.
    Static tables have no contexts.
    """

    bias: np.ndarray
    output: np.ndarray
    embeddings: np.ndarray
    contexts: tuple[Context, ...] = ()

    def encode(self, symbols: np.ndarray) -> bytes:
        """Encode the last row of symbols `[K, F]`; the other rows are the stages below."""
        blocks = list(self.intervals(symbols))
        return encode_intervals(*(np.concatenate(part).tolist() for part in zip(*blocks, strict=True)))

    def bits(self, symbols: np.ndarray) -> float:
        """Ideal number of bits of the last row of symbols `[K, F]`."""
        blocks = self.intervals(symbols)
        return float(sum(np.log2(totals / frequencies).sum() for _, frequencies, totals in blocks))

    def intervals(self, symbols: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield start, frequency and total of the last row's symbols for each block of frames."""
        rows = self.rows(symbols, self.contexts)
        for begin in range(0, symbols.shape[1], BLOCK):
            cumulative = self.cumulative(self.logits(rows[:, begin : begin + BLOCK]))
            targets = symbols[-1, begin : begin + BLOCK, None].astype(np.int64)
            ends = np.take_along_axis(cumulative, targets, axis=1)[:, 0]
            lower = np.take_along_axis(cumulative, np.maximum(targets - 1, 0), axis=1)[:, 0]
            starts = np.where(targets[:, 0] > 0, lower, 0)
            yield starts, ends - starts, cumulative[:, -1]

    def decode(self, data: bytes, below: np.ndarray) -> np.ndarray:
        """Decode symbols int64 `[F]`, given those of the stages below, `[K - 1, F]`."""
        decoder, (stage, frames) = RangeDecoder(data), below.shape
        # Stages below are complete, so their logits come in blocks; contexts of this stage wait for a symbol.
        lower = self.rows(below, [context for context in self.contexts if context.stage < stage])
        stage_contexts = [context for context in self.contexts if context.stage == stage]
        output, embeddings = self.output.astype(np.int32), self.embeddings.astype(np.int32)
        symbols: list[int] = []
        for begin in range(0, frames, BLOCK):
            for frame, logits in enumerate(self.logits(lower[:, begin : begin + BLOCK]), begin):
                if stage_contexts:
                    rows = [
                        first + symbols[shift] if frame + shift >= 0 else missing
                        for _, shift, first, missing in stage_contexts
                    ]
                    logits += np.einsum("r,rv->v", embeddings[rows].sum(axis=0, dtype=np.int32), output)
                symbols.append(decoder.symbol(self.cumulative(logits)))
        return np.array(symbols, np.int64)

    def rows(self, symbols: np.ndarray, contexts: Sequence[Context]) -> np.ndarray:
        """Row indices of `embeddings`, `[contexts, F]`, for symbols `[K, F]`."""
        frames = symbols.shape[1]
        rows = np.empty((len(contexts), frames), np.int64)
        for row, context in zip(rows, contexts, strict=True):
            row[:] = context.missing
            row[-context.shift :] = symbols[context.stage, : max(0, frames + context.shift)]
            row[-context.shift :] += context.first
        return rows

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Fixed-point logarithms int32 `[F, V]` of the frequencies, for embeddings `rows`."""
        hidden = self.embeddings[rows].sum(axis=0, dtype=np.int32)
        return np.einsum("fr,rv->fv", hidden, self.output.astype(np.int32)) + self.bias

    def cumulative(self, logits: np.ndarray) -> np.ndarray:
        """Inclusive cumulative sums int32 `[..., V]` of the frequencies, which are 1 to 2^16."""
        below = logits.max(axis=-1, keepdims=True) - logits
        below >>= LOG_BITS - POWER_BITS
        np.minimum(below, len(POWERS) - 1, out=below)
        return POWERS.take(below).cumsum(axis=-1, dtype=np.int32)


@dataclass(frozen=True)
class EntropyTables:
    """Tables of all stages of the codec with id `codec_id`."""

    codec_id: str
    codebook_sizes: tuple[int, ...]
    stages: tuple[StageTables, ...]

    def encode(self, codes: np.ndarray) -> bytes:
        """Encode the last stage's codes of `[K, F]`, given those of the stages below."""
        codes, bits = codes.astype(np.int64), low_bits(self.codebook_sizes[len(codes) - 1])
        low = pack_bits(codes[-1] & (1 << bits) - 1, bits)
        return low + self.stages[len(codes) - 1].encode(self.symbols(codes))

    def decode(self, data: bytes, below: np.ndarray) -> np.ndarray:
        """Decode codes int64 `[F]` of the stage above `below` `[K, F]`; CorruptError for invalid bytes."""
        stage, frames = below.shape
        bits = low_bits(self.codebook_sizes[stage])
        low = -(-frames * bits // 8)
        high = self.stages[stage].decode(data[low:], self.symbols(below))
        return high << bits | unpack_bits(data[:low], bits, frames)

    def bits(self, codes: np.ndarray) -> list[float]:
        """Ideal number of bits of each stage of codes `[K, F]`."""
        symbols, frames = self.symbols(codes.astype(np.int64)), codes.shape[1]
        return [
            self.stages[stage].bits(symbols[: stage + 1]) + frames * low_bits(self.codebook_sizes[stage])
            for stage in range(len(codes))
        ]

    def symbols(self, codes: np.ndarray) -> np.ndarray:
        """Codes `[K, F]` without their low bits."""
        shifts = [low_bits(size) for size in self.codebook_sizes[: len(codes)]]
        return codes >> np.array(shifts, np.int64)[:, None]

    @cached_property
    def tables_id(self) -> str:
        """First 32 hexadecimal digits of the tables' SHA-256."""
        digest = hashlib.sha256(json.dumps(self.metadata(), sort_keys=True).encode())
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name} {array.dtype} {list(array.shape)}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def metadata(self) -> dict[str, str]:
        """Metadata of the tables' file: format, codec id, codebook sizes and contexts."""
        contexts = [[[c.stage, c.shift] for c in stage.contexts] for stage in self.stages]
        return {
            "format": FORMAT,
            "codec_id": self.codec_id,
            "codebook_sizes": json.dumps(self.codebook_sizes),
            "contexts": json.dumps(contexts),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by their names in the file, little-endian on every machine."""
        kinds = {"bias": "<i4", "output": "i1", "embeddings": "i1"}
        return {
            f"{stage}.{name}": np.ascontiguousarray(getattr(tables, name), kind)
            for stage, tables in enumerate(self.stages)
            for name, kind in kinds.items()
        }
