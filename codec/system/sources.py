"""Recordings that are no files, such as those of a database: `name://id` is the address of one."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

ADDRESS = re.compile(r"([\w+.-]{2,})://(.*)", re.ASCII | re.DOTALL)


@runtime_checkable
class DataSource(Protocol):
    """Recordings for the option `data.root`, listed and opened by an object that may be pickled.

    `name` has two or more letters, digits or `+.-_`, and is the same in every run. Other recordings have
    another name, and the bytes of an id never change.
    """

    name: str

    def sizes(self) -> Mapping[str, int]:
        """Bytes of each recording by its id, a relative path with the extension of the format: `a/b.wav`."""
        ...

    def open(self, id: str) -> io.BufferedIOBase:
        """Open a recording as a seekable binary file; OSError if it cannot be read."""
        ...


Roots = str | DataSource | Sequence[str | DataSource]


class Mounted(NamedTuple):
    """Source and the sizes of its recordings."""

    source: DataSource
    sizes: Mapping[str, int]


mounted: dict[str, Mounted] = {}  # by name, in this process


def paths_of(roots: Roots | None) -> list[str]:
    """One root or several as paths, and as addresses of sources, which are mounted."""
    several: Sequence[Any] = roots if isinstance(roots, list | tuple) else [] if roots is None else [roots]
    return [os.fspath(one) if isinstance(one, str | os.PathLike) else mount(one) for one in several]


def mount(source: DataSource) -> str:
    """Let this process read a source; returns its address, `name://`.

    ValueError for an object of another kind, and for another source of the same name.
    """
    if not isinstance(source, DataSource) or not ADDRESS.fullmatch(f"{source.name}://"):
        raise ValueError(
            f"expected a path, or a source of recordings with a name, sizes and open, got {source!r}"
        )
    sizes = dict(source.sizes())
    if source.name in mounted and mounted[source.name].sizes != sizes:
        raise ValueError(f"two sources of other recordings are named {source.name!r}: rename one of them")
    mounted[source.name] = Mounted(source, sizes)
    return f"{source.name}://"


def find(path: str) -> tuple[Mounted, str] | None:
    """Mounted source of an address, and the id in it; None for a path."""
    match = ADDRESS.fullmatch(path)
    source = mounted.get(match[1]) if match else None
    return (source, match[2]) if match and source else None
