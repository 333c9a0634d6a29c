"""Good, odd and broken audio files, each with its expected report."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000


def tone(seconds: float = 1.0, rate: int = RATE, channels: int = 1, frequency: float = 440.0) -> np.ndarray:
    """A sine `[T, C]` with an amplitude of 0.5 in the first channel, less in the others."""
    time = np.arange(round(seconds * rate)) / rate
    levels = 0.5 / (1 + np.arange(channels))
    return (np.sin(2 * np.pi * frequency * time)[:, None] * levels).astype(np.float32)


def write(path: Path, audio: np.ndarray, rate: int = RATE, **options: str) -> None:
    """Write any format under any name."""
    with open(path, "wb") as file:
        soundfile.write(file, audio, rate, **{"format": "WAV", "subtype": "PCM_16", **options})


def cut(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def set_data_size(path: Path, size: int) -> None:
    """Change the size of the data in a wav's header."""
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)


def truncated(path: Path, **options: str) -> None:
    noise = np.random.default_rng(0).standard_normal((RATE, 1)) * 0.1
    write(path, noise, **options)
    cut(path)


def streamed(path: Path, size: int) -> None:
    write(path, tone())
    set_data_size(path, size)


def with_sample(path: Path, value: float) -> None:
    audio = tone()
    audio[4000] = value
    write(path, audio, subtype="FLOAT")


def clipping(path: Path) -> None:
    write(path, np.clip(4 * tone(), -1, 1))


