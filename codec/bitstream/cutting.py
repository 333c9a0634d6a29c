"""codec-truncate, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from codec.arguments import parse
from codec.bitstream.writer import truncate
from codec.files import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Cut a file to fewer quantizers."""
    options = parse("truncate", argv)
    truncate(options.compressed, options.output, options.num_quantizers, options.force)
    print(f"{printable(options.output)}: {options.output.stat().st_size} bytes")
    return 0
