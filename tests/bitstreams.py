"""Entropy tables of random integers, and ways to write files with them, for tests."""

import io
from pathlib import Path

import numpy as np

from codec.bitstream.entropy_model import EntropyTables, StageTables, alphabet, place_contexts
from codec.bitstream.writer import BitstreamReader, BitstreamWriter, Header

CODEC_ID = "c0dec" + 59 * "0"


def random_tables(sizes: tuple[int, ...], seed: int = 0, rank: int = 4) -> EntropyTables:
    """Skewed tables with all contexts."""
    random, stages = np.random.default_rng(seed), []
    for stage, size in enumerate(sizes):
        pairs = [(stage, -1), (stage, -2), *((below, shift) for below in range(stage) for shift in (0, -1))]
        contexts = place_contexts(pairs, sizes)
        symbols = alphabet(size)
        stages.append(
            StageTables(
                random.integers(-8000, 0, symbols, dtype=np.int32),
                random.integers(-60, 61, (rank, symbols), dtype=np.int8),
                random.integers(-60, 61, (contexts[-1].missing + 1, rank), dtype=np.int8),
                contexts,
            )
        )
    return EntropyTables(CODEC_ID, sizes, tuple(stages))


def random_codes(sizes: tuple[int, ...], frames: int, seed: int = 0) -> np.ndarray:
    """Codes `[K, F]`, small ones more often."""
    random = np.random.default_rng(seed)
    return np.array([(random.random(frames) ** 3 * size).astype(np.int64) for size in sizes])


def header_of(sizes: tuple[int, ...], tables: EntropyTables | None, chunk_frames: int = 8) -> Header:
    return Header(CODEC_ID, tables.tables_id if tables else "", 16000, 1, 320, chunk_frames, sizes)


def written(codes: np.ndarray, sizes: tuple[int, ...], tables: EntropyTables | None, chunk_frames: int = 8):
    """The bytes of a file."""
    file = io.BytesIO()
    writer = BitstreamWriter(file, header_of(sizes, tables, chunk_frames), tables)
    writer.write(codes)
    writer.finish(codes.shape[1] * 320 - 7)
    return file.getvalue()


def decoded(path: Path, tables: EntropyTables | None, num_quantizers: int | None = None) -> np.ndarray:
    """All codes of a file."""
    with BitstreamReader(path) as reader:
        return np.concatenate([chunk.codes for chunk in reader.chunks(tables, num_quantizers)], axis=1)
