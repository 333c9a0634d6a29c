"""Resumption of interrupted work: settings stored at its first start and compared at each further one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from codec.config import ConfigError
from codec.system.files import OUTPUT_MARK, printable, written_whole


def resume(folder: Path, mark: str, settings: Mapping[str, Any], remedy: str, **naming: Any) -> None:
    """Compare the settings with those at the beginning of the file `mark`; store them if it is missing.

    `naming` are further arguments of `require_same`. ConfigError for other settings or a damaged file.
    """
    path = folder / mark
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, durable=True) as temporary:
            temporary.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    try:
        stored, _ = json.JSONDecoder().raw_decode(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("no settings")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{printable(path)}: damaged ({error}): {remedy}") from error
    require_same(folder, stored, settings, remedy, **naming)


def require_same(
    path: Path,
    stored: Mapping[str, Any],
    settings: Mapping[str, Any],
    remedy: str,
    names: Collection[str] | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """Raise ConfigError with the settings that differ from those stored at a path, and the remedy.

    `names` are the settings to compare, by default all. `options` are the command's options of settings.
    """
    stored_values, new_values = dict(flat(stored)), dict(flat(json.loads(json.dumps(settings))))
    compared = names or dict.fromkeys([*stored_values, *new_values])
    pairs = {name: (stored_values.get(name), new_values.get(name)) for name in compared}
    changes = [
        f"{(options or {}).get(name, name)} {' → '.join(shown(*pair))}"
        for name, pair in pairs.items()
        if pair[0] != pair[1]
    ]
    if changes:
        raise ConfigError(f"{printable(path)} was made with other settings: {', '.join(changes)}; {remedy}")


def require_unused(folder: Path, mark: str) -> None:
    """Raise ConfigError for a folder with other files but without `mark`, to resume from."""
    own = {Path(mark).parts[0], OUTPUT_MARK}
    foreign = folder.exists() and any(entry.name not in own for entry in folder.iterdir())
    if foreign and not (folder / mark).is_file():  # tested last: another process may have written it just now
        raise ConfigError(
            f"{printable(folder)} is not empty and holds nothing to resume: name another folder"
        )


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all settings by dotted name."""
    for name, value in settings.items():
        yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def shown(*values: Any) -> list[str]:
    """Texts of different values; a long one is cut to its start or, if that is common, to the difference."""
    texts = ["none" if value is None else str(value) for value in values]
    pairs = enumerate(zip(*texts, strict=False))
    common = next((place for place, pair in pairs if len(set(pair)) > 1), min(map(len, texts)))
    longest, width = (40, 12) if all(isinstance(value, str | None) for value in values) else (60, 40)
    start = 0 if common < width else common - width // 2
    return [text if len(text) <= longest else excerpt(text, start, start + width) for text in texts]


def excerpt(text: str, start: int, end: int) -> str:
    """Part of a text, with an ellipsis at each cut."""
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
