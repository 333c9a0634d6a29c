"""Arrow layout of token datasets: shards and index as Arrow IPC files, mapped by any Arrow library."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from codec.config import ConfigError
from codec.tokens.files import TokenError, TokenFormat, Utterance

INDEX_TYPES = {
    "id": "string",
    "path": "string",
    "channels": "int32",
    "sample_rate": "int32",
    "n_samples": "int64",
    "n_frames": "int64",
    "sha256": "string",
    "crc32": "uint32",
    "shard": "int32",
    "offset": "int64",
}


def pyarrow() -> Any:
    """Import pyarrow; ConfigError with the command to install it if it is missing."""
    try:
        import pyarrow as library  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ConfigError(
            'token datasets in Arrow files need pyarrow: pip install "neural-audio-codec[tokens]", or encode '
            "with --format npy, which needs numpy alone"
        ) from error
    return library


def write_shard(
    file: BinaryIO, rows: Sequence[Utterance], codes: Sequence[np.ndarray], about: bytes, column_name: str
) -> None:
    """Write a shard: a table with one row per utterance, its codes, or latents, `[R, F]` as a flat list."""
    pa = pyarrow()
    lengths = [one.size for one in codes]
    flat = np.concatenate([one.reshape(-1) for one in codes])
    lists = pa.LargeListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int64()), pa.array(flat))
    names = [name for name in INDEX_TYPES if name not in ("shard", "offset")]
    columns = {name: column(rows, name) for name in names}
    columns = {**{n: columns[n] for n in names if n not in ("sha256", "crc32")}, column_name: lists} | columns
    write_table(file, columns, {b"codec-tokens": about})


def write_index(file: BinaryIO, rows: Sequence[Utterance]) -> None:
    """Write the index, a table of all utterances."""
    write_table(file, {name: column(rows, name) for name in INDEX_TYPES}, {})


def column(rows: Sequence[Utterance], name: str) -> Any:
    """Arrow array of one attribute of all rows."""
    pa = pyarrow()
    return pa.array([getattr(row, name) for row in rows], getattr(pa, INDEX_TYPES[name])())


def write_table(file: BinaryIO, columns: dict[str, Any], metadata: dict[bytes, bytes]) -> None:
    """Write a table as one record batch, so that each column is contiguous."""
    pa = pyarrow()
    schema = pa.schema([pa.field(name, values.type) for name, values in columns.items()], metadata)
    with pa.ipc.new_file(pa.PythonFile(file, "w"), schema) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))


def code_offsets(path: Path, column_name: str) -> np.ndarray:
    """Byte offset of each utterance's codes in a shard, int64 `[N]`."""
    pa = pyarrow()
    with pa.memory_map(os.fsencode(path)) as source:
        begin = source.read_buffer(1).address
        lists = pa.ipc.open_file(source).get_batch(0).column(column_name)
        values = lists.values
        return (
            values.buffers()[1].address - begin + np.asarray(lists.offsets)[:-1] * values.type.bit_width // 8
        )


def read_index_columns(path: Path) -> tuple[int, dict[str, Any]]:
    """CRC-32 of an index, and its mapped columns; TokenError for missing values or wrong types."""
    pa = pyarrow()
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            crc32 = zlib.crc32(block, crc32)
    try:
        with pa.memory_map(os.fsencode(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches != 1:
                raise TokenError("damaged: not one table")
            batch = reader.get_batch(0)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TokenError(f"damaged: {str(error)[:200]}") from error
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in INDEX_TYPES.items()])
    if not batch.schema.equals(schema) or any(values.null_count for values in batch.columns):
        raise TokenError("damaged: not the columns of an index")
    columns = {
        name: batch.column(name) if INDEX_TYPES[name] == "string" else np.asarray(batch.column(name))
        for name in (field.name for field in fields(Utterance))
    }
    return crc32, columns


def map_shard(path: Path) -> np.ndarray:
    """Map a shard's bytes read-only; TokenError if it is missing."""
    try:
        return np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise TokenError(f"{path}: missing or damaged: {error}") from error


def codes_in_shard(shard: np.ndarray, token_format: TokenFormat, offset: int, n_frames: int) -> np.ndarray:
    """Codes, or latents, `[R, F]` at a byte offset of a shard; TokenError if they exceed its end."""
    count = token_format.rows * n_frames
    end = offset + count * token_format.dtype.itemsize
    if offset < 0 or end > len(shard):
        raise TokenError(f"truncated: codes end at byte {end} of {len(shard)}")
    return shard[offset:end].view(token_format.dtype).reshape(token_format.rows, n_frames)
