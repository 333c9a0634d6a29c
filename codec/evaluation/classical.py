"""Classical codecs as baselines: Opus, MP3, AAC, Vorbis and AMR-WB by a pip package's FFmpeg, and Codec 2."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec.config import ConfigError
from codec.evaluation.codec2 import Codec2
from codec.evaluation.records import Summary
from codec.evaluation.systems import Reconstruction

SHIFT = 0.3  # s; upper bound of a codec's delay


def ogg_payload(content: bytes, headers: int) -> int:
    """Number of bytes of an Ogg stream's packets, without the first `headers` packets (RFC 3533)."""
    packets, open_packet, place = [0], False, 0
    while place < len(content):
        if content[place : place + 4] != b"OggS" or place + 27 > len(content):
            raise ValueError(f"no Ogg page at byte {place}")
        lacing = content[place + 27 : place + 27 + content[place + 26]]
        for length in lacing:
            if not open_packet:
                packets.append(0)
            packets[-1] += length
            open_packet = length == 255  # a shorter segment ends its packet
        place += 27 + len(lacing) + sum(lacing)
    return sum(packets[1 + headers :])


def adts_payload(content: bytes) -> int:
    """Number of bytes of AAC frames without their ADTS headers (ISO/IEC 13818-7)."""
    place, payload = 0, 0
    while place < len(content):
        if place + 7 > len(content) or content[place] != 0xFF or content[place + 1] & 0xF6 != 0xF0:
            raise ValueError(f"no ADTS frame at byte {place}")
        header = 7 if content[place + 1] & 1 else 9
        length = (content[place + 3] & 3) << 11 | content[place + 4] << 3 | content[place + 5] >> 5
        if length < header:
            raise ValueError(f"an ADTS frame of {length} bytes at byte {place}")
        place, payload = place + length, payload + length - header
    return payload


