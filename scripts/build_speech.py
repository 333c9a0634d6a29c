"""Build hours of free speech from Debian packages: python scripts/build_speech.py data/speech.

Downloads 500 MB with apt-get, which installs nothing, and writes mono flac files of 2 to 15 s at one level:

    data/speech/train/SOURCE/00000.flac …    for data.root=data/speech/train
    data/speech/valid/SOURCE/00000.flac …    other speakers, for codec-evaluate
    data/speech/manifest.csv, README.md      each file's source, version, license and speaker

Needs Debian or Ubuntu, for apt-get and dpkg-deb, and FFmpeg for G.722: pip install -e ".[baselines]". The
same command goes on where it stopped; the same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from codec.audio.conversion import resample
from codec.commands.errors import report_errors
from codec.data.index import DataError
from codec.evaluation import classical as baselines
from codec.system.files import FileError, folder_whole, write_whole
from codec.system.progress import progress_bar

SHORTEST, LONGEST, PAUSE = 2.0, 15.0, 0.12  # seconds: of a clip, and between the recordings joined in one
LEVEL, PEAK = -26.0, 0.95  # dBFS of active speech; highest sample
SUMMARY = """# Speech from Debian packages

No speaker is in both sets. Changes to the recordings: mono, {rate} Hz, silent ends cut off, one level, long
ones cut, short ones joined, FLAC. Each package's terms are in the `copyright.txt` beside its files.

| set | source | speaker | package | license | hours |
|---|---|---|---|---|---|
"""
COLUMNS = ("file", "seconds", "sample_rate", "source", "package", "version", "license", "speaker")


class Source(NamedTuple):
    """Recordings in a package: the pattern of their paths, and the frequency in Hz that they reach."""

    name: str
    package: str
    pattern: str
    bandwidth: float
    license: str
    speaker: str


def prompts(code: str, license: str, speaker: str) -> Source:
    """A telephone exchange's prompts in one language."""
    pattern, package = "usr/share/asterisk/sounds/*.g722", f"asterisk-core-sounds-{code}-g722"
    return Source(f"ast_{code}", package, pattern, 7000, license, speaker)


def dialogs(code: str, bandwidth: float, speaker: str) -> Source:
    """A game's dialogs in one language."""
    pattern, package = "usr/share/games/fillets-ng/sound/*.ogg", f"fillets-ng-data-{code}"
    return Source(f"fil_{code}", package, pattern, bandwidth, "GPL-2", speaker)


def stamps(code: str, bandwidth: float, speaker: str) -> Source:
    """The names of a drawing program's pictures in one language."""
    pattern, package = f"usr/share/tuxpaint/stamps/*_desc_{code}.ogg", "tuxpaint-stamps-default"
    return Source(f"tux_{code}", package, pattern, bandwidth, "GPL-2", speaker)


LETTERS, WORDS = "usr/share/klettres/*/*/*.ogg", "usr/share/ktuberling/sounds/*/*.ogg"
VOICES = "usr/share/games/hedgewars/Data/Sounds/voices/*.ogg"
# The Russian stamps are in neither set: their speaker, who is not named, may be that of the Russian prompts.
SETS = {
    "train": (
        prompts("es", "CC-BY-SA-3.0", "Mexican Spanish, Allison Smith"),
        prompts("en", "CC-BY-SA-3.0", "American English, Allison Smith"),
        prompts("fr", "CC-BY-SA-3.0", "Canadian French, June Wallack"),
        dialogs("cs", 11000, "Czech, several actors"),
        dialogs("nl", 6800, "Dutch, several actors"),
        *(stamps("ro", 15300, "Romanian"), stamps("es", 19200, "Spanish"), stamps("el", 8700, "Greek")),
        *(stamps("ca", 8300, "Catalan"), stamps("lt", 16000, "Lithuanian"), stamps("nl", 16000, "Dutch")),
        Source("klettres", "klettres-data", LETTERS, 14000, "GPL-2+", "20 languages, letters and syllables"),
        Source("ktub", "ktuberling-data", WORDS, 14000, "GPL-2+", "12 languages, words"),
        Source("hw_voice", "hedgewars-data", VOICES, 15900, "GFDL-1.3", "15 characters in 5 languages"),
    ),
    "valid": (prompts("ru", "CC-BY-3.0", "Russian, IvrvoiceRU"), stamps("bg", 15600, "Bulgarian")),
}


