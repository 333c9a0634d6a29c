"""Clips of several runs, embedded in a page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec.audio.reading import AudioError, read_audio
from codec.audio.writing import wav_bytes
from codec.evaluation.pictures import mel_picture
from codec.system.files import printable


def common_stems(places: Mapping[str, Path]) -> list[str]:
    """Prefixes of the wavs' names in some folders, sorted by the number of folders with the file."""
    stems = [
        {p.name.removesuffix(".original.wav") for p in place.glob("*.original.wav")}
        for place in places.values()
    ]
    return sorted(set().union(*stems), key=lambda stem: (-sum(stem in s for s in stems), stem))


def embed_clips(places: Mapping[str, Path], stems: Mapping[str, str], seconds: float) -> list[dict[str, Any]]:
    """Embed clips by stem and title, each with the original and every reconstruction."""
    embedded = []
    for stem, title in stems.items():
        items, top = [], None
        holders = {n: place for n, place in places.items() if (place / f"{stem}.original.wav").is_file()}
        if not holders:
            continue
        for name, path in wavs_of(stem, holders).items():
            try:
                audio, rate = read_audio(path)
            except AudioError as error:
                items.append({"name": name, "error": str(error)})
                continue
            audio = audio[:, : round(seconds * rate)]
            picture, top = mel_picture(audio, rate, top)
            items.append(
                {
                    "name": name,
                    "audio": data_uri("audio/wav", wav_bytes(audio, rate)),
                    "picture": data_uri("image/png", picture),
                    "seconds": audio.shape[-1] / rate,
                    "khz": rate / 2000,
                }
            )
        embedded.append({"name": printable(title), "items": items})
    return embedded


def wavs_of(stem: str, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Paths of the original and of each folder's reconstruction."""
    original = {"original": next(iter(folders.values())) / f"{stem}.original.wav"}
    return original | {name: folder / f"{stem}.reconstruction.wav" for name, folder in folders.items()}


def data_uri(kind: str, content: bytes) -> str:
    """Encode bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
