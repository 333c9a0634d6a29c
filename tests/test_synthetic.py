"""Synthetic audio: like speech and music as far as numbers tell, and the same every time."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

import codec.audio.synthetic
from codec.audio.synthetic import music, pluck, speech, write_synthetic_folder
from codec.data.scan import scan

RATE = 24000


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def frames(audio: np.ndarray, length: int = 480) -> np.ndarray:
    return audio[: len(audio) // length * length].reshape(-1, length)


def levels(audio: np.ndarray) -> np.ndarray:
    """RMS of each 20 ms in dB relative to the loudest."""
    power = (frames(audio) ** 2).mean(axis=1) + 1e-12
    return 10 * np.log10(power / power.max())


def centroids(audio: np.ndarray) -> np.ndarray:
    """Spectral center of gravity (Hz) of the 20 ms frames that are not quiet."""
    spectra = np.abs(np.fft.rfft(frames(audio) * np.hanning(480))) ** 2
    frequency = np.fft.rfftfreq(480, 1 / RATE)
    return (spectra @ frequency / spectra.sum(axis=1))[levels(audio) > -30]


def periodicity(audio: np.ndarray) -> np.ndarray:
    """Highest normalized autocorrelation at a lag of 50 to 400 Hz in each 60 ms, where not quiet."""
    result = []
    for frame in frames(audio, 1440):
        if (frame**2).mean() > 0.05 * (audio**2).mean():
            correlation = np.fft.irfft(np.abs(np.fft.rfft(frame - frame.mean(), 4096)) ** 2)
            unbiased = correlation[:480] / correlation[0] * 1440 / (1440 - np.arange(480))
            result.append(unbiased[60:480].max())
    return np.array(result)


@pytest.fixture(scope="module")
def voices() -> list[np.ndarray]:
    return [speech(5.0, RATE, rng(seed)) for seed in range(12)]


@pytest.fixture(scope="module")
def songs() -> list[np.ndarray]:
    return [music(5.0, RATE, rng(seed)) for seed in range(12)]


def test_audio_is_finite_and_unclipped(voices, songs):
    for audio in voices + songs:
        assert audio.dtype == np.float32 and audio.shape == (5 * RATE,)
        assert 0.25 < np.abs(audio).max() < 1 and abs(audio.mean()) < 0.01
        assert -32 < 20 * np.log10(audio.std()) < -10


def test_speech_has_pauses(voices):
    silence = np.array([(levels(audio) < -45).mean() for audio in voices])
    assert 0.05 < silence.mean() < 0.25 and silence.max() < 0.4


def test_speech_is_voiced_and_unvoiced(voices):
    found = np.concatenate([periodicity(audio) for audio in voices])
    assert (found > 0.7).mean() > 0.5 and (found < 0.5).mean() > 0.05
    bright = np.concatenate([centroids(audio) for audio in voices])
    assert (bright < 1500).mean() > 0.5 and 0.05 < (bright > 3000).mean() < 0.4


def test_voices_differ(voices):
    def pitch(audio: np.ndarray) -> float:
        found = []
        for frame in frames(audio, 1440):
            correlation = np.fft.irfft(np.abs(np.fft.rfft(frame - frame.mean(), 4096)) ** 2)
            lag = 60 + correlation[60:480].argmax()
            if correlation[lag] > 0.6 * correlation[0]:
                found.append(RATE / lag)
        return float(np.median(found))

    pitches = [pitch(audio) for audio in voices]
    assert min(pitches) < 130 and max(pitches) > 160 and all(60 < pitch < 400 for pitch in pitches)


def test_music_sounds_on_and_varies(songs):
    assert np.mean([(levels(audio) < -45).mean() for audio in songs]) < 0.02
    found = np.concatenate([centroids(audio) for audio in songs])
    assert np.percentile(found, 5) < 700 and np.percentile(found, 95) > 1500


@pytest.mark.parametrize("frequency", [55.0, 196.0, 440.0, 987.77])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_strings_are_in_tune_and_die_away(frequency, rate):
    sound = pluck(frequency, 1.0, rate, 0.9, rng(0))
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 8 * rate))
    near = slice(int(8 * frequency * 0.94), int(8 * frequency * 1.06))
    found = (near.start + spectrum[near].argmax()) / 8
    assert abs(1200 * np.log2(found / frequency)) < 10  # cents
    comb = np.arange(1, 4) * found * 8
    assert spectrum[np.round(comb).astype(int)].max() > 20 * np.median(spectrum[: 4 * len(comb) * int(found)])
    fifth = rate // 5
    assert 0 < (sound[-fifth:] ** 2).mean() < 0.5 * (sound[:fifth] ** 2).mean()


@pytest.mark.parametrize("rate", [8000, 44100])
def test_any_rate_works(rate):
    for make in (speech, music):
        audio = make(2.0, rate, rng(3))
        assert audio.shape == (2 * rate,) and np.isfinite(audio).all() and 0.2 < np.abs(audio).max() < 1


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_folder_is_the_same_every_time(tmp_path):
    write_synthetic_folder(tmp_path / "a", 30, RATE, seed=3)
    write_synthetic_folder(tmp_path / "b", 30, RATE, seed=3)
    made = contents(tmp_path / "a")
    assert made == contents(tmp_path / "b") and len(set(made.values())) == 6
    assert list(made) == [f"{kind}_{number:04d}.wav" for kind in ("music", "speech") for number in (1, 2, 3)]
    write_synthetic_folder(tmp_path / "c", 30, RATE, seed=4)
    assert not set(made.values()) & set(contents(tmp_path / "c").values())
    info = soundfile.info(tmp_path / "a" / "speech_0001.wav")
    assert (info.samplerate, info.frames, info.subtype) == (RATE, 5 * RATE, "PCM_16")
    index = scan(tmp_path / "a", cache_dir=tmp_path / "cache")
    assert len(index.usable) == 6 and not index.clipped
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "cache"]


def test_a_second_run_changes_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    write_synthetic_folder(tmp_path / "a", 10, RATE)
    before = {path.name: path.stat().st_mtime_ns for path in [tmp_path, *(tmp_path / "a").iterdir()]}
    assert len(before) == 3
    write_synthetic_folder(tmp_path / "a", 10, RATE)
    assert {path.name: path.stat().st_mtime_ns for path in [tmp_path, *(tmp_path / "a").iterdir()]} == before


def test_missing_files_are_added_and_others_kept(tmp_path):
    folder = tmp_path / "a"
    write_synthetic_folder(folder, 10, RATE)
    made = contents(folder)
    (folder / "music_0001.wav").unlink()
    (folder / "speech_0001.wav").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine")
    write_synthetic_folder(folder, 10, RATE)
    assert contents(folder)["music_0001.wav"] == made["music_0001.wav"]
    assert (folder / "speech_0001.wav").read_bytes() == b"mine" and (folder / "notes.txt").exists()
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupted(path, audio, rate):
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt
        path.write_bytes(b"")

    monkeypatch.setattr(codec.audio.synthetic, "write_wav", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_folder(tmp_path / "a", 30, RATE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("seconds, rate", [(0, RATE), (10, 0), (-5, RATE)])
def test_impossible_sizes_are_refused(tmp_path, seconds, rate):
    with pytest.raises(ValueError, match="must be positive"):
        write_synthetic_folder(tmp_path / "a", seconds, rate)
    assert os.listdir(tmp_path) == []
