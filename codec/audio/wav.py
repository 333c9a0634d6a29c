"""Plain wav files, 16-bit PCM in one chunk, read without libsndfile, which takes longer to open them."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from codec.system import address
from codec.system.member import Member, Reader

HEADER = struct.Struct("<4sI8sIHHIIHH4sI")  # RIFF, its `fmt ` chunk, and the name and size of the next
SOFTWARE = b"INFOISFT"  # list of one text, which ffmpeg writes before the samples
PCM, WIDTH, SCALE = 1, 2, np.float32(2**-15)  # format, bytes of a sample, and libsndfile's factor
MOST_CHANNELS, MOST_HERTZ = 1024, 2**31 - 1  # of libsndfile


class Layout(NamedTuple):
    """Place of the samples in bytes, and the header: length in frames, rate in Hz, channels."""

    start: int
    frames: int
    sample_rate: int
    channels: int


_layouts: dict[Member, Layout] = {}  # of files at addresses, where the header costs a request


class PlainWav:
    """Frames of a plain wav, with the part of `soundfile.SoundFile` that crops need; equal to the bit."""

    subtype = "PCM_16"

    def __init__(self, content: Reader | Member, layout: Layout) -> None:
        self.content, self.position = content, 0
        self.start, self.frames, self.samplerate, self.channels = layout

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, frame: int) -> None:
        """Move to a frame."""
        self.position = frame

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """Read the next frames `[<= frames, C]`; fewer where the file ends."""
        width = WIDTH * self.channels
        count = max(0, min(frames, self.frames - self.position)) * width
        content = self.content.part(self.start + self.position * width, count)
        samples = np.frombuffer(content, "<i2", len(content) // width * self.channels)
        self.position += len(samples) // self.channels
        return np.multiply(samples.reshape(-1, self.channels), SCALE, dtype=dtype)


def located(place: Member) -> PlainWav | None:
    """Plain wav at an address, of which `plain` has read the header in this process; None for other files."""
    layout = _layouts.get(place)
    return PlainWav(place, layout) if layout else None


def plain(reader: Reader) -> PlainWav | None:
    """Plain wav whose header counts all of its bytes; None for every other file."""
    layout = parse(reader.head, reader.size)
    if layout and address.is_address(reader.member.archive):
        address.remember(_layouts, reader.member, layout)
    return PlainWav(reader, layout) if layout else None


def parse(head: bytes, size: int) -> Layout | None:
    """Layout of a file of `size` bytes by its first ones; None unless it is a plain wav."""
    if len(head) < HEADER.size:
        return None
    riff, counted, form, length, kind, channels, rate, _, width, bits, name, count = HEADER.unpack_from(head)
    if (riff, counted + 8, form, length) != (b"RIFF", size, b"WAVEfmt ", 16):
        return None
    start = HEADER.size
    if name == b"LIST" and head.startswith(SOFTWARE, start) and start + count + 8 <= len(head):
        text = int.from_bytes(head[start + 8 : start + 12], "little")
        if text + text % 2 + 12 != count:
            return None
        start += count + 8
        name, count = head[start - 8 : start - 4], int.from_bytes(head[start - 4 : start], "little")
    is_pcm = (kind, bits, width) == (PCM, 8 * WIDTH, WIDTH * channels)
    if not is_pcm or not 0 < channels <= MOST_CHANNELS or not 0 < rate <= MOST_HERTZ:
        return None
    is_whole = name == b"data" and start + count == size and count > 0 and count % width == 0
    return Layout(start, count // width, rate, channels) if is_whole else None
