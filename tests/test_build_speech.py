"""A corpus from packages made here: what becomes of recordings, what is built again, and what stops it."""

import csv
import errno
import hashlib
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import build_speech
import numpy as np
import pytest
import soundfile
from bad_audio import RATE, tone
from build_speech import SETS, Source, build, clips, decode, level, suitable, trim

from codec.config import ConfigError
from codec.data.index import DataError
from codec.evaluation import classical as baselines
from codec.system.files import FileError

TRAIN = Source("words", "fake-words", "usr/share/words/*.ogg", 8000, "GPL-2+", "English, two voices")
VALID = Source("letters", "fake-letters", "usr/share/letters/*.ogg", 8000, "CC0-1.0", "Finnish, one voice")


def ogg(seconds: float, frequency: float = 440.0, rate: int = RATE) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, tone(seconds, rate, 2, frequency), rate, format="OGG", subtype="VORBIS")
    return content.getvalue()


@pytest.fixture(scope="module")
def debs(tmp_path_factory) -> Path:
    """Two packages: one with a long, some short, a copied, a damaged and a silent recording; one with few."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    folder = tmp_path_factory.mktemp("debs")
    short = {f"b/{number}.ogg": ogg(0.8, 300 + 50 * number, 22050) for number in range(5)}
    silent = io.BytesIO()
    soundfile.write(silent, np.zeros(RATE), RATE, format="OGG", subtype="VORBIS")
    twice = ogg(3.0)
    words = {"a.ogg": ogg(33.0), "a2.ogg": twice, "copy.ogg": twice, "notes.txt": b"not audio", **short}
    words |= {"c.ogg": ogg(1.0)[:500], "d.ogg": silent.getvalue()}
    make_deb(folder, "fake-words", {f"words/{name}": content for name, content in words.items()})
    make_deb(folder, "fake-letters", {"letters/a.ogg": ogg(2.5, 700.0)})
    return folder


def make_deb(folder: Path, name: str, files: dict[str, bytes]) -> None:
    root = folder / "made" / name
    files = {**files, f"doc/{name}/copyright": f"terms of {name}".encode()}
    for path, content in files.items():
        (root / "usr/share" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "usr/share" / path).write_bytes(content)
    (root / "DEBIAN").mkdir()
    fields = {
        "Package": name,
        "Version": "4:1.2-3",
        "Architecture": "all",
        "Maintainer": "a",
        "Description": "b",
    }
    (root / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    command = ["dpkg-deb", "--root-owner-group", "-b", root, folder / f"{name}_4%3a1.2-3_all.deb"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    monkeypatch.setattr(build_speech, "SETS", {"train": (TRAIN,), "valid": (VALID,)})
    monkeypatch.setattr(baselines, "ffmpeg", lambda: "ffmpeg")
    build_speech.unpack.cache_clear()


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".packages" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The sources


def test_no_source_and_no_speaker_is_in_both_sets():
    names = {part: [source.name for source in sources] for part, sources in SETS.items()}
    assert (
        set(names["valid"]) == {"ast_ru", "tux_bg"} and len(names["train"]) == len(set(names["train"])) == 14
    )
    assert not set(names["train"]) & {"ast_ru", "tux_bg", "tux_ru"}
    files, speakers = (
        [{getattr(source, key) for source in sources} for sources in SETS.values()]
        for key in ("pattern", "speaker")
    )
    assert not speakers[0] & speakers[1]
    assert files[0] & files[1] == {"usr/share/asterisk/sounds/*.g722"}  # of a package for each language


def test_sources_that_leave_the_band_empty_are_left_out():
    names = [[source.name for source in suitable(SETS["train"], rate)] for rate in (16000, 24000)]
    assert set(names[0]) - set(names[1]) == {"ast_es", "ast_en", "ast_fr", "fil_nl", "tux_el", "tux_ca"}
    for rate in (44100, 0):
        with pytest.raises(DataError, match=f"--sample-rate must be 8000 to 39000 for .*, got {rate}"):
            suitable(SETS["valid"], rate)


def test_the_readme_names_every_source():
    text = (Path(__file__).parent.parent / "codec/data/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (train|valid) \| (.*?) \| `(.*?)` \| (.*?) \|$", text, re.MULTILINE)
    listed = {(part, package, terms) for part, _, package, terms in rows}
    assert listed == {(part, source.package, source.license) for part in SETS for source in SETS[part]}


# Recordings


def test_ends_are_cut_off_to_a_short_margin():
    audio = np.zeros(2 * RATE, np.float32)
    audio[8000:16000] = tone(0.5)[:, 0]
    audio[20000] = 1e-2  # 53 dB below the tone, in its 10 ms
    np.testing.assert_array_equal(trim(audio, RATE), audio[8000 - 1920 : 16000 + 1920])
    np.testing.assert_array_equal(trim(audio[8000:], RATE), audio[8000 : 16000 + 1920])


@pytest.mark.parametrize("volume", [0.01, 1.0])
def test_active_speech_is_leveled_whatever_the_pauses(volume):
    audio = np.concatenate([volume * tone(1.0)[:, 0], np.zeros(3 * RATE, np.float32)])
    assert 20 * np.log10(np.sqrt(np.mean(level(audio, RATE)[:RATE] ** 2))) == pytest.approx(-26, abs=0.01)


def test_leveling_keeps_peaks_below_full_scale():
    audio = 0.02 * tone(1.0)[:, 0]
    audio[8000] = 0.5
    assert np.abs(level(audio, RATE)).max() == pytest.approx(0.95, abs=1e-4)


def test_long_recordings_are_cut_and_short_ones_joined_in_order():
    seconds = [33.0, 0.8, 0.7, 3.0, 0.9, 18.0, 31.0, 0.5]
    made = list(clips((np.full(int(s * RATE), n + 1, np.float32) for n, s in enumerate(seconds)), RATE))
    # 0.8, 0.7 and 0.9 s with pauses of 0.12 s are the first 2 s; a rest of 1 s is dropped, 0.5 s come last
    lengths = [15.0, 15.0, 3.0, 3.0, 0.8 + 0.12 + 0.7 + 0.12 + 0.9, 18.0, 15.0, 15.0, 0.5]
    assert [len(clip) / RATE for clip in made] == pytest.approx(lengths, abs=1e-4)
    inside = [clip[len(clip) // 2] for clip in (*made[:4], *made[5:])]
    assert inside == [1, 1, 1, 4, 6, 7, 7, 8]
    joined = made[4]
    assert [joined[int(at * RATE)] for at in (0.4, 0.86, 1.2, 1.68, 2.0)] == [2, 0, 3, 0, 5]
    assert all(clip[0] == 0 and clip[-1] == 0 and np.abs(np.diff(clip)).max() < 0.2 for clip in made)


def test_g722_decodes_to_what_was_encoded(monkeypatch):
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra `baselines`")
    monkeypatch.undo()
    wave = tone(1.0)[:, 0]
    samples = (wave * 32767).astype("<i2").tobytes()
    arguments = ["-f", "s16le", "-ar", "16000", "-ac", "1", "-i", "pipe:0", "-f", "g722", "pipe:1"]
    audio, rate = decode("a.g722", baselines.run(arguments, samples))
    assert rate == 16000 and audio.dtype == np.float32 and abs(len(audio) - len(wave)) < 50
    spectrum = np.abs(np.fft.rfft(audio, RATE))
    assert spectrum.argmax() == 440 and np.abs(audio).max() == pytest.approx(0.5, abs=0.05)


# The corpus


def test_what_is_built(debs, tmp_path, capsys):
    build(tmp_path / "out", RATE, debs)
    with (tmp_path / "out/manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.flac")
    )
    lengths = [float(row["seconds"]) for row in rows]
    # cut in three; one of the two copies; five of 0.8 s in two clips; 2.5 s for validation
    assert lengths == pytest.approx([15, 15, 3, 3, 2.64, 1.72, 2.5], abs=0.02)
    for row in rows:
        audio, rate = soundfile.read(tmp_path / "out" / row["file"])
        assert (
            rate == RATE
            and audio.ndim == 1
            and len(audio) / rate == pytest.approx(float(row["seconds"]), abs=1e-3)
        )
        assert 20 * np.log10(np.sqrt(np.mean(audio**2))) == pytest.approx(-26, abs=1)
    about = {(row["source"], row["package"], row["version"], row["license"], row["speaker"]) for row in rows}
    assert about == {
        ("words", "fake-words", "4:1.2-3", "GPL-2+", "English, two voices"),
        ("letters", "fake-letters", "4:1.2-3", "CC0-1.0", "Finnish, one voice"),
    }
    assert (tmp_path / "out/train/words/copyright.txt").read_text() == "terms of fake-words"
    summary = (tmp_path / "out/README.md").read_text()
    assert "| train | words | English, two voices | fake-words 4:1.2-3 | GPL-2+ | 0.01 |" in summary
    assert summary in capsys.readouterr().out


def test_only_what_is_missing_is_built_and_all_is_as_before(debs, tmp_path, monkeypatch):
    build(tmp_path / "out", RATE, debs)
    before = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/valid/letters")
    (tmp_path / "out/manifest.csv").unlink()
    asked: list[str] = []
    find = build_speech.find_package
    monkeypatch.setattr(build_speech, "find_package", lambda name, *a: asked.append(name) or find(name, *a))
    build(tmp_path / "out", RATE, debs)
    assert asked == ["fake-letters"] and contents(tmp_path / "out") == before
    build(tmp_path / "out", RATE, tmp_path / "nothing")
    assert asked == ["fake-letters"] and contents(tmp_path / "out") == before


def test_a_disk_that_fills_up_leaves_nothing_half_written(debs, tmp_path, monkeypatch):
    write, count = Path.write_bytes, iter(range(100))

    def full(path: Path, data: bytes) -> int:
        if next(count) == 2:
            write(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/out/train/words'"):
        build(tmp_path / "out", RATE, debs)
    assert contents(tmp_path / "out") == {} and list((tmp_path / "out/train").iterdir()) == []


def test_another_rate_needs_another_folder(debs, tmp_path):
    build(tmp_path / "out", RATE, debs)
    with pytest.raises(FileError, match=r"train/words: is not of 8000 Hz: name another folder, or remove it"):
        build(tmp_path / "out", 8000, debs)


def test_packages_are_downloaded_once(debs, tmp_path, monkeypatch):
    program(tmp_path, f'[ "$1" = download ] && echo $2 >> {tmp_path}/asked && cp {debs}/$2_*.deb .')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for _ in range(2):
        build(tmp_path / "out", RATE, tmp_path / "out/.packages")
        shutil.rmtree(tmp_path / "out/train")
    assert (tmp_path / "asked").read_text().split() == ["fake-words", "fake-letters"]


def program(tmp_path: Path, script: str) -> None:
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin/apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "bin/apt-get").chmod(0o755)


def test_a_download_that_fails_says_why_and_what_to_do(tmp_path, monkeypatch):
    program(tmp_path, "touch half.deb; echo 'W: odd' >&2; echo 'E: Unable to locate package' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    reason = (
        r"`apt-get download fake-words` failed: E: Unable to locate package. Is there a network, and did `apt"
    )
    with pytest.raises(DataError, match=reason):
        build(tmp_path / "out", RATE, tmp_path / "packages")
    assert contents(tmp_path / "out") == {} and list((tmp_path / "packages").iterdir()) == []


def test_a_system_without_apt_is_told_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError, match="apt-get is missing: run this on Debian or Ubuntu, or in a container"
    ):
        build(tmp_path / "out", RATE, tmp_path / "packages")


def test_a_broken_package_is_named(debs, tmp_path):
    whole = (debs / "fake-words_4%3a1.2-3_all.deb").read_bytes()
    (tmp_path / "fake-words_1_all.deb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"`dpkg-deb .*failed: .*Remove .*fake-words_1_all.deb"):
        build(tmp_path / "out", RATE, tmp_path)
    assert contents(tmp_path / "out") == {}


def test_a_package_without_the_recordings_is_named(debs, tmp_path, monkeypatch):
    other = TRAIN._replace(pattern="usr/share/songs/*.ogg")
    monkeypatch.setattr(build_speech, "SETS", {"train": (other,)})
    with pytest.raises(DataError, match=r"fake-words_.*deb has no recordings like usr/share/songs/\*.ogg"):
        build(tmp_path / "out", RATE, debs)


def test_a_missing_ffmpeg_is_named_before_anything_is_downloaded(tmp_path, monkeypatch):
    def missing():
        raise ConfigError("baselines need FFmpeg")

    monkeypatch.setattr(baselines, "ffmpeg", missing)
    with pytest.raises(ConfigError, match="FFmpeg"):
        build(tmp_path / "out", RATE, tmp_path / "packages")
    assert list(tmp_path.iterdir()) == []
