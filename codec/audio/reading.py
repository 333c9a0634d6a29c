"""Audio files: soundfile decodes, soxr resamples; arrays are float32 `[C, T]` with a nominal range of ±1."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from codec.audio import flac, mp3, wav
from codec.audio.containers import STREAMED_SIZE, UNKNOWN_LENGTH, check_content, check_header
from codec.audio.conversion import CONTEXT, _finite, _mix, convert_blocks, resampled_length
from codec.audio.errors import AudioError, foreign, require_regular, why_empty, why_not_opened
from codec.system.address import why
from codec.system.member import Member, Reader

BLOCK = 2**18  # frames decoded at a time, so that a long file (or a header that lies) never fills the memory

"""Reach of soxr's HQ filter to each side, in samples at the lower of the two rates (cut there: 1e-6)."""

PREROLL = {"MPEG_LAYER_III": 11520, "OPUS": 3840}
"""Samples to decode before a crop in formats whose frames lean on earlier ones (RFC 7845: 80 ms)."""


Opened = soundfile.SoundFile | wav.PlainWav

# libsndfile silently truncates a chunk that is longer than the file; only its log mentions it.
CUT_CHUNK = re.compile(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")


class AudioInfo(NamedTuple):
    """Header of a file: length in frames (samples per channel), rate in Hz, channels."""

    frames: int
    sample_rate: int
    channels: int


@contextmanager
def open_audio(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """Open a file for reading; errors of libsndfile, also later while reading, become `AudioError`."""
    state = require_regular(path)
    with _explained(path), ExitStack() as resources:
        reader = resources.enter_context(state.open()) if isinstance(state, Member) else None
        yield _opened(path, reader, resources)


@contextmanager
def open_seekable(path: str | os.PathLike[str]) -> Iterator[Opened]:
    """Open a file to read a crop, as `open_audio` does; a plain wav without libsndfile."""
    state = require_regular(path)
    within = isinstance(state, Member)
    place = state if within else Member(os.fspath(path), 0, state.st_size, state.st_mtime_ns)
    if file := wav.located(place):
        with _explained(path):
            yield file
        return
    with _explained(path), ExitStack() as resources:
        reader = resources.enter_context(place.open())
        yield wav.plain(reader) or _opened(path, reader if within else None, resources)


@contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except soundfile.LibsndfileError as error:
        reason = f"truncated or damaged: decoding fails ({error.error_string.rstrip('.')})"
        raise AudioError(path, reason) from error
    except OSError as error:  # also of closing a file that was not read to its end
        raise AudioError(path, why(error)) from error


def _opened(path: str | os.PathLike[str], reader: Reader | None, resources: ExitStack) -> soundfile.SoundFile:
    # Bytes, because soundfile cannot encode a name that is not UTF-8.
    name: Any = os.fsencode(path) if os.name == "posix" else os.fspath(path)
    try:
        if reader is not None:
            name = reader.descriptor() or reader
        file = resources.enter_context(soundfile.SoundFile(name, closefd=False))
        is_mp3 = file.format == "MP3"
        if is_mp3 and (other := foreign(path)):  # libmpg123 found bytes that look like a frame
            raise AudioError(path, other)
        if is_mp3 or file.frames > UNKNOWN_LENGTH:
            patch: Any = (mp3.with_header if is_mp3 else flac.with_length)(path)
            if with_length := resources.enter_context(patch):
                file = resources.enter_context(soundfile.SoundFile(with_length))
    except TypeError as error:
        raise AudioError(
            path, "headerless (raw) samples: their rate is unknown; convert the file to wav"
        ) from error
    except soundfile.LibsndfileError as error:
        raise AudioError(path, why_not_opened(path, error.error_string)) from error
    return file


def read_header(file: soundfile.SoundFile, path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header of an open file; `AudioError` if it has no samples or fewer than its header counts."""
    if file.frames == 0:
        raise AudioError(path, why_empty(path))
    cut = CUT_CHUNK.search(file.extra_info)
    if cut and int(cut[1]) < STREAMED_SIZE:
        raise AudioError(
            path, f"truncated: the header promises {cut[1]} bytes of samples, the file holds {cut[2]}"
        )
    check_header(path, file.frames, file.samplerate)
    return AudioInfo(file.frames, file.samplerate, file.channels)


def read_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read length, rate and channels from the header alone.

    Raises `AudioError` for a file that is missing, not regular (a FIFO would block forever), not audio,
    empty, truncated (as far as the header shows) or of a format that libsndfile does not support.
    """
    with mp3.quiet(path), open_audio(path) as file:
        return read_header(file, path)


def decode_blocks(
    file: soundfile.SoundFile, path: str | os.PathLike[str], span: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Yield an open file, or its frames `span` (first, end), as finite blocks `[<= BLOCK, C]`.

    Raises `AudioError` if the file has fewer samples than its header counts, or more, as joined files do.
    """
    check_content(path, file.frames)
    decoded, end = span or (0, file.frames)
    if decoded:
        preroll = min(decoded, PREROLL.get(file.subtype, 0))
        with mp3.quiet(path):  # a frame after a seek misses the ones that it leans on
            file.seek(decoded - preroll)
            file.read(preroll, dtype="float32")
    # Otherwise soundfile seeks after each block, and libmpg123 restarts without the preceding frames.
    file.seekable = lambda: False
    while decoded < end:
        block = read_finite(file, decoded, min(BLOCK, end - decoded), path)
        if len(block) == 0:
            raise AudioError(path, f"truncated: {decoded} of the {file.frames} samples of its header decode")
        decoded += len(block)
        yield block


def read_finite(file: Opened, start: int, frames: int, path: str | os.PathLike[str]) -> np.ndarray:
    """Read the next samples `[<= frames, C]`, at `start`; `AudioError` if one is not finite in float32."""
    block = file.read(frames, dtype="float32", always_2d=True)
    finite = np.isfinite(block)
    if finite.all():
        return block
    first = start + int(np.argmin(finite.all(axis=1)))
    file.seek(first)
    highest = np.abs(file.read(1, dtype="float64")).max()
    if np.isfinite(highest):
        raise AudioError(path, f"out of range: samples reach {highest:.3g}; scale them to ±1")
    raise AudioError(path, f"not finite: NaN or infinite samples, first at {first / file.samplerate:.3f} s")


def rms(audio: np.ndarray) -> float:
    """Root mean square of all samples, linear."""
    return float(np.sqrt(np.vdot(audio, audio) / audio.size))


def read_segment(
    path: str | os.PathLike[str],
    start: int,
    frames: int,
    sample_rate: int,
    channels: int,
    expected: AudioInfo | None = None,
    speed: Fraction | int = 1,
) -> np.ndarray:
    """Read a crop `[channels, frames]`; `start` and `frames` count samples at `sample_rate` Hz.

    Seeks to the crop and decodes and resamples only that, plus a few milliseconds on each side for the
    resampling filter. The result equals the same slice of `read_audio` up to rounding. Channels are kept if
    their number is `channels`; otherwise their mean is repeated `channels` times. `speed` plays the file that
    many times as fast, which changes pitch and tempo. Messages of libmpg123 about an odd MP3 are suppressed
    here, and logged by `read_blocks`.

    Raises `AudioError` if the header differs from `expected`, the crop exceeds the file or a sample is not
    finite, and `ValueError` for a negative start or no frames.
    """
    if start < 0 or frames < 1:
        raise ValueError(f"a segment needs start >= 0 and frames >= 1, got start={start}, frames={frames}")
    with mp3.quiet(path), open_seekable(path) as file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
        if expected is not None and info != expected:
            raise AudioError(path, f"changed since it was scanned: {info}, expected {expected}")
        if not file.seekable():
            raise AudioError(path, f"not seekable ({file.subtype}): rewrite it as PCM wav or FLAC")
        if info.sample_rate * speed == sample_rate:
            audio = _mix(_read(file, start, frames, path), channels)
        else:
            ratio = Fraction(info.sample_rate, sample_rate) * speed
            audio = _read_resampled(file, start, frames, ratio, channels, path)
    if len(audio) < frames:
        raise AudioError(
            path, f"truncated: {len(audio)} of {frames} samples from sample {start} at {sample_rate} Hz"
        )
    return _finite(np.ascontiguousarray(audio.T), path)


def read_blocks(
    path: str | os.PathLike[str],
    sample_rate: int | None = None,
    channels: int | None = None,
    downmix: str = "mid",
    span: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield a file, or its frames `span` (first, end), in blocks `[C, n]` of some seconds.

    They are resampled and mixed as in `read_segment`.

    If `channels` differs from the file's, `downmix` takes the mean of all channels ("mid"), the first
    ("left") or the second ("right").

    Raises `AudioError` for every file that `read_info` rejects, that does not decode to its end or that has
    samples which are not finite.
    """
    with ExitStack() as stack:
        with mp3.reported(path):
            file = stack.enter_context(open_audio(path))
        info = read_header(file, path)
        blocks = _reported(decode_blocks(file, path, span), path)
        yield from convert_blocks(blocks, info.sample_rate, path, sample_rate, channels, downmix)


def _reported(blocks: Iterator[np.ndarray], path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    while True:
        with mp3.reported(path):
            block = next(blocks, None)
        if block is None:
            return
        yield block


def read_audio(
    path: str | os.PathLike[str], sample_rate: int | None = None, channels: int | None = None
) -> tuple[np.ndarray, int]:
    """Read a whole file; returns audio `[C, T]` and its rate in Hz, see `read_blocks`."""
    audio = np.concatenate(list(read_blocks(path, sample_rate, channels)), axis=1)
    return audio, sample_rate or read_info(path).sample_rate


def _read(file: Opened, start: int, frames: int, path: str | os.PathLike[str]) -> np.ndarray:
    if start >= file.frames:
        return np.zeros((0, file.channels), np.float32)
    preroll = min(start, PREROLL.get(file.subtype, 0))
    file.seek(start - preroll)
    return read_finite(file, start - preroll, preroll + frames, path)[preroll:]


def _read_resampled(
    file: Opened,
    start: int,
    frames: int,
    ratio: Fraction,
    channels: int,
    path: str | os.PathLike[str],
) -> np.ndarray:
    step_in, step_out = ratio.numerator, ratio.denominator
    context = -(-CONTEXT * step_out // min(step_in, step_out))
    # Both sampling grids coincide only every `step_out` output samples: other starts shift the crop.
    first_out = max(0, start - context) // step_out * step_out
    first_in = first_out // step_out * step_in
    last_in = min(file.frames, -(-(start + frames + context) * step_in // step_out))
    if first_in >= last_in:
        return np.zeros((0, channels), np.float32)
    audio = _mix(_read(file, first_in, last_in - first_in, path), channels)
    audio = soxr.resample(audio, step_in, step_out, quality="HQ")
    # soxr rounds the length up: samples beyond the file's end are not audio.
    end = min(start + frames, resampled_length(file.frames, step_in, step_out))
    return audio[start - first_out : max(start, end) - first_out]
