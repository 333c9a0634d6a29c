"""MP3 files: frame parsing, Xing headers for files without one, and capture of libmpg123's messages."""

from __future__ import annotations

import functools
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, NamedTuple

from codec.audio.headed import Headed
from codec.system import archive
from codec.system.files import printable

log = logging.getLogger(__name__)
VERSION_1 = 3  # of MPEG; 1152 samples per frame, versions 2 and 2.5: 576
SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
KILOBITS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
XING_BITRATE = 8  # bit rate index at which any frame has room for the Xing header
SEARCHED = 2**13  # bytes searched at a time for the next frame
LONGEST = 2**11  # bytes; exceeds every frame
SYNC = re.compile(rb"\xff[\xe0-\xff]")
TAG_SIZES = {b"TAG": 128, b"3DI": 10}  # bytes; tags after the last frame
PRINTED = re.compile(rb"(Note|Warning): |\[src/libmpg123|$")  # start of libmpg123's lines
STDERR = 2
alone = threading.RLock()  # the process has one stderr
reported_paths: set[str] = set()


class Frame(NamedTuple):
    """Header of a frame: MPEG version, rate in Hz, mono flag, length in bytes."""

    version: int
    sample_rate: int
    mono: bool
    length: int

    @property
    def samples(self) -> int:
        """Number of samples per channel in a frame."""
        return 1152 if self.version == VERSION_1 else 576

    @property
    def xing_offset(self) -> int:
        """Number of bytes before the Xing header: the 4-byte frame header and the empty side information."""
        sizes = (32, 17) if self.version == VERSION_1 else (17, 9)
        return 4 + sizes[self.mono]


class Stream(NamedTuple):
    """Frames of a file: the first one, byte positions `start` and `end`, and the number of `frames`.

    `counted` is the Xing header's number of frames, `None` without that header; its own frame is not one of
    the `frames`. `gaps` counts interruptions between frames: tags, or `junk` bytes outside frames and tags.
    """

    first: Frame
    start: int
    end: int
    frames: int
    counted: int | None
    gaps: int
    junk: int


