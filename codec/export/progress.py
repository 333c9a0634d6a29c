"""Progress messages of an export, which may take minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger("codec.export")


class Elapsed(logging.Formatter):
    """Formatter that prefixes messages with the time since its creation."""

    def __init__(self) -> None:
        super().__init__()
        self.began = time.time()

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as `elapsed 00:12: ...`."""
        return f"elapsed {tqdm.format_interval(record.created - self.began)}: {record.getMessage()}"


@contextmanager
def progress() -> Iterator[None]:
    """Print the exporters' log messages on standard error, with the elapsed time."""
    handler, level = logging.StreamHandler(), log.level
    handler.setFormatter(Elapsed())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
