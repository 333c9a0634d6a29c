"""Error messages for files that cannot be used as audio."""

import os
import shlex
import stat

from codec.audio.mp3 import parse_frame
from codec.system import archive
from codec.system.files import FileError, printable
from codec.system.stdio import is_pipe

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
)

# Formats that ffmpeg reads but libsndfile does not: offset in bytes and signature.
FOREIGN = (
    (4, b"ftyp", "MPEG-4 (AAC or ALAC)"),
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "Windows Media (WMA)"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x0bw", "AC-3"),
    (0, b"DSD ", "DSD"),
    (0, b"TTA1", "TrueAudio"),
    (0, b"ajkg", "Shorten"),
    (0, b"ADIF", "AAC"),
)


class AudioError(FileError):
    """File that cannot be used as audio."""


def require_regular(path: str | os.PathLike[str]) -> os.stat_result | archive.Member:
    """State of a regular, non-empty file; `AudioError` for another path: a FIFO would block forever."""
    try:
        status = archive.status(path)
    except (OSError, ValueError) as error:
        raise AudioError(path, _plain(error)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
        raise AudioError(path, f"not a regular file but {kind}")
    if status.st_size == 0:
        raise AudioError(path, "zero-length file")
    return status


def check_wav_name(path: str | os.PathLike[str]) -> None:
    """Raise `AudioError` for an output path with the suffix of a format other than wav."""
    if not is_pipe(path) and os.path.splitext(path)[1].lower() != ".wav":
        raise AudioError(path, "audio is written as wav alone: name a file that ends in .wav")


def _plain(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError) and not isinstance(error, archive.MissingMember):
        return "no such file (deleted, or a dangling link)"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]


def convert(path: str | os.PathLike[str], options: str = "") -> str:
    """Command that converts a file to a format that libsndfile reads."""
    name, target = names(path, ".flac")
    return f"`ffmpeg {options}{' ' * bool(options)}-i {name} {target}`"


def names(path: str | os.PathLike[str], suffix: str) -> tuple[str, str]:
    """Quoted names of a file and of another file beside it, with a suffix, to convert it to."""
    name = printable(os.path.basename(path))
    stem, own = os.path.splitext(name)
    target = f"{stem}{'.fixed' * (own.lower() == suffix)}{suffix}"
    return shlex.quote(name), shlex.quote(target)


def foreign(path: str | os.PathLike[str]) -> str | None:
    """Name of a file's format and a command to convert it; None if the format is not one of `FOREIGN`."""
    try:
        with archive.open_bytes(path) as file:
            head = file.read(1024)
    except OSError as error:
        raise AudioError(path, _plain(error)) from error
    kind = next((kind for at, magic, kind in FOREIGN if head.startswith(magic, at)), None)
    if head.startswith(b"NIST_1A") and b"shorten" in head:
        name, target = names(path, ".wav")
        return f"SPHERE compressed with Shorten: convert it: `sph2pipe -f wav {name} {target}`"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # layer 0: ADTS, not MP3
        kind = "AAC (ADTS)"
    return f"{kind}, which is not read: convert it: {convert(path)}" if kind else None


def why_not_opened(path: str | os.PathLike[str], message: str) -> str:
    """Error text for a file that libsndfile does not open."""
    if kind := foreign(path):
        return kind
    with archive.open_bytes(path) as file:
        head = file.read(24)
    if parse_frame(head) or head.startswith(b"ID3"):
        return f"truncated or damaged mp3: no two frames follow each other (begins with {head[:12]!r})"
    if head.startswith(CONTAINERS):
        return f"damaged or unsupported: {message.rstrip('.')} (begins with {head[:12]!r})"
    return f"not audio: begins with {head!r}"


def why_empty(path: str | os.PathLike[str]) -> str:
    """Error text for a file that opens but has no samples."""
    with archive.open_bytes(path) as file:
        head = file.read(4096)
        size = file.seek(0, os.SEEK_END)
    follow = size - head.find(b"data") - 8
    if head.startswith(b"RIFF") and b"data" in head and follow > 0:
        return (
            f"streamed wav: its header says 0 samples although {follow} bytes follow; "
            "rewrite it (e.g. `ffmpeg -i in.wav out.wav` or `sox --ignore-length in.wav out.wav`)"
        )
    return "header only: 0 samples" if size < 1024 else f"truncated or damaged: no samples in {size} bytes"