def parse_frame(header: bytes) -> Frame | None:
    """Parse a 4-byte layer III frame header; None if it is invalid."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    sample_rate = SAMPLE_RATES[version][rate]
    bits = KILOBITS[version == VERSION_1][bitrate - 1] * 1000
    length = (144 if version == VERSION_1 else 72) * bits // sample_rate + (header[2] >> 1 & 1)
    return Frame(version, sample_rate, header[3] >> 6 == 3, length)


def walk(file: IO[bytes], whole: bool = True) -> Stream | None:
    """Parse all frames of a file or, unless `whole`, only up to the Xing header.

    Returns `None` if no two consecutive frames are found.
    """
    size = file.seek(0, os.SEEK_END)
    start = _next_frame(file, _after_tags(file, 0), None)
    if start is None:
        return None
    file.seek(start)
    content = file.read(LONGEST)
    first = parse_frame(content)
    assert first is not None
    declared = _xing_count(content, first)
    begin = start if declared is None else start + first.length
    frames, end, gaps, junk, position = 0, begin, 0, 0, begin
    kinds: dict[bytes, int] = {}
    while whole and position < size:
        file.seek(position)
        header = file.read(3)
        length = kinds.get(header) or _same_kind(header, first)
        if length and position + length <= size:
            kinds[header] = length
            frames, position = frames + 1, position + length
            end = position
            continue
        next_position = _after_tags(file, position)
        position_of_next = _next_frame(file, next_position, first)
        if position_of_next is None:
            break
        gaps, junk, position = gaps + 1, junk + position_of_next - next_position, position_of_next
    return Stream(first, begin, end, frames, declared, gaps, junk)


def _same_kind(header: bytes, first: Frame) -> int:
    frame = parse_frame(header + b"\0")
    return frame.length if frame and frame[:2] == first[:2] else 0


def _xing_count(content: bytes, first: Frame) -> int | None:
    """Number of frames in a Xing header; −1 for a header without it, None without a header."""
    header = content[first.xing_offset : first.xing_offset + 12]
    if header[:4] not in (b"Xing", b"Info"):
        return None
    return int.from_bytes(header[8:12], "big") if header[7:8] and header[7] & 1 else -1


def _after_tags(file: IO[bytes], position: int) -> int:
    """Position after the tags at `position`."""
    while True:
        file.seek(position)
        head = file.read(32)
        if head.startswith(b"ID3") and len(head) >= 10:
            size = 0
            for byte in head[6:10]:
                size = size << 7 | byte & 0x7F
            position += size + 10 + 10 * (head[5] >> 4 & 1)
        elif head.startswith(b"APETAGEX") and len(head) == 32:
            body = int.from_bytes(head[12:16], "little")
            position += 32 + (body if head[23] & 0x20 else 0)  # otherwise a footer: its body precedes it
        elif head[:3] in TAG_SIZES:
            position += TAG_SIZES[head[:3]]
        else:
            return position


def _next_frame(file: IO[bytes], position: int, like: Frame | None) -> int | None:
    """Position of the next frame that is followed by another frame or the end of the file."""
    while True:
        file.seek(position)
        window = file.read(SEARCHED + LONGEST)
        for match in SYNC.finditer(window, 0, SEARCHED + 1):
            at = match.start()
            frame = parse_frame(window[at : at + 4])
            if frame is None or (like is not None and frame[:2] != like[:2]):
                continue
            end = at + frame.length
            last = like is not None and end == len(window)
            if last or _same_kind(window[end : end + 3], frame):
                return position + at
        if len(window) < SEARCHED:
            return None
        position += SEARCHED


def xing_frame(stream: Stream) -> bytes:
    """Silent frame with a Xing header that counts the frames of a stream."""
    first = stream.first
    rate = SAMPLE_RATES[first.version].index(first.sample_rate)
    header = bytes(
        [0xFF, 0xE3 | first.version << 3, XING_BITRATE << 4 | rate << 2, 0xC0 if first.mono else 0]
    )
    frame = parse_frame(header)
    assert frame is not None
    xing = b"Xing" + (1).to_bytes(4, "big") + stream.frames.to_bytes(4, "big")
    return (header.ljust(first.xing_offset, b"\0") + xing).ljust(frame.length, b"\0")


@functools.lru_cache(2**14)
def _cached_walk(path: str, size: int, mtime_ns: int) -> Stream | None:
    with archive.open_bytes(path) as file:
        return walk(file)


def examine(path: str | os.PathLike[str]) -> Stream | None:
    """Run `walk` on a file; cached until the file changes."""
    status = archive.status(path)
    return _cached_walk(os.fspath(path), status.st_size, status.st_mtime_ns)


@contextmanager
def with_header(path: str | os.PathLike[str]) -> Iterator[Headed | None]:
    """File with a Xing header added, without which libmpg123 guesses the length; `None` if not needed."""
    with archive.open_bytes(path) as file:
        stream = walk(file, whole=False)
        if stream is None or (stream.counted is not None and stream.counted >= 0):
            yield None
            return
        stream = examine(path)
        if not stream or not stream.frames:
            yield None
            return
        yield Headed(file, xing_frame(stream), stream.start, stream.end)


def may_be_odd(path: str | os.PathLike[str]) -> bool:
    """Return True for a file with data outside its frames, about which libmpg123 may print messages."""
    with archive.open_bytes(path) as file:
        head = file.read(4)
        size = file.seek(0, os.SEEK_END)
    if not head.startswith(b"ID3") and parse_frame(head) is None:
        return os.path.splitext(path)[1].lower() == ".mp3"
    stream = examine(path)
    if stream is None or stream.gaps or size - stream.end > size // 200:
        return True
    return stream.counted is not None and stream.counted != stream.frames


@contextmanager
def remarks() -> Iterator[list[str]]:
    """Capture libmpg123's messages on stderr, which name no file; one thread at a time.

    The list is complete at the end of the block. Other output on stderr is delayed until then.
    """
    messages: list[str] = []
    with alone, tempfile.TemporaryFile() as sink:
        try:
            stderr_copy = os.dup(STDERR)
        except OSError:  # stderr is closed
            yield messages
            return
        os.dup2(sink.fileno(), STDERR)
        try:
            yield messages
        finally:
            os.dup2(stderr_copy, STDERR)
            os.close(stderr_copy)
            sink.seek(0)
            for line in sink:
                if not PRINTED.match(line.strip()):
                    os.write(STDERR, line)
                elif line.strip():
                    messages.append(line.strip().decode("utf-8", "backslashreplace"))


def quiet(path: str | os.PathLike[str]) -> AbstractContextManager[list[str]]:
    """Run `remarks` for files with the suffix .mp3; others give an empty list."""
    return remarks() if os.path.splitext(path)[1].lower() == ".mp3" else nullcontext([])


@contextmanager
def reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """Log libmpg123's first message about a file, with the file's name, once per file."""
    with quiet(path) as lines:
        yield
    if lines and str(path) not in reported_paths:
        reported_paths.add(str(path))
        log.warning("%s: libmpg123 says: %s", printable(path), lines[0])