def suitable(sources: Sequence[Source], sample_rate: int) -> list[Source]:
    """The sources that fill four fifths of the band below `sample_rate` / 2; `DataError` if none does."""
    found = [source for source in sources if source.bandwidth >= 0.8 * sample_rate / 2]
    if not found or sample_rate < 8000:
        most = int(max(source.bandwidth for source in sources) * 2 / 0.8)
        raise DataError(f"--sample-rate must be 8000 to {most} for these recordings, got {sample_rate}")
    return found


def find_package(name: str, folder: Path) -> Path:
    """The .deb file of a package, anywhere in `folder`; downloaded if it is not there."""
    if found := sorted(folder.rglob(f"{name}_*.deb")):
        return found[-1].absolute()
    advice = f"Is there a network, and did `apt-get update` run? {name}_*.deb may also be put into {folder}"
    with folder_whole(folder / name) as place:
        run("apt-get", "download", name, cwd=place, advice=advice)
    return find_package(name, folder)


@lru_cache(maxsize=1)
def unpack(package: Path) -> bytes:
    """The tar archive in a package."""
    return run("dpkg-deb", "--fsys-tarfile", os.fspath(package), advice=f"Remove {package} and try again")


def read_package(package: Path, pattern: str) -> dict[str, bytes]:
    """Contents of the files whose path matches, by path."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(unpack(package))) as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if fnmatchcase(path, pattern) and member.isfile() and (file := archive.extractfile(member)):
                found[path] = file.read()
    return dict(sorted(found.items()))


def run(*command: str, cwd: Path | None = None, advice: str) -> bytes:
    """Output of a program of the system; `DataError` with its last words when it is missing or fails."""
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is missing: run this on Debian or Ubuntu, or in a container of one")
    english = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, env=english, check=False)
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"]
        raise DataError(f"`{' '.join(command)}` failed: {words[-1]}. {advice}")
    return done.stdout


def decode(path: str, content: bytes) -> tuple[np.ndarray, int]:
    """Mono audio of a file, float32 `[T]`, and its rate in Hz."""
    if path.endswith(".g722"):
        samples = baselines.run(["-f", "g722", "-i", "pipe:0", "-f", "s16le", "pipe:1"], content)
        return np.frombuffer(samples, "<i2").astype(np.float32) / 32768, 16000
    audio, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return audio.mean(axis=1), rate


def energies(audio: np.ndarray, frame: int) -> np.ndarray:
    """Mean square of each whole frame of `frame` samples, `[F]`."""
    return np.square(audio[: len(audio) // frame * frame].reshape(-1, frame), dtype=np.float64).mean(axis=1)


def trim(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """The audio from 0.12 s before the first to 0.12 s after the last 10 ms within 45 dB of the loudest."""
    frame, margin = sample_rate // 100, round(0.12 * sample_rate)
    energy = energies(audio, frame)
    loud = np.flatnonzero(energy > energy.max() * 10**-4.5)
    return audio[max(0, loud[0] * frame - margin) : (loud[-1] + 1) * frame + margin]


def level(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """The audio with its active parts at −26 dBFS, or lower for a peak of 0.95.

    Active are the 20 ms within 15.9 dB of the mean, the margin of ITU-T P.56.
    """
    energy = energies(audio, sample_rate // 50)
    active = energy[energy >= energy.mean() * 10**-1.59].mean() ** 0.5
    return audio * np.float32(min(10 ** (LEVEL / 20) / active, PEAK / np.abs(audio).max()))


def fade(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """The audio with 5 ms faded at both ends, so that a cut does not click."""
    samples = min(sample_rate // 200, len(audio) // 2)
    ramp = np.linspace(0, 1, samples, dtype=np.float32)
    return audio * np.concatenate([ramp, np.ones(len(audio) - 2 * samples, np.float32), ramp[::-1]])


def clips(recordings: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
    """Recordings of any length as clips: long ones are cut, short ones joined with pauses between."""
    shortest, longest = round(SHORTEST * sample_rate), round(LONGEST * sample_rate)
    pause = np.zeros(round(PAUSE * sample_rate), np.float32)
    joined = np.zeros(0, np.float32)
    for audio in recordings:
        if len(audio) >= shortest:
            # A rest of up to a quarter stays with its recording, and one that makes no clip goes.
            step = longest if len(audio) >= 1.25 * longest else len(audio)
            for start in range(0, len(audio) - shortest + 1, step):
                yield fade(audio[start : start + step], sample_rate)
            continue
        joined = np.concatenate([*([joined, pause] if len(joined) else []), fade(audio, sample_rate)])
        if len(joined) >= shortest:
            yield joined
            joined = np.zeros(0, np.float32)
    if len(joined):
        yield joined


def recordings(files: dict[str, bytes], sample_rate: int, name: str) -> Iterator[np.ndarray]:
    """The files' audio, trimmed and leveled; no copies, no damaged or silent files, none under 0.25 s."""
    seen = set[bytes]()
    for path, content in progress_bar(files.items(), name, unit="file"):
        if content in seen:
            continue
        seen.add(content)
        try:
            audio, rate = decode(path, content)
        except soundfile.LibsndfileError:
            continue
        audio = resample(audio[None], rate, sample_rate)[0]
        if len(audio) >= 0.25 * sample_rate and np.abs(audio).max() >= 1e-3:
            yield level(trim(audio, sample_rate), sample_rate)


