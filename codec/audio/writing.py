"""Writing of 16-bit wavs, whole or block by block."""

import errno
import io
import os
from collections.abc import Iterable

import numpy as np
import soundfile

from codec.system.files import FileError, printable, written_whole

LARGEST_WAV = 2**32 - 2**16  # bytes, headers included; a plain wav stores its size in 32 bits


def write_wav(path: str | os.PathLike[str], audio: np.ndarray, sample_rate: int) -> None:
    """Write `audio` `[C, T]` as `write_wav_blocks` does."""
    write_wav_blocks(path, [audio], sample_rate)


def write_wav_blocks(
    path: str | os.PathLike[str], blocks: Iterable[np.ndarray], sample_rate: int, length: int = 0
) -> None:
    """Write blocks `[C, n]` atomically as 16-bit PCM, clipped to ±1.

    If the expected `length` in samples amounts to 4 GB or more, the format is RF64, with sizes in 64 bits.
    Raises `ValueError` for another shape, `FileError` without samples or for samples that are not finite.
    """
    samples = (pcm16(block, path) for block in blocks)
    first = next(samples, None)
    if first is None:
        raise FileError(path, "not written: there is no audio")
    kind = "RF64" if 2 * length * first.shape[1] > LARGEST_WAV else "WAV"
    with (
        written_whole(path) as temporary,
        open(temporary, "xb") as stream,
        soundfile.SoundFile(stream, "w", sample_rate, first.shape[1], "PCM_16", format=kind) as file,
    ):
        try:
            file.write(first)
            for block in samples:
                file.write(block)
        except (AssertionError, soundfile.LibsndfileError) as error:  # raised by soundfile for a short write
            raise OSError(errno.ENOSPC, "could not be written: is the disk full?", os.fspath(path)) from error


def wav_bytes(audio: np.ndarray, sample_rate: int) -> bytes:
    """Encode `audio` `[C, T]` as a 16-bit wav: browsers can seek in it; Chromium cannot in short FLACs."""
    content = io.BytesIO()
    soundfile.write(content, audio.T, sample_rate, format="WAV", subtype="PCM_16")
    return content.getvalue()


def pcm16(audio: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """Convert `audio` `[C, T]` to 16-bit integers `[T, C]`, clipped to ±1; errors name `path`."""
    if audio.ndim != 2 or audio.shape[0] < 1:
        shape = list(audio.shape)
        raise ValueError(f"a wav needs audio of shape [C, T], got {shape} for {printable(path)}")
    if not np.isfinite(audio).all():
        raise FileError(path, "not written: the audio holds NaN or infinite samples")
    # 2**15, not 2**15 - 1, so that 16-bit samples survive reading and writing unchanged.
    return np.clip(np.round(audio.T * 32768.0), -32768, 32767).astype(np.int16)
