"""Spectrogram pictures of an original above its reconstruction."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from torch import Tensor

from codec.audio.spectrogram import magnitude, mel
from codec.system.files import written_whole

WINDOW = 1024
RANGE = 80.0  # dB below the original's peak


def decibels(audio: Tensor) -> Tensor:
    """Log magnitudes `[bins, frames]` in dB of the channels' mean of audio `[C, T]`."""
    return 20 * magnitude(audio.mean(0)[None, None], WINDOW)[0, 0].T.clamp(min=1e-7).log10()


def spectrogram_pair(original: Tensor, reconstruction: Tensor, sample_rate: int, title: str = "") -> Figure:
    """Figure with the spectrograms of both signals `[C, T]` on the original's dB scale, axes in s and Hz."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    top = float(decibels(original).max())
    extent = (0.0, original.shape[-1] / sample_rate, 0.0, sample_rate / 2)
    style = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": top - RANGE, "vmax": top}
    for panel, audio, name in zip(
        panels, (original, reconstruction), ("original", "reconstruction"), strict=True
    ):
        image = panel.imshow(decibels(audio.detach().cpu().float()).numpy(), extent=extent, **style)
        panel.set(title=name, ylabel="Hz")
    panels[1].set_xlabel("s")
    figure.colorbar(image, ax=panels, label="dB")
    figure.suptitle(title)
    return figure


def mel_picture(audio: np.ndarray, sample_rate: int, top: float | None = None) -> tuple[bytes, float]:
    """PNG of 96 mel bins of audio `[C, T]`, one pixel per bin and frame, and the dB of its brightest pixel.

    `top` sets the dB of the brightest color, to compare pictures.
    """
    bins = mel(torch.from_numpy(audio).mean(0)[None, None], sample_rate, WINDOW, 96)[0, 0].T
    levels = 20 * bins.clamp(min=1e-7).log10()
    top = float(levels.max()) if top is None else top
    content = io.BytesIO()
    imsave(content, levels.flip(0).numpy(), cmap="magma", vmin=top - RANGE, vmax=top, format="png")
    return content.getvalue(), top


def save_spectrogram_pair(
    path: str | Path, original: Tensor, reconstruction: Tensor, sample_rate: int, title: str = ""
) -> None:
    """Write both spectrograms as a PNG, atomically."""
    with torch.no_grad():
        figure = spectrogram_pair(original, reconstruction, sample_rate, title)
    with written_whole(path) as temporary, warnings.catch_warnings():
        # A title may be in any script; the file's name has the characters that the font lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        figure.savefig(temporary, dpi=100, format="png")


def read_picture(path: str | Path) -> np.ndarray:
    """Pixels of a PNG, `[height, width, channels]`, 0 to 1."""
    return imread(path)
