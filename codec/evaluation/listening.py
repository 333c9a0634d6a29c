"""Blind listening tests, ABX and MUSHRA, as one page that holds the audio of an evaluation."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codec.audio.levels import loudness
from codec.audio.reading import read_audio
from codec.audio.writing import wav_bytes
from codec.config import ConfigError
from codec.evaluation.clips import wavs_of
from codec.evaluation.page import to_html
from codec.evaluation.report import counted
from codec.system.files import printable, write_whole

SECONDS = 10.0  # of a clip; BS.1534-3 recommends about 10
REFERENCE, ANCHOR = "original", "anchor 3.5 kHz"
FADE = 0.005  # seconds at both ends, because clips are played in loops


def write_listening(test: str, folders: Mapping[str, Path], stems: Mapping[str, str], output: Path) -> str:
    """Write `listening.html`, a test `abx` or `mushra` of systems by folder; returns a line about it.

    `stems` are the prefixes of wavs and their titles; those without audio of every system are left out.
    The audio is in the page, because a browser does not give samples of other files to a page from a disk.
    ConfigError if no clip is left.
    """
    clips = [
        embedded(title, *read_stimuli(stem, folders), test)
        for stem, title in stems.items()
        if folders and all((folder / f"{stem}.reconstruction.wav").is_file() for folder in folders.values())
    ]
    if not clips:
        raise ConfigError("--listening: no file has audio of every codec; add a codec, or raise --clips")
    page = to_html({"title": output.resolve().name, "test": test, "clips": clips}, "listening.html")
    write_whole(output / "listening.html", page)
    trials = len(clips) * (math.comb(len(folders) + 1, 2) if test == "abx" else 1)
    size = f"{len(page) / 1e6:.0f} MB" if len(page) > 1e6 else f"{len(page) / 1e3:.0f} kB"
    return f"listening test of {counted(trials, 'trial')}, {size}: {output}/listening.html"


def read_stimuli(stem: str, folders: Mapping[str, Path]) -> tuple[dict[str, np.ndarray], int]:
    """Beginnings of the original and of each reconstruction, `[C, T]` of one length, and their rate in Hz."""
    stimuli, rate = {}, 0
    for name, path in wavs_of(stem, folders).items():
        stimuli[name], rate = read_audio(path)
    length = min(round(SECONDS * rate), *(audio.shape[1] for audio in stimuli.values()))
    return {name: audio[:, :length] for name, audio in stimuli.items()}, rate


def embedded(title: str, stimuli: dict[str, np.ndarray], rate: int, test: str) -> dict[str, Any]:
    """Clip for the page: base64 wavs of one loudness, the original first, for MUSHRA the anchor last."""
    if test == "mushra":
        stimuli = stimuli | {ANCHOR: low_pass(stimuli[REFERENCE], rate)}
    wavs = {name: wav_bytes(faded(audio, rate), rate) for name, audio in level_matched(stimuli, rate).items()}
    audio = [{"name": name, "audio": base64.b64encode(wav).decode()} for name, wav in wavs.items()]
    return {"name": printable(title), "rate": rate, "stimuli": audio}


def level_matched(stimuli: Mapping[str, np.ndarray], rate: int) -> dict[str, np.ndarray]:
    """Scale stimuli to the loudness (ITU-R BS.1770-4) of the original, and all of them if one would clip.

    Stimuli below −70 LUFS stay as they are.
    """
    levels = {name: loudness(audio, rate) for name, audio in stimuli.items()}
    gains = {name: 10 ** ((levels[REFERENCE] - level) / 20) for name, level in levels.items()}
    scaled = {
        name: audio * gains[name] if 0 < gains[name] < math.inf else audio for name, audio in stimuli.items()
    }
    peak = max(1.0, *(float(np.abs(audio).max()) for audio in scaled.values()))
    return {name: audio / peak for name, audio in scaled.items()}


def low_pass(audio: np.ndarray, rate: int, passed: float = 3500.0, stopped: float = 4000.0) -> np.ndarray:
    """Low-pass `[C, T]` at 3.5 kHz with linear phase, as the low anchor of ITU-R BS.1534-3; 0 above 4 kHz."""
    spectrum = np.fft.rfft(audio, audio.shape[1] + rate)
    frequencies = np.linspace(0, rate / 2, spectrum.shape[1])
    place = np.clip((frequencies - passed) / (stopped - passed), 0, 1)
    response = 0.5 + 0.5 * np.cos(np.pi * place)
    return np.fft.irfft(spectrum * response)[:, : audio.shape[1]]


def faded(audio: np.ndarray, rate: int) -> np.ndarray:
    """Fade `[C, T]` in and out."""
    length = audio.shape[1]
    ramp = np.minimum(1.0, (np.arange(length) + 0.5) / (FADE * rate))
    return audio * ramp * ramp[::-1]
