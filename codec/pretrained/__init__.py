"""Trained models that come with the package, by name."""

from __future__ import annotations

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
