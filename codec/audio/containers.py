"""Search for audio beyond the length in the header, which libsndfile silently ignores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, NamedTuple

from codec.audio import mp3
from codec.audio.errors import AudioError, convert
from codec.system import archive

SHORTEST_HIDDEN = 1.0  # seconds; less data after the samples is padding or an unusual tag
SLOWEST, FASTEST = 1000, 1_000_000  # Hz; rates outside are wrong: at 1 Hz, 4 s of speech last a day
UNKNOWN_LENGTH = 2**62  # frames; this count and larger ones mean an unknown length
LEAST_JUNK = 2**16  # bytes in an mp3; fewer are an unusual tag
# A writer to a pipe cannot seek back to fill in the size, and leaves 0 or the largest number.
STREAMED_SIZE = 0x7FFF0000
WINDOW = 2**20  # bytes searched at a time
STREAM_INFO = b"fLaC\0\0\0\x22"  # start of every FLAC file; does not occur inside one


class ChunkLayout(NamedTuple):
    """Chunk layout of a container: offset of the first chunk, and encoding of sizes."""

    first: int
    width: int
    order: str
    samples: bytes


LAYOUTS = {
    b"RIFF": ChunkLayout(12, 4, "little", b"data"),
    b"RIFX": ChunkLayout(12, 4, "big", b"data"),
    b"FORM": ChunkLayout(12, 4, "big", b"SSND"),
    b"caff": ChunkLayout(8, 8, "big", b"data"),
}


def check_rate(path: str | os.PathLike[str], sample_rate: int) -> None:
    """Raise `AudioError` for an implausible rate in Hz."""
    if not SLOWEST <= sample_rate <= FASTEST:
        raise AudioError(path, f"implausible header: a sample rate of {sample_rate} Hz; correct it")


def check_header(path: str | os.PathLike[str], frames: int, sample_rate: int) -> None:
    """Raise `AudioError` for an implausible length or rate in a header; reads little of the file."""
    check_rate(path, sample_rate)
    if frames > UNKNOWN_LENGTH:
        reason = "length unknown: its header counts no samples, as of a pipe, and its end does not, either"
        raise AudioError(path, f"{reason}; rewrite it: {convert(path)}")
    with archive.open_bytes(path) as file:
        data_size, hidden = _behind_samples(file)
    seconds = frames / sample_rate
    if data_size and hidden * seconds / data_size > SHORTEST_HIDDEN:
        duration = seconds * (1 + hidden / data_size)
        raise AudioError(
            path,
            f"header counts too little: {_duration(seconds)} of {_duration(duration)} (sizes wrap at 4 GB); "
            f"rewrite it: {convert(path, '-ignore_length 1')}",
        )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"


def _behind_samples(file: IO[bytes]) -> tuple[int, int]:
    """Number of bytes of samples by the header, and of bytes after them that belong to no chunk."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(12)
    if magic.startswith(b".snd"):
        data_size = int.from_bytes(magic[8:12], "big")
        return data_size, max(0, size - int.from_bytes(magic[4:8], "big") - data_size)
    layout = LAYOUTS.get(magic[:4])
    data_size = 0
    for name, begin, end in _chunks(file, layout, size) if layout else ():
        if data_size and not (name.isascii() and name.decode().isprintable() and end <= size + 1):
            return data_size, size - begin
        if data_size and name in LAYOUTS:  # a second file, appended
            return data_size, size - begin
        if layout and name == layout.samples:
            data_size = end - begin
    return data_size, 0


def _chunks(file: IO[bytes], layout: ChunkLayout, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each chunk, up to the first one that exceeds the file."""
    position = layout.first
    while position < size:
        file.seek(position)
        name, count = file.read(4), file.read(layout.width)
        end = position + 4 + layout.width + int.from_bytes(count, layout.order)  # pyright: ignore
        yield name, position, end
        # Odd sizes are padded by the standard, but not by all writers.
        position = end + (end % 2 if layout.width == 4 else 0)


def check_content(path: str | os.PathLike[str], frames: int) -> None:
    """Raise `AudioError` for joined files, of which libsndfile reads only the first; reads the whole file."""
    with archive.open_bytes(path) as file:
        magic = file.read(4)
        if magic == b"OggS":
            second, remedy = _second_ogg(file), f"rewrite it: {convert(path)}"
        elif magic == b"fLaC":
            second = _second_flac(file)
            remedy = f"split it with `head -c {second}` and `tail -c +{(second or 0) + 1}`"
        else:
            second, remedy = None, ""
            _check_mp3(path, mp3.examine(path) if _may_be_mp3(magic) else None, frames)
    if second is not None:
        raise AudioError(path, f"joined files: another begins behind {frames} samples; {remedy}")


def _may_be_mp3(magic: bytes) -> bool:
    return magic.startswith(b"ID3") or mp3.parse_frame(magic) is not None


def _check_mp3(path: str | os.PathLike[str], stream: mp3.Stream | None, frames: int) -> None:
    if stream is None:
        return
    first, declared = stream.first, stream.counted
    if declared is not None and declared >= 0 and stream.frames - declared > 2:
        duration = stream.frames * first.samples / first.sample_rate
        raise AudioError(
            path,
            f"header counts too little: {frames / first.sample_rate:.1f} s of {duration:.1f} s, as of joined "
            f"files; rewrite it: {convert(path)}",
        )
    if stream.junk > max(LEAST_JUNK, (stream.end - stream.start) // 10):
        raise AudioError(path, f"damaged: {stream.junk} of its bytes belong to no mp3 frame")


def _second_ogg(file: IO[bytes]) -> int | None:
    """Position of a second chain of pages: the first page of a stream after data of another stream."""
    position, data = 0, False
    while True:
        file.seek(position)
        header = file.read(27)
        if len(header) < 27 or not header.startswith(b"OggS"):
            return None
        first = bool(header[5] & 2)
        if first and data:
            return position
        data |= not first
        position += 27 + header[26] + sum(file.read(header[26]))


def _second_flac(file: IO[bytes]) -> int | None:
    """Position of another FLAC file within this one."""
    overlap, position = b"", 4
    file.seek(position)
    while block := file.read(WINDOW):
        window = overlap + block
        if (at := window.find(STREAM_INFO)) >= 0:
            return position - len(overlap) + at
        position += len(block)
        overlap = window[-len(STREAM_INFO) + 1 :]
    return None
