"""Recordings in Arrow files of Hugging Face `datasets`: the places of their bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from codec.config import ConfigError
from codec.system.member import Contents, Member

MAGIC = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff": ".mp3"}
UNSAVED = "rows without bytes: save it again with `save_to_disk` where their files are"


def read_rows(archive: str, mtime_ns: int) -> Contents:
    """List the recordings of an Arrow file, named by their paths, or else by the numbers of their rows.

    ConfigError if pyarrow is missing.
    """
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        remedy = 'pip install "neural-audio-codec[tokens]"'
        raise ConfigError(f"{archive}: datasets in Arrow files need pyarrow: {remedy}") from error
    contents, unsaved = Contents(), 0
    try:
        with pa.memory_map(archive) as file:
            content = file.read_buffer()
            stream = pa.ipc.open_stream(content)
            column = audio_column(stream.schema)
            rows = (row for batch in stream for row in places(batch.column(column), content))
            for number, (path, offset, size) in enumerate(rows):
                if offset < 0:
                    unsaved += 1
                    continue
                name = name_of(path) or f"{number:06d}{suffix_of(content[offset : offset + min(size, 4)])}"
                name = f"{number:06d}/{name}" if name in contents.members else name
                contents.members[name] = Member(archive, offset, size, mtime_ns)
        contents.damage = f"{UNSAVED} ({unsaved})" if unsaved else None
    except (pa.ArrowException, OSError, LookupError, TypeError, AttributeError) as error:
        contents.damage = f"damaged: {error}"
    except ValueError as error:
        contents.damage = str(error)
    return contents


def audio_column(schema: Any) -> str:
    """Name of the only column of type `Audio`; ValueError if there is none, or several."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = about.get("info", {}).get("features", {}) if isinstance(about, dict) else {}
    names = [name for name in schema.names if (features.get(name) or {}).get("_type") == "Audio"]
    if len(names) != 1:
        amount = f"several columns of type Audio ({', '.join(names)})" if names else "no column of type Audio"
        remedy = "keep one with `select_columns`" if names else "use `cast_column`"
        raise ValueError(f"{amount} among {', '.join(schema.names)}: {remedy} and save it again")
    return names[0]


def places(column: Any, content: Any) -> Iterator[tuple[str | None, int, int]]:
    """Yield path, offset in the file and size of the bytes in each row; offset −1 for a row without."""
    column.validate(full=True)
    paths, stored = column.field("path").to_pylist(), column.field("bytes")
    _, bounds, data = stored.buffers()
    bounds = np.frombuffer(bounds, np.int64 if stored.type == "large_binary" else np.int32)
    bounds = bounds[stored.offset : stored.offset + len(stored) + 1].astype(np.int64)
    if data is not None and data.size:
        bounds += data.address - content.address
        if not 0 <= bounds[0] <= bounds[-1] <= content.size:
            raise ValueError("compressed: save it again with `save_to_disk`")
    exists = np.array(column.is_valid()) & np.array(stored.is_valid())
    offsets = np.where(exists, bounds[:-1], -1)
    yield from zip(paths, offsets.tolist(), np.diff(bounds).tolist(), strict=True)


def name_of(path: str | None) -> str:
    """Path of a row as name below its archive; empty for one that is missing or leads out of it."""
    parts = [part for part in (path or "").split("/") if part not in ("", ".")]
    return "" if ".." in parts or "\0" in (path or "") else "/".join(parts)


def suffix_of(head: Any) -> str:
    """Extension that fits the first bytes of a recording."""
    return next((MAGIC[magic] for magic in MAGIC if head.to_pybytes().startswith(magic)), ".audio")
