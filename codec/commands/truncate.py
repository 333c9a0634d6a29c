"""Command codec-truncate, which does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from codec.bitstream.writer import truncate
from codec.commands.parsers import parse
from codec.system.files import printable
from codec.system.stdio import is_pipe, spooled


def main(argv: Sequence[str] | None = None) -> int:
    """Cut a file to its first quantizers."""
    options = parse("truncate", argv)
    with spooled(options.compressed) as compressed:
        truncate(compressed, options.output, options.num_quantizers, options.force)
    if not is_pipe(options.output):
        print(f"{printable(options.output)}: {options.output.stat().st_size} bytes")
    return 0