def build(output: Path, sample_rate: int, packages: Path) -> None:
    """Build the missing parts of `output`; raises `DataError`, `FileError` or OSError."""
    baselines.ffmpeg()  # or the error that it is missing, before the downloads
    rows: list[dict[str, str]] = []
    for part, sources in SETS.items():
        for source in suitable(sources, sample_rate):
            place = output / part / source.name
            if not place.is_dir():
                write_source(source, place, sample_rate, packages)
            with (place / "manifest.csv").open(encoding="utf-8", newline="") as file:
                rows += csv.DictReader(file)
            if rows[-1]["sample_rate"] != str(sample_rate):
                raise FileError(place, f"is not of {sample_rate} Hz: name another folder, or remove it")
    write_summary(output, rows)


def write_source(source: Source, place: Path, sample_rate: int, packages: Path) -> None:
    """Write a source's folder, whole or not at all."""
    package = find_package(source.package, packages)
    version = run("dpkg-deb", "--field", os.fspath(package), "Version", advice=f"Remove {package}").decode()
    about = source.name, source.package, version.strip(), source.license, source.speaker
    audio = recordings(read_package(package, source.pattern), sample_rate, source.name)
    rows = []
    with folder_whole(place) as folder:
        for number, clip in enumerate(clips(audio, sample_rate)):
            encoded = io.BytesIO()
            soundfile.write(encoded, clip, sample_rate, "PCM_16", format="FLAC")
            (folder / f"{number:05d}.flac").write_bytes(encoded.getvalue())
            name = f"{place.parent.name}/{place.name}/{number:05d}.flac"
            rows.append([name, f"{len(clip) / sample_rate:.3f}", str(sample_rate), *about])
        if not rows:
            raise DataError(f"{package} has no recordings like {source.pattern}: take another version of it")
        for terms in read_package(package, f"usr/share/doc/{source.package}/copyright").values():
            (folder / "copyright.txt").write_bytes(terms)
        (folder / "manifest.csv").write_text(as_csv(rows), encoding="utf-8")


def as_csv(rows: Iterable[Sequence[str]]) -> str:
    """Rows as CSV below `COLUMNS`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return text.getvalue()


def write_summary(output: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the manifest of all files and the hours under each license; print the latter."""
    seconds: dict[str, float] = defaultdict(float)
    for row in rows:
        names = (
            *row["file"].split("/")[:2],
            row["speaker"],
            f"{row['package']} {row['version']}",
            row["license"],
        )
        seconds[" | ".join(names)] += float(row["seconds"])
    table = "".join(f"| {names} | {total / 3600:.2f} |\n" for names, total in seconds.items())
    text = SUMMARY.format(rate=rows[0]["sample_rate"]) + table
    write_whole(output / "manifest.csv", as_csv(list(row.values()) for row in rows))
    write_whole(output / "README.md", text)
    print(text)


def main() -> int:
    """Build the corpus that the command line names."""
    parser = argparse.ArgumentParser(description="Build hours of free speech from Debian packages.")
    parser.add_argument("output", type=Path, help="folder, new or begun")
    parser.add_argument("--sample-rate", type=int, default=16000, help="in Hz; default: %(default)s")
    parser.add_argument("--packages", type=Path, help="of .deb files; default: OUTPUT/.packages")
    options = parser.parse_args()
    build(options.output, options.sample_rate, options.packages or options.output / ".packages")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
