"""Progress of long work: a bar on a terminal, and otherwise a short line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
LINE = "{desc}: {percentage:.0f}%, elapsed {elapsed}, left {remaining}{postfix}"


class Lines:
    """Text file that writes each text on standard error as a line, without carriage returns."""

    def write(self, text: str) -> None:
        """Write a line."""
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        """Flush standard error."""
        sys.stderr.flush()


def progress_bar(work: Iterable[Any] | None, desc: str, **options: Any) -> tqdm:
    """Show the progress of an iterable, or of `update`; `options` are those of `tqdm`.

    Work of a second on a terminal, or of `EVERY` seconds elsewhere, shows nothing.
    """
    if sys.stderr.isatty():
        return tqdm(work, desc, delay=1.0, dynamic_ncols=True, **options)
    # With `miniters` of 0 the time alone decides.
    options |= {"bar_format": LINE, "mininterval": EVERY, "delay": EVERY, "miniters": 0}
    return tqdm(work, desc, file=Lines(), **options)
