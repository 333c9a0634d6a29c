"""Why a file cannot be used as audio, in plain words."""

import os
import stat

from codec.files import FileError

CONTAINERS = (
    b"RIFF",
    b"RIFX",
    b"RF64",
    b"riff",
    b"fLaC",
    b"OggS",
    b"FORM",
    b".snd",
    b"caff",
    b"ID3",
    b"\xff\xfb",
)


class AudioError(FileError):
    """A file that cannot be used as audio."""


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise `AudioError` unless this is a regular file that is not empty: a FIFO would block for ever."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise AudioError(path, _plain(error)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
        raise AudioError(path, f"not a regular file but {kind}")
    if status.st_size == 0:
        raise AudioError(path, "zero-length file")


def check_wav_name(path: str | os.PathLike[str]) -> None:
    """Raise `AudioError` for an output whose name promises something else than a wav."""
    if os.path.splitext(path)[1].lower() != ".wav":
        raise AudioError(path, "audio is written as wav alone: name a file that ends in .wav")


def _plain(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file (deleted, or a dangling link)"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]


def why_not_opened(path: str | os.PathLike[str], message: str) -> str:
    """What a file is that libsndfile refuses to open."""
    try:
        with open(path, "rb") as file:
            head = file.read(24)
    except OSError as error:
        raise AudioError(path, _plain(error)) from error
    if head.startswith(CONTAINERS):
        return f"damaged or unsupported: {message.rstrip('.')} (begins with {head[:12]!r})"
    return f"not audio: begins with {head!r}"


def why_empty(path: str | os.PathLike[str]) -> str:
    """Why a file that opens holds no samples."""
    with open(path, "rb") as file:
        head = file.read(4096)
        size = file.seek(0, os.SEEK_END)
    follow = size - head.find(b"data") - 8
    if head.startswith(b"RIFF") and b"data" in head and follow > 0:
        return (
            f"streamed wav: its header says 0 samples although {follow} bytes follow; "
            "rewrite it (e.g. `ffmpeg -i in.wav out.wav` or `sox --ignore-length in.wav out.wav`)"
        )
    return "header only: 0 samples" if size < 1024 else f"truncated or damaged: no samples in {size} bytes"
