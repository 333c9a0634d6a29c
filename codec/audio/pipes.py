"""Streaming of recordings from standard input and to standard output."""

from __future__ import annotations

import os
import string
import struct
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np

from codec.audio.containers import STREAMED_SIZE, check_rate
from codec.audio.conversion import convert_blocks
from codec.audio.errors import AudioError
from codec.audio.reading import read_blocks
from codec.audio.writing import pcm16, write_wav_blocks
from codec.system.files import FileError
from codec.system.stdio import INPUT, OUTPUT, is_pipe, spooled, standard_input, standard_output

WINDOW = 2**16  # most bytes per read
NO_SIZE = 2**32 - 1
KINDS = {(1, bits): f"<i{bits // 8}" for bits in (8, 16, 24, 32)} | {(3, 32): "<f4", (3, 64): "<f8"}


class Wav(NamedTuple):
    """Header of a wav: rate in Hz, channels, sample format, bytes of samples or None."""

    sample_rate: int
    channels: int
    kind: str
    size: int | None

    @property
    def frame_bytes(self) -> int:
        """Number of bytes per frame: one sample of every channel."""
        return self.channels * int(self.kind[2:])


def read_source(
    path: str | os.PathLike[str], sample_rate: int, channels: int, downmix: str = "mid"
) -> Iterator[np.ndarray]:
    """Yield blocks of a recording as in `read_blocks`, also from standard input.

    PCM in a wav is streamed, to the end of the input if its header has no length. Other formats are first
    copied to a temporary file.
    """
    if not is_pipe(path):
        yield from read_blocks(path, sample_rate, channels, downmix)
        return
    file, head = standard_input(), bytearray()
    wav = read_wav_header(file, head)
    if wav is None:
        with spooled(path, bytes(head)) as copy:
            yield from read_blocks(copy, sample_rate, channels, downmix)
        return
    check_rate(INPUT, wav.sample_rate)
    yield from convert_blocks(wav_blocks(file, wav), wav.sample_rate, INPUT, sample_rate, channels, downmix)


def read_wav_header(file: IO[bytes], head: bytearray) -> Wav | None:
    """Read a wav up to its samples and append the bytes to `head`; None unless it is PCM in a wav."""

    def take(count: int) -> bytes:
        data = file.read(count)
        head.extend(data)
        return data

    start = take(12)
    if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
        return None
    layout, long_size = None, 0
    while len(chunk := take(8)) == 8:
        name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        if name == b"data":
            break
        if size > WINDOW:  # larger than any chunk before the samples of a streamed wav
            return None
        content = take(size + size % 2)
        if name == b"ds64" and len(content) >= 16:
            long_size = int.from_bytes(content[8:16], "little")
        if name == b"fmt " and len(content) >= 16:
            layout = wav_layout(content)
    else:
        return None
    if layout is None:
        return None
    data_size = long_size if start[:4] == b"RF64" and size == NO_SIZE else size
    return Wav(*layout, data_size if 0 < data_size < STREAMED_SIZE or data_size == long_size > 0 else None)


def wav_layout(content: bytes) -> tuple[int, int, str] | None:
    """Parse rate in Hz, channels and sample format of a `fmt ` chunk; None unless it is PCM."""
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", content)
    if tag == 0xFFFE and len(content) >= 26:  # WAVE_FORMAT_EXTENSIBLE
        tag = int.from_bytes(content[24:26], "little")
    kind = KINDS.get((tag, bits))
    return (rate, channels, kind) if kind and channels and block == channels * bits // 8 else None


def wav_blocks(file: IO[bytes], wav: Wav) -> Iterator[np.ndarray]:
    """Yield float32 samples `[n, C]` as they arrive; `AudioError` if the header has another number."""
    bytes_to_read, waiting = wav.size, b""
    while bytes_to_read is None or bytes_to_read > 0:
        data = read_some(file, WINDOW if bytes_to_read is None else min(WINDOW, bytes_to_read))
        if not data:
            break
        bytes_to_read = bytes_to_read if bytes_to_read is None else bytes_to_read - len(data)
        waiting += data
        frames_end = len(waiting) - len(waiting) % wav.frame_bytes
        if frames_end:
            yield samples_of(waiting[:frames_end], wav)
            waiting = waiting[frames_end:]
    if bytes_to_read:
        raise AudioError(
            INPUT, f"truncated: the header promises {wav.size} bytes of samples, {bytes_to_read} are missing"
        )
    if wav.size:
        check_rest(file, wav.size)


def read_some(file: IO[bytes], count: int) -> bytes:
    """Read up to `count` bytes; returns as soon as any are available."""
    return getattr(file, "read1", file.read)(count)


def check_rest(file: IO[bytes], size: int) -> None:
    """Read the rest after the samples, so that the writer can end; `AudioError` unless it is chunks."""
    name = file.read(size % 2 + 4)[size % 2 :]
    while file.read(WINDOW):
        pass
    if not set(name) <= set(string.printable.encode()):
        raise AudioError(INPUT, f"header counts too little: more follows the {size} bytes of samples")


def samples_of(data: bytes, wav: Wav) -> np.ndarray:
    """Convert bytes to float32 samples `[n, C]`; `AudioError` if one is not finite."""
    width = int(wav.kind[2:])
    if wav.kind[1] == "f":
        samples = np.frombuffer(data, wav.kind).astype(np.float32)
        if not np.isfinite(samples).all():
            raise AudioError(INPUT, "not finite: NaN, infinite or far too large samples")
    else:
        # Moved to the highest bytes of 32 bits, all widths share one scale.
        wide = np.zeros((len(data) // width, 4), np.uint8)
        wide[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
        if width == 1:  # unsigned
            wide[:, 3] ^= 0x80
        samples = (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    return samples.reshape(-1, wav.channels)


def write_sink(
    path: str | os.PathLike[str], blocks: Iterable[np.ndarray], sample_rate: int, length: int = 0
) -> None:
    """Write blocks `[C, n]` as in `write_wav_blocks`; to standard output, each block as soon as it arrives.

    On standard output the header has no length, as ffmpeg writes to a pipe, if `length` in samples is 0 or
    amounts to 4 GB or more.
    """
    if not is_pipe(path):
        write_wav_blocks(path, blocks, sample_rate, length)
        return
    file, has_started = standard_output(), False
    for block in blocks:
        data = pcm16(block, OUTPUT)
        if not has_started:
            file.write(wav_header(sample_rate, data.shape[1], length))
            has_started = True
        file.write(data.astype("<i2").tobytes())
        file.flush()
    if not has_started:
        raise FileError(OUTPUT, "nothing written: there is no audio")


def wav_header(sample_rate: int, channels: int, length: int) -> bytes:
    """Header of a 16-bit wav, 44 bytes."""
    size = 2 * channels * length
    riff, data = (size + 36, size) if 0 < size < STREAMED_SIZE else (NO_SIZE, NO_SIZE)
    layout = struct.pack("<HHIIHH", 1, channels, sample_rate, 2 * channels * sample_rate, 2 * channels, 16)
    head = b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", len(layout)) + layout
    return head + b"data" + struct.pack("<I", data)