def amr_payload(content: bytes) -> float:
    """Number of bytes of AMR-WB frames without headers and padding bits (RFC 4867, section 5)."""
    if not content.startswith(AMR_WB):
        raise ValueError(f"no AMR-WB file: begins with {content[: len(AMR_WB)]!r}")
    place, bits = len(AMR_WB), 0
    while place < len(content):
        kind = content[place] >> 3 & 15
        size = AMR_WB_BITS[kind] if kind < len(AMR_WB_BITS) else 0  # lost frame, or no data
        place, bits = place + 1 - (-size // 8), bits + size
    return bits / 8


@dataclass(frozen=True)
class Format:
    """FFmpeg's encoder, container and options for a format, and the function that counts payload bytes."""

    encoder: str
    container: str
    options: tuple[str, ...] = ()
    payload: Callable[[bytes], float] = len
    rates: tuple[int, ...] = ()  # Hz; supported rates, empty: any


AMR_WB = b"#!AMR-WB\n"
AMR_WB_BITS = (132, 177, 253, 285, 317, 365, 397, 461, 477, 40)  # per frame, by mode; the last is silence
OPUS = ("-vbr", "on", "-compression_level", "10", "-frame_duration", "20")
MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
FORMATS = {
    "opus": Format("libopus", "ogg", ("-application", "audio", *OPUS), lambda c: ogg_payload(c, 2)),
    "opus-voip": Format("libopus", "ogg", ("-application", "voip", *OPUS), lambda c: ogg_payload(c, 2)),
    # Without tags and the Xing frame, all bytes are payload.
    "mp3": Format("libmp3lame", "mp3", ("-write_xing", "0", "-id3v2_version", "0"), len, MPEG_RATES),
    "aac": Format("aac", "adts", (), adts_payload, MPEG_RATES),
    "vorbis": Format("libvorbis", "ogg", (), lambda c: ogg_payload(c, 3)),
    "amr-wb": Format("libvo_amrwbenc", "amr", (), amr_payload, (16000,)),
}


class Baseline:
    """Classical codec at one bitrate, named by format and kbit/s, as `opus_12`.

    `original` is the audio itself. ConfigError for an invalid name, or if FFmpeg or its encoder is missing.
    """

    codebook_sizes: Sequence[int] = ()

    def __init__(self, name: str, sample_rate: int, channels: int):
        self.name, self.sample_rate, self.channels = name, sample_rate, channels
        self.family, _, rate = name.rpartition("_")
        if name == "original":
            self.family = name
            return
        families = *FORMATS, "codec2"
        if self.family not in families or not re.fullmatch(r"\d+(\.\d+)?", rate) or not float(rate):
            expected = f"expected FORMAT_KBPS as opus_12, or original; there are {', '.join(families)}"
            raise ConfigError(f"baseline {name!r}: {expected}")
        self.coder = (
            Codec2(float(rate), sample_rate)
            if self.family == "codec2"
            else FFmpeg(FORMATS[self.family], float(rate), sample_rate, channels)
        )

    def identity(self) -> dict[str, Any]:
        """Name and versions on which the results depend."""
        return {"baseline": self.name} | ({} if self.name == "original" else self.coder.identity())

    def describe(self) -> Summary:
        """Family and versions."""
        return Summary(family=self.family, ceiling=self.name == "original" or None, **self.identity())

    def bitrate(self, num_quantizers: int) -> None:
        """Return None: the number of bits depends on the audio."""

    def code(self, audio: Tensor) -> tuple[Tensor | None, Iterator[Reconstruction]]:
        """Return no codes, and one point: the decoded, aligned audio with payload and file bits."""
        if self.name == "original":
            return None, iter([Reconstruction(0, audio, None, None)])
        return None, iter([self.reconstruct(audio)])

    def reconstruct(self, audio: Tensor) -> Reconstruction:
        """Code and decode audio `[1, C, T]`."""
        samples = audio[0].cpu().numpy()
        decoded, bits, file_bits = self.coder.code(samples)
        estimate = align(decoded, samples, round(SHIFT * self.sample_rate))
        return Reconstruction(0, torch.from_numpy(estimate)[None].to(audio.device), bits, file_bits)


class FFmpeg:
    """FFmpeg coder of a format at one bitrate; ConfigError if FFmpeg or its encoder is missing."""

    def __init__(self, form: Format, kbps: float, sample_rate: int, channels: int):
        self.form, self.kbps, self.sample_rate, self.channels = form, kbps, sample_rate, channels
        if not re.search(rf"\s{form.encoder}\s", encoders()):
            advice = "pip install 'imageio-ffmpeg<0.8', or set IMAGEIO_FFMPEG_EXE to an FFmpeg that has it"
            raise ConfigError(f"baselines: {ffmpeg()} has no encoder {form.encoder}: {advice}")

    def identity(self) -> dict[str, Any]:
        """Version of FFmpeg."""
        return {"ffmpeg": version()}

    def code(self, samples: np.ndarray) -> tuple[np.ndarray, int, int]:
        """Code audio `[C, T]`; returns the reconstruction, bits of payload, and bits of the file."""
        with tempfile.TemporaryDirectory() as folder:
            coded = Path(folder) / "coded"
            self.encode(samples, coded)
            content = coded.read_bytes()
            return self.decode(coded), round(8 * self.form.payload(content)), 8 * len(content)

    def encode(self, samples: np.ndarray, target: Path) -> None:
        """Encode audio `[C, T]` to a file."""
        pcm = np.clip(np.round(samples.T * 32768), -32768, 32767).astype("<i2").tobytes()
        rates = self.form.rates
        nearest = min((rate for rate in rates if rate >= self.sample_rate), default=max(rates, default=0))
        rate = ["-ar", str(nearest)] if rates else []
        speed = ["-b:a", f"{round(1000 * self.kbps)}"]
        source = ["-f", "s16le", "-ar", str(self.sample_rate), "-ac", str(self.channels), "-i", "pipe:0"]
        options = ["-c:a", self.form.encoder, *speed, *self.form.options, *rate, "-map_metadata", "-1"]
        run([*source, *options, "-bitexact", "-f", self.form.container, str(target)], pcm)

    def decode(self, source: Path) -> np.ndarray:
        """Decode a file to samples `[C, T]` at the original rate."""
        raw = ["-f", "f32le", "-ar", str(self.sample_rate), "-ac", str(self.channels), "pipe:1"]
        content = run(["-i", str(source), *raw], b"")
        return np.frombuffer(content, "<f4").reshape(-1, self.channels).T.astype(np.float32)


def align(estimate: np.ndarray, reference: np.ndarray, most: int) -> np.ndarray:
    """Align `estimate` `[C, T']` with `reference` `[C, T]` by a shift of at most `most` whole samples.

    The shift maximizes the cross-correlation. The result is cut or zero-padded to the reference's length.
    """
    length = reference.shape[1]
    size = 1 << (length + estimate.shape[1]).bit_length()
    spectra = np.fft.rfft(estimate.mean(0), size) * np.conj(np.fft.rfft(reference.mean(0), size))
    correlation = np.fft.irfft(spectra, size)
    lags = np.arange(-most, most + 1)
    lag = int(lags[np.argmax(correlation[lags])])
    shifted = np.pad(estimate, ((0, 0), (max(0, -lag), 0)))[:, max(0, lag) :][:, :length]
    return np.pad(shifted, ((0, 0), (0, length - shifted.shape[1])))


@cache
def ffmpeg() -> str:
    """Path of the FFmpeg program of imageio-ffmpeg."""
    try:
        return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except ImportError as error:
        advice = "pip install imageio-ffmpeg, or pip install 'neural-audio-codec[baselines]'"
        raise ConfigError(f"baselines need FFmpeg: {advice}") from error
    except RuntimeError as error:
        raise ConfigError(f"baselines need FFmpeg: {error}") from error


def run(arguments: Sequence[str], content: bytes) -> bytes:
    """Run FFmpeg on `content` as standard input; returns its output; ValueError with FFmpeg's message."""
    command = [ffmpeg(), "-hide_banner", "-nostdin", "-v", "error", "-threads", "1", "-y", *arguments]
    process = subprocess.run(command, input=content, capture_output=True, timeout=300, check=False)
    if process.returncode:
        words = process.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(f"FFmpeg: {' '.join(words[-2:]) or f'exit status {process.returncode}'}")
    return process.stdout


@cache
def encoders() -> str:
    """Output of `ffmpeg -encoders`."""
    return run(["-encoders"], b"").decode("utf-8", "replace")


@cache
def version() -> str:
    """Version number from `ffmpeg -version`."""
    output = run(["-version"], b"").decode("utf-8", "replace")
    return " ".join(output.split()[2:3])
