"""Index of a token dataset in memory, validated when it is built."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from codec.tokens import arrow as token_arrow
from codec.tokens.files import INDEX_FILE, MANIFEST_FILE, META_FILE, TokenError, TokenFormat, Utterance


class TokenIndex:
    """Index of utterances: numeric columns as arrays, rows as `row(i)`.

    Raises TokenError for numbers that contradict each other or the format.
    """

    def __init__(self, columns: Mapping[str, Any], token_format: TokenFormat):
        self.columns = columns
        numbers = {
            name: np.asarray(columns[name], np.int64)
            for name in ("channels", "sample_rate", "n_samples", "n_frames", "crc32", "shard", "offset")
        }
        self.numbers = numbers
        self.n_frames = numbers["n_frames"]
        if len(self.n_frames) != token_format.items:
            raise TokenError(f"{len(self.n_frames)} utterances, {META_FILE} says {token_format.items}")
        rates, samples = numbers["sample_rate"], numbers["n_samples"]
        if (rates < 1).any() or (samples < 1).any() or (samples > 2**40).any() or (rates > 2**31).any():
            raise TokenError("a recording has an impossible rate or length")
        # Python's integers, because the product may exceed 64 bits.
        wide = samples.astype(object) if len(samples) and int(samples.max()) > 2**30 else samples
        lengths = wide * token_format.sample_rate // rates
        if (self.n_frames != -(-lengths // token_format.hop_length)).any() or (self.n_frames < 1).any():
            raise TokenError("the frames of an utterance do not fit the length of its recording")
        if (numbers["shard"] < 0).any() or (numbers["offset"] < 0).any() or (numbers["shard"] > 10**7).any():
            raise TokenError("a shard or offset of an utterance is out of range")

    def __len__(self) -> int:
        return len(self.n_frames)

    def row(self, i: int) -> Utterance:
        """Row of utterance `i`."""
        row: dict[str, Any] = {name: self.text(name, i) for name in ("id", "path", "sha256")}
        row.update({name: int(values[i]) for name, values in self.numbers.items()})
        return Utterance(**row)

    def text(self, column: str, i: int) -> str:
        """Value of the column `id`, `path` or `sha256` for utterance `i`."""
        value = self.columns[column][i]
        value = value if isinstance(value, str) else value.as_py()
        if not isinstance(value, str):
            raise TokenError(f"utterance {i} has no {column}")
        return value

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Numbers of the utterances by id and path."""
        columns = [self.columns[name] for name in ("path", "id")]
        lists = [column if isinstance(column, list) else column.to_pylist() for column in columns]
        return {name: i for names in lists for i, name in enumerate(names)}


def read_manifest(content: bytes) -> dict[str, list[Any]]:
    """Columns of `manifest.jsonl`; TokenError for a text column with another type."""
    columns: dict[str, list[Any]] = {field.name: [] for field in fields(Utterance)}
    for line in content.splitlines():
        row = Utterance(**{"shard": 0, "offset": 0} | json.loads(line))
        texts = {"id": row.id, "path": row.path, "sha256": row.sha256}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise TokenError(f"damaged: the {name} {value!r} is not a text")
        for name, values in columns.items():
            values.append(getattr(row, name))
    return columns


def read_index(folder: Path, token_format: TokenFormat) -> TokenIndex:
    """Read the index of either layout; TokenError if it is damaged, or of another `tokens.json`."""
    path = folder / (INDEX_FILE if token_format.layout == "arrow" else MANIFEST_FILE)
    if not path.is_file():
        raise TokenError(f"{path}: is missing")
    try:
        if token_format.layout == "npy":
            content = path.read_bytes()
            crc32, columns = zlib.crc32(content), read_manifest(content)
        else:
            crc32, columns = token_arrow.read_index_columns(path)
        if crc32 != token_format.index_crc32:
            raise TokenError(f"damaged, or of another {META_FILE} (CRC-32)")
        return TokenIndex(columns, token_format)
    except (ValueError, RecursionError, LookupError, TypeError, OverflowError) as error:
        raise TokenError(f"{path}: {error}") from error
