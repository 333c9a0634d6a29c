"""Baseline Codec 2 (Rowe) by pycodec2: speech at 0.7 to 3.2 kbit/s."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import numpy as np

from codec.audio.conversion import resample
from codec.config import ConfigError

RATE = 8000
MODES = {3.2: 3200, 2.4: 2400, 1.6: 1600, 1.4: 1400, 1.3: 1300, 1.2: 1200, 0.7: 700}


class Codec2:
    """Codec 2 of the channels' mean at one bitrate; ConfigError for an unknown one, or without pycodec2."""

    def __init__(self, kbps: float, sample_rate: int):
        if kbps not in MODES:
            choices = ", ".join(f"codec2_{rate:g}" for rate in MODES)
            raise ConfigError(f"baseline codec2_{kbps:g}: there are {choices}")
        try:
            self.library: Any = importlib.import_module("pycodec2")
        except ImportError as error:
            advice = "pip install pycodec2, or pip install 'neural-audio-codec[baselines]'"
            raise ConfigError(f"baseline codec2 needs pycodec2: {advice}") from error
        self.mode, self.sample_rate = MODES[kbps], sample_rate

    def identity(self) -> dict[str, Any]:
        """Version of pycodec2, on which the results depend."""
        return {"pycodec2": importlib.metadata.version("pycodec2")}

    def code(self, samples: np.ndarray) -> tuple[np.ndarray, int, int]:
        """Reconstruction of `[C, T]`, bits of its frames, and bits of a file with frames of whole bytes."""
        narrow = resample(samples.mean(0, keepdims=True), self.sample_rate, RATE)[0]
        encoder, decoder = (self.library.Codec2(self.mode) for _ in range(2))
        size = encoder.samples_per_frame()
        pcm = np.clip(np.round(narrow * 32768), -32768, 32767).astype(np.int16)
        frames = np.pad(pcm, (0, -len(pcm) % size)).reshape(-1, size)
        coded = [encoder.encode(frame) for frame in frames]
        decoded = np.concatenate([decoder.decode(frame) for frame in coded]).astype(np.float32) / 32768
        wide = resample(decoded[None], RATE, self.sample_rate)
        bits = len(coded) * encoder.bits_per_frame()
        return wide.repeat(len(samples), 0), bits, 8 * sum(map(len, coded))
