"""Pretrained models of the package, by name, and the error for a missing model."""

from __future__ import annotations

import re
from pathlib import Path

from codec.system.address import require_local

FOLDER = Path(__file__).parent


def pretrained_names() -> list[str]:
    """Names that `codec.load` and every command take in place of a path."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.yaml"))


def find_model(path: str | Path) -> Path:
    """Directory of the pretrained model of this name, or `path` itself, which has precedence if it exists."""
    path = Path(require_local(path))
    exists = path.is_file() or (path / "config.yaml").is_file()
    is_name = str(path) in pretrained_names() and not exists
    return FOLDER / path if is_name else path


def require_model(path: str | Path) -> Path:
    """`find_model`, or FileNotFoundError, with the download command for a name of the Hugging Face hub."""
    directory = find_model(path)
    if directory.exists():
        return directory
    name = str(path)
    if re.fullmatch(r"(hf:)?[A-Za-z][\w.-]*/[\w.-]+", name) and not directory.parent.exists():
        name = name.removeprefix("hf:")
        folder = name.split("/")[1]
        raise FileNotFoundError(
            f"{path}: no such model directory or checkpoint, and nothing is downloaded by itself; from the "
            f"Hugging Face hub: `hf download {name} --local-dir {folder}`, then name {folder}"
        )
    names = pretrained_names()
    models = f"; pretrained models of this package: {', '.join(names)}" if names else ""
    raise FileNotFoundError(f"{path}: no such model directory or checkpoint{models}")
