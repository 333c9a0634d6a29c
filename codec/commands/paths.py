"""Types of arguments: local paths, and addresses where recordings are read."""

from __future__ import annotations

import argparse
from pathlib import Path

from codec.config import ConfigError
from codec.system.address import is_address, require_local


def local_path(text: str) -> Path:
    """Path of an argument; ArgumentTypeError for an address."""
    try:
        return Path(require_local(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def recordings(text: str) -> str | Path:
    """Path or address of recordings."""
    return text if is_address(text) else Path(text)