def encoded(seconds: float = 2.0, **options: str) -> bytes:
    """Two thirds of a tone and some noise, as the bytes of a file."""
    buffer, audio = io.BytesIO(), tone(seconds)
    audio[: len(audio) // 3] += 0.3 * np.random.default_rng(0).standard_normal((len(audio) // 3, 1))
    soundfile.write(buffer, audio, RATE, **{"format": "WAV", "subtype": "PCM_16", **options})
    return buffer.getvalue()


def flac_of_unknown_length() -> bytes:
    """As an encoder writes it into a pipe."""
    content = bytearray(encoded(format="FLAC"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III"}


def mp3_without_xing(seconds: float = 20.0) -> bytes:
    """Frames of a variable bit rate alone, without the first one, which counts them."""
    content = encoded(seconds, **MP3)
    assert content[13:17] in (b"Xing", b"Info")
    return content[content.index(content[:2], 2) :]


def wrapped(path: Path) -> None:
    """A sparse wav of 4.5 GB, whose size in the header is modulo 2^32."""
    actual = 4_500_000_000
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 2, 48000, 192000, 4, 16)
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", (actual + 36) % 2**32) + form)
        file.write(b"data" + struct.pack("<I", actual % 2**32) + bytes(range(200)) * 100)
        file.truncate(44 + actual)


def counting_less(path: Path) -> None:
    """A wav of 4 s whose header counts 1 s."""
    write(path, tone(4.0) + 0.1 * np.random.default_rng(0).standard_normal((4 * RATE, 1)))
    set_data_size(path, 2 * RATE)


def of_rate(path: Path, rate: int) -> None:
    """A wav with another rate in its header."""
    content = bytearray(encoded())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)


def too_large(path: Path) -> None:
    audio = tone().astype(np.float64)
    audio[4000] = 1e300
    soundfile.write(path, audio, RATE, format="WAV", subtype="DOUBLE")


SPHERE = b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
ADTS = b"".join(b"\xff\xf1\x60\x40\x20\x1f\xfc" + bytes(249) for _ in range(20))

# Of kinds that other software reads: how the file begins, what the reason must say.
FOREIGN = {
    "book.m4a": (b"\0\0\0\x1cftypM4A ", "MPEG-4 (AAC or ALAC), which is not read"),
    "m4a inside.wav": (b"\0\0\0\x1cftypM4A ", "`ffmpeg -i 'm4a inside.wav' 'm4a inside.flac'`"),
    "radio.aac": (ADTS, "AAC (ADTS), which is not read"),
    "aac inside.mp3": (ADTS, "AAC (ADTS), which is not read"),
    "call.webm": (b"\x1aE\xdf\xa3", "WebM or Matroska, which is not read"),
    "old.wma": (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9", "Windows Media (WMA), which is not read"),
    "tight.sph": (
        SPHERE.ljust(1024),
        "SPHERE compressed with Shorten: convert it: `sph2pipe -f wav tight.sph tight.wav`",
    ),
    "TIGHT.WAV": (SPHERE.ljust(1024), "`sph2pipe -f wav TIGHT.WAV TIGHT.fixed.wav`"),  # not onto itself
    "film.FLAC": (b"\x1aE\xdf\xa3", "`ffmpeg -i film.FLAC film.fixed.flac`"),
}


def containing(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


# Usable: name -> how to write it, rate, channels.
GOOD: dict[str, tuple[Callable[[Path], None], int, int]] = {
    "pcm8.wav": (lambda p: write(p, tone(), subtype="PCM_U8"), RATE, 1),
    "pcm16.wav": (lambda p: write(p, tone()), RATE, 1),
    "pcm24.wav": (lambda p: write(p, tone(), subtype="PCM_24"), RATE, 1),
    "float32.wav": (lambda p: write(p, tone(), subtype="FLOAT"), RATE, 1),
    "float64.wav": (lambda p: write(p, tone(), subtype="DOUBLE"), RATE, 1),
    "ulaw.wav": (lambda p: write(p, tone(), subtype="ULAW"), RATE, 1),
    "six.wav": (lambda p: write(p, tone(channels=6)), RATE, 6),
    "8k.wav": (lambda p: write(p, tone(rate=8000), 8000), 8000, 1),
    "44101.wav": (lambda p: write(p, tone(rate=44101), 44101), 44101, 1),
    "192k.wav": (lambda p: write(p, tone(rate=192000), 192000), 192000, 1),
    "stereo.flac": (lambda p: write(p, tone(channels=2), format="FLAC"), RATE, 2),
    "UPPER.WAV": (lambda p: write(p, tone()), RATE, 1),
    "flac inside.wav": (lambda p: write(p, tone(), format="FLAC"), RATE, 1),
    "vorbis.ogg": (lambda p: write(p, tone(), format="OGG", subtype="VORBIS"), RATE, 1),
    "opus.opus": (lambda p: write(p, tone(), format="OGG", subtype="OPUS"), RATE, 1),
    "lame.mp3": (lambda p: write(p, tone(), format="MP3", subtype="MPEG_LAYER_III"), RATE, 1),
    "big endian.aiff": (lambda p: write(p, tone(), format="AIFF"), RATE, 1),
    "streamed with the largest size.wav": (lambda p: streamed(p, 0xFFFFFFFF), RATE, 1),
    "zażółć 音声 🎵.wav": (lambda p: write(p, tone()), RATE, 1),
    "new\nline.wav": (lambda p: write(p, tone()), RATE, 1),
    "n" * 251 + ".wav": (lambda p: write(p, tone()), RATE, 1),
    os.fsdecode(b"latin1 \xe9\xff.wav"): (lambda p: write(p, tone()), RATE, 1),
    "clipped.wav": (clipping, RATE, 1),
}

# Not usable: name -> how to make it, what the reason must say.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.wav": (lambda p: p.write_bytes(b""), "zero-length file"),
    "header.wav": (lambda p: write(p, np.zeros((0, 1))), "header only: 0 samples"),
    "page.wav": (
        lambda p: p.write_bytes(b"<!DOCTYPE html><html>404</html>" * 9),
        "not audio: begins with b'<!DOCTYPE",
    ),
    "noise.mp3": (lambda p: p.write_bytes(bytes(range(100, 200)) * 9), "not audio: begins with"),
    "cut.wav": (lambda p: truncated(p), "truncated: the header promises 32000 bytes"),
    "cut.aiff": (lambda p: truncated(p, format="AIFF"), "truncated: the header promises"),
    "cut.au": (lambda p: truncated(p, format="AU"), "truncated: the header promises"),
    "cut.flac": (lambda p: truncated(p, format="FLAC"), "truncated"),
    "cut.mp3": (
        lambda p: truncated(p, format="MP3", subtype="MPEG_LAYER_III"),
        "of the 16000 samples of its header decode",
    ),
    "cut.ogg": (
        lambda p: truncated(p, format="OGG", subtype="VORBIS"),
        "truncated or damaged: no samples in",
    ),
    "nan.wav": (lambda p: with_sample(p, np.nan), "not finite: NaN or infinite samples, first at 0.250 s"),
    "inf.wav": (lambda p: with_sample(p, -np.inf), "not finite: NaN or infinite samples, first at 0.250 s"),
    "unscaled.wav": (
        lambda p: write(p, 32767 * tone(), subtype="FLOAT"),
        "out of range: samples reach 1.64e+04",
    ),
    "silent.wav": (lambda p: write(p, np.zeros((RATE, 1))), "silent: no sample above -80 dBFS"),
    "streamed.wav": (
        lambda p: streamed(p, 0),
        "streamed wav: its header says 0 samples although 32000 bytes follow",
    ),
    "gsm.wav": (lambda p: write(p, tone(), subtype="GSM610"), "not seekable (GSM610)"),
    "loop.wav": (lambda p: p.symlink_to(p.name), "symbolic link"),
    "dangling.wav": (lambda p: p.symlink_to("gone.wav"), "no such file"),
    "pipe.wav": (lambda p: os.mkfifo(p), "not a regular file but a FIFO"),
    "piped and cut.flac": (
        lambda p: p.write_bytes(flac_of_unknown_length()[:-100]),
        "length unknown: its header counts no samples, as of a pipe, and its end does not, either",
    ),
    "piped header.flac": (lambda p: p.write_bytes(flac_of_unknown_length()[:42]), "length unknown"),
    "joined.mp3": (
        lambda p: p.write_bytes(2 * encoded(**MP3)),
        "header counts too little: 2.0 s of 4.2 s, as of joined files; rewrite it: `ffmpeg -i joined.mp3",
    ),
    "joined.flac": (
        lambda p: p.write_bytes(2 * encoded(format="FLAC")),
        "joined files: another begins behind 32000 samples; split it with `head -c",
    ),
    "chained.ogg": (
        lambda p: p.write_bytes(2 * encoded(format="OGG", subtype="VORBIS")),
        "joined files: another begins behind 32000 samples; rewrite it: `ffmpeg -i chained.ogg chained.flac",
    ),
    "chained.opus": (lambda p: p.write_bytes(2 * encoded(format="OGG", subtype="OPUS")), "joined files"),
    "counting less.wav": (counting_less, "header counts too little: 1.0 s of 4.0 s"),
    "wrapped.wav": (wrapped, "header counts too little: 1067.9 s of 6.51 h"),
    "1 Hz.wav": (lambda p: of_rate(p, 1), "implausible header: a sample rate of 1 Hz"),
    "1e300.wav": (too_large, "out of range: samples reach 1e+300"),
    "headless.mp3": (
        lambda p: p.write_bytes(mp3_without_xing(1.0)[:60]),
        "truncated or damaged mp3: no two frames follow each other",
    ),
    **{name: (containing(content), reason) for name, (content, reason) in FOREIGN.items()},
}
# Found only when the content is decoded.
CONTENT = {"cut.flac", "cut.mp3", "nan.wav", "inf.wav", "unscaled.wav", "silent.wav", "1e300.wav"}
CONTENT |= {"joined.mp3", "joined.flac", "chained.ogg", "chained.opus"}


def write_zoo(folder: Path) -> Path:
    """Write all of it below `folder`, in sub-folders, with links that lead in circles."""
    for name, (make, *_) in {**GOOD, **BAD}.items():
        place = folder / ("good" if name in GOOD else "bad") / "deep"
        place.mkdir(parents=True, exist_ok=True)
        make(place / name)
    (folder / "good" / "back").symlink_to(folder)
    (folder / "again").symlink_to(folder / "good" / "deep")
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.wav").write_bytes(b"not looked at")
    return folder
