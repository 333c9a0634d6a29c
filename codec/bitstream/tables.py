"""File of a codec's entropy tables: written atomically, validated on reading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from codec.bitstream.entropy_model import (
    FORMAT,
    Context,
    EntropyTables,
    StageTables,
    TablesError,
    alphabet,
    place_contexts,
)
from codec.system.files import written_whole

MOST_STAGES, LARGEST_CODEBOOK, MOST_FRAMES_BACK = 64, 2**24, 64
MOST_CONTEXTS, LARGEST_RANK, LARGEST_BIAS = 256, 128, 2**24  # so that no sum in the tables reaches 2^31


def save_tables(tables: EntropyTables, path: str | Path) -> None:
    """Write the tables atomically; OSError if that fails."""
    with written_whole(path, durable=True) as temporary:
        temporary.write_bytes(save(tables.arrays(), tables.metadata()))


def load_tables(path: str | Path) -> EntropyTables:
    """Read tables from an untrusted file; TablesError if it is damaged or has another format."""
    path = Path(path)
    if not path.is_file():
        raise TablesError(f"{path}: no such file; make it with codec-fit-entropy")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
            return read(metadata, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise TablesError(f"{path}: not entropy tables, or damaged: {error}") from error


def read(metadata: dict[str, str], arrays: dict[str, np.ndarray]) -> EntropyTables:
    """Build tables from a file's content; ValueError, TypeError or KeyError if it is invalid."""
    sizes, contexts = json.loads(metadata["codebook_sizes"]), json.loads(metadata["contexts"])
    require(isinstance(sizes, list) and 1 <= len(sizes) <= MOST_STAGES, "codebook_sizes")
    require(all(type(size) is int and 1 <= size <= LARGEST_CODEBOOK for size in sizes), "codebook_sizes")
    require(isinstance(contexts, list) and len(contexts) == len(sizes), "contexts")
    stages = []
    for stage, pairs in enumerate(contexts):
        require(isinstance(pairs, list) and len(pairs) <= MOST_CONTEXTS, f"contexts of stage {stage}")
        for source, shift in pairs:
            require(type(source) is int and type(shift) is int, f"contexts of stage {stage}")
            require(0 <= source <= stage and -MOST_FRAMES_BACK <= shift <= 0, f"contexts of stage {stage}")
            require(source < stage or shift < 0, f"a context of stage {stage}: it is the code itself")
        stage_contexts = place_contexts([(source, shift) for source, shift in pairs], sizes)
        stages.append(read_stage(stage, alphabet(sizes[stage]), stage_contexts, arrays))
    return EntropyTables(str(metadata["codec_id"]), tuple(sizes), tuple(stages))


def read_stage(
    stage: int, symbols: int, contexts: tuple[Context, ...], arrays: dict[str, np.ndarray]
) -> StageTables:
    """Build one stage's tables; ValueError for wrong shapes, types or values."""
    bias, output, embeddings = (arrays[f"{stage}.{name}"] for name in ("bias", "output", "embeddings"))
    rows, rank = contexts[-1].missing + 1 if contexts else 0, embeddings.shape[-1]
    for array, shape, kind in (
        (bias, (symbols,), np.int32),
        (output, (rank, symbols), np.int8),
        (embeddings, (rows, rank), np.int8),
    ):
        require(array.shape == shape and array.dtype == kind, f"an array of stage {stage}")
    require(rank <= LARGEST_RANK, f"the rank of stage {stage}")
    require(bias.min() >= -LARGEST_BIAS and bias.max() <= LARGEST_BIAS, f"the bias of stage {stage}")
    return StageTables(bias, output, embeddings, contexts)


def require(good: bool, what: str) -> None:
    """Raise ValueError with the given subject unless `good`."""
    if not good:
        raise ValueError(f"{what} cannot be used")
