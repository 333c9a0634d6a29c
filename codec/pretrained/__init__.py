"""Trained models that come with the package, by name; words for a model that is not there."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def pretrained_names() -> list[str]:
    """Names that `codec.load` and every command take in place of a path."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.yaml"))


def find_model(path: str | Path) -> Path:
    """Directory of the pretrained model of this name, or `path` itself: a file or model there comes first."""
    path = Path(path)
    taken = path.is_file() or (path / "config.yaml").is_file()
    named = str(path) in pretrained_names() and not taken
    return FOLDER / path if named else path


def require_model(path: str | Path) -> Path:
    """`find_model`, or FileNotFoundError, which says how to get a model that is named as on a hub."""
    found = find_model(path)
    if found.exists():
        return found
    name = str(path)
    if re.fullmatch(r"(hf:)?[A-Za-z][\w.-]*/[\w.-]+", name) and not found.parent.exists():
        name = name.removeprefix("hf:")
        folder = name.split("/")[1]
        raise FileNotFoundError(
            f"{path}: no such model directory or checkpoint, and nothing is downloaded by itself; from the "
            f"Hugging Face hub: `hf download {name} --local-dir {folder}`, then name {folder}"
        )
    names = pretrained_names()
    known = f"; pretrained models of this package: {', '.join(names)}" if names else ""
    raise FileNotFoundError(f"{path}: no such model directory or checkpoint{known}")
