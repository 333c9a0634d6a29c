"""Reading and writing: right samples from good files, a clear reason from bad ones."""

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from bad_audio import BAD, CONTENT, GOOD, MP3, RATE, encoded, mp3_without_xing, tone, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codec.audio.conversion import resampled_length
from codec.audio.mp3 import remarks, walk
from codec.audio.reading import AudioError, AudioInfo, read_audio, read_info, read_segment
from codec.audio.wav import parse
from codec.audio.writing import write_wav
from codec.system.files import printable


@pytest.fixture(autouse=True)
def never_block():
    signal.alarm(60)  # a FIFO that is opened would wait for ever
    yield
    signal.alarm(0)


def tolerance(name: str) -> float:
    lossy = {"pcm8.wav": 1e-2, "ulaw.wav": 2e-2, "vorbis.ogg": 5e-2, "opus.opus": 5e-2, "lame.mp3": 5e-2}
    return lossy.get(name, 5e-4 if GOOD[name][1] == RATE else 3e-3)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "clipped.wav"])
def test_a_good_file_gives_the_sine_that_was_written(tmp_path, name):
    make, rate, channels = GOOD[name]
    make(tmp_path / name)
    info = read_info(tmp_path / name)
    assert info == AudioInfo(rate, rate, channels)
    crop = read_segment(tmp_path / name, 4000, 8000, RATE, 1)
    level = (0.5 / (1 + np.arange(channels))).mean()
    expected = level * np.sin(2 * np.pi * 440 * np.arange(4000, 12000) / RATE)
    assert crop.shape == (1, 8000) and crop.dtype == np.float32
    assert np.abs(crop[0] - expected).max() < tolerance(name)
    audio, read_rate = read_audio(tmp_path / name)
    assert audio.shape == (channels, rate) and read_rate == rate


@pytest.mark.parametrize("name", [name for name in BAD if name not in CONTENT])
def test_a_bad_header_is_refused_with_the_name_and_the_reason(tmp_path, name):
    make, reason = BAD[name]
    make(tmp_path / name)
    if name == "gsm.wav":
        with pytest.raises(AudioError, match="not seekable"):
            read_segment(tmp_path / name, 0, 100, RATE, 1)
        return
    for read in (read_info, read_audio):
        with pytest.raises(AudioError) as caught:
            read(tmp_path / name)
        assert reason in caught.value.reason
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("name", ["joined.mp3", "joined.flac", "chained.ogg", "chained.opus", "1e300.wav"])
def test_what_a_header_hides_is_named_by_whoever_reads_all_of_it(tmp_path, name):
    make, reason = BAD[name]
    make(tmp_path / name)
    assert read_info(tmp_path / name).frames > 0
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / name)
    assert reason in caught.value.reason


def spoken(content: bytes, path: Path) -> tuple[int, np.ndarray]:
    """Length as the header says, and all samples, of an MP3 of 20 s."""
    path.write_bytes(content)
    audio, rate = read_audio(path)
    assert rate == RATE and abs(audio.shape[1] - 20 * RATE) < 3 * 576
    return read_info(path).frames, audio


@pytest.mark.parametrize("tag", [b"", b"ID3\3\0\0\0\x06\x1a\x00" + bytes(6 * 2**14 + 0x1A * 2**7)])
@pytest.mark.parametrize(
    "trailer", [b"", b"TAG".ljust(128, b"\0"), b"APETAGEX".ljust(32, b"\0") + bytes(3000)]
)
def test_all_of_an_mp3_without_a_xing_header_is_read(tmp_path, tag, trailer):
    plain = mp3_without_xing()
    assert soundfile.SoundFile(io.BytesIO(plain)).frames < 18 * RATE  # what libmpg123 makes of it
    frames, audio = spoken(tag + plain + trailer, tmp_path / "a.mp3")
    assert frames == audio.shape[1]
    crop = read_segment(tmp_path / "a.mp3", 19 * RATE, 4000, RATE, 1, expected=read_info(tmp_path / "a.mp3"))
    np.testing.assert_allclose(crop[0], audio[0, 19 * RATE : 19 * RATE + 4000], atol=1e-5)
    level = np.sqrt((audio[0, 15 * RATE : 19 * RATE] ** 2).mean())
    assert level == pytest.approx(0.5 / np.sqrt(2), rel=0.05)  # the tone of the last two thirds


def test_an_mp3_is_walked_over_tags_junk_and_a_cut_end(tmp_path):
    frames = mp3_without_xing()
    whole = walk(io.BytesIO(frames))
    assert whole and (whole.gaps, whole.junk, whole.end) == (0, 0, len(frames)) and whole.counted is None
    cut = walk(io.BytesIO(frames[:-10]))
    assert cut and cut.frames == whole.frames - 1
    id3 = b"ID3\3\0\0\0\0\1\0" + bytes(128)
    odd = walk(io.BytesIO(frames + id3 + frames + bytes(500) + frames + b"TAG".ljust(128, b"\0")))
    assert odd and (odd.frames, odd.gaps, odd.junk) == (3 * whole.frames, 2, 500)
    counted = walk(io.BytesIO(encoded(20.0, **MP3)))
    assert counted and counted.counted == counted.frames == whole.frames
    assert walk(io.BytesIO(bytes(10000))) is None and walk(io.BytesIO(b"\xff\xf3")) is None


def test_what_libmpg123_prints_is_caught_and_logged_once_with_the_name(tmp_path, capfd, caplog):
    odd = tmp_path / "odd.mp3"
    odd.write_bytes(encoded(20.0, **MP3) + b"APETAGEX".ljust(32, b"\0") + bytes(30000))
    for _ in range(3):
        read_segment(odd, 0, 100, RATE, 1)
        read_audio(odd)
    assert caplog.text.count("libmpg123 says: Warning: Xing stream size off") == 1
    assert f"{odd}: libmpg123 says" in caplog.text
    assert "Xing" not in capfd.readouterr().err
    with remarks() as found:
        os.write(2, b"Note: of libmpg123\nof another\n")
    assert found == ["Note: of libmpg123"] and capfd.readouterr().err == "of another\n"


@pytest.mark.parametrize("format", ["AIFF", "AU", "CAF", "RIFX"])
def test_every_container_that_counts_too_little_is_refused(tmp_path, format):
    kind = {"format": "WAV", "endian": "BIG"} if format == "RIFX" else {"format": format}
    content = bytearray(encoded(4.0, **kind))
    size = {"AIFF": (b"SSND", 4, 8), "AU": (b".snd", 4, 0), "CAF": (b"data", 8, 4), "RIFX": (b"data", 4, 0)}
    mark, width, more = size[format]
    at = content.index(mark) + (8 if format == "AU" else 4)
    content[at : at + width] = (2 * RATE + more).to_bytes(width, "big")
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(AudioError, match=r"header counts too little: 1\.0 s of 4\.0 s"):
        read_info(tmp_path / "a")


def test_chunks_and_padding_behind_the_samples_hide_nothing(tmp_path):
    content = encoded(4.0)
    for more in (b"LIST" + (99_999).to_bytes(4, "little") + bytes(100_000), bytes(RATE), b"bext\0\0\0\0id3 "):
        (tmp_path / "a.wav").write_bytes(content + more)
        assert read_info(tmp_path / "a.wav").frames == 4 * RATE


@pytest.mark.parametrize("name", ["cut.flac", "cut.mp3", "nan.wav", "inf.wav"])
def test_bad_content_is_refused_when_it_is_read(tmp_path, name):
    BAD[name][0](tmp_path / name)
    info = read_info(tmp_path / name)
    with pytest.raises(AudioError, match=r"truncated|not finite"):
        read_audio(tmp_path / name)
    with pytest.raises(AudioError, match=r"truncated|not finite"):
        read_segment(tmp_path / name, 0, info.frames, RATE, 1)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    path = tmp_path / "secret.wav"
    write(path, tone())
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything: let the system refuse instead
        path.write_bytes(b"")
        path.write_bytes(b"RIFF")

        def refuse(*arguments):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AudioError, match=r"secret\.wav: permission denied"):
        read_info(path)


def test_a_folder_and_a_raw_file_are_refused(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="not a regular file but a folder"):
        read_info(tmp_path / "folder.wav")
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match="headerless"):
        read_audio(tmp_path / "samples.raw")


def test_a_changed_header_is_noticed(tmp_path):
    write(tmp_path / "a.wav", tone())
    with pytest.raises(AudioError, match="changed since it was scanned"):
        read_segment(tmp_path / "a.wav", 0, 100, RATE, 1, expected=AudioInfo(RATE + 1, RATE, 1))


def test_a_crop_over_the_end_is_refused_and_the_last_one_is_not(tmp_path):
    write(tmp_path / "a.wav", tone()[:-1])
    for rate in (RATE, 24000, 44100):  # soxr would round 23998.5 up
        total = resampled_length(RATE - 1, RATE, rate)
        assert read_segment(tmp_path / "a.wav", total - 100, 100, rate, 1).shape == (1, 100)
        for start in (total - 99, total, total + 10**6):
            with pytest.raises(AudioError, match=r"truncated: .* of 100 samples"):
                read_segment(tmp_path / "a.wav", start, 100, rate, 1)


@pytest.mark.parametrize("start, frames", [(-1, 10), (0, 0), (5, -1)])
def test_impossible_segments_are_value_errors(tmp_path, start, frames):
    with pytest.raises(ValueError, match="start >= 0 and frames >= 1"):
        read_segment(tmp_path / "a.wav", start, frames, RATE, 1)


@pytest.mark.parametrize("file_channels, wanted", [(1, 2), (2, 1), (6, 1), (6, 2), (2, 2)])
def test_channels_are_kept_or_averaged(tmp_path, file_channels, wanted):
    audio = tone(channels=file_channels)
    write(tmp_path / "a.wav", audio, subtype="FLOAT")
    mean = audio.mean(axis=1)
    expected = audio.T if file_channels == wanted else np.stack([mean] * wanted)
    for read in (
        read_segment(tmp_path / "a.wav", 0, RATE, RATE, wanted),
        read_audio(tmp_path / "a.wav", None, wanted)[0],
    ):
        np.testing.assert_allclose(read, expected, atol=1e-6)


@pytest.fixture(scope="module")
def noises(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("noises")
    for rate in (8000, 22050, 24000, 44100, 44101, 48000, 192000):
        noise = np.random.default_rng(rate).standard_normal((2 * rate, 2)) * 0.1
        soundfile.write(folder / f"{rate}.flac", noise, rate)
        soundfile.write(folder / f"{rate}.wav", noise, rate)
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_crop_is_the_slice_of_the_whole_file(noises, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in noises.iterdir())))
    rate = data.draw(st.sampled_from([16000, 24000, 44100]))
    source, file_rate = soundfile.read(noises / name, dtype="float32", always_2d=True)
    whole = source if rate == file_rate else soxr.resample(source, file_rate, rate, quality="HQ")
    length = resampled_length(len(source), file_rate, rate)
    start = data.draw(st.integers(0, length - 1))
    frames = data.draw(st.integers(1, length - start))
    crop = read_segment(noises / name, start, frames, rate, 2)
    if rate == file_rate:
        np.testing.assert_array_equal(crop, whole[start : start + frames].T)
    else:
        np.testing.assert_allclose(crop, whole[start : start + frames].T, atol=5e-6)


def test_a_plain_wav_is_what_libsndfile_reads_or_is_left_to_it(tmp_path):
    random, accepted, path = np.random.default_rng(0), 0, tmp_path / "a.wav"
    write(path, random.uniform(-1, 1, (300, 2)))
    plain = path.read_bytes()
    texts = b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf58.76.100\0"
    listed = (
        plain[:4] + (len(plain) + len(texts) - 8).to_bytes(4, "little") + plain[8:36] + texts + plain[36:]
    )
    for original in (plain, listed):
        assert parse(original, len(original)) is not None
        for _ in range(300):
            content = bytearray(original)
            for place in random.integers(0, len(original) - 1200, random.integers(0, 3)):
                content[place] = random.choice([0, 1, 2, 3, 4, 16, 255, random.integers(256)])
            content += bytes(random.integers(2) * random.integers(3))
            if layout := parse(bytes(content), len(content)):
                accepted += 1
                path.write_bytes(content)
                with soundfile.SoundFile(path) as file:
                    assert layout[1:] == (file.frames, file.samplerate, file.channels)
                    expected = file.read(dtype="float32", always_2d=True)
                crop = read_segment(path, 0, layout.frames, layout.sample_rate, layout.channels)
                assert crop.tobytes() == np.ascontiguousarray(expected.T).tobytes()
    assert accepted > 100


@pytest.mark.parametrize("rate", [8000, 44101, 192000])
def test_read_audio_in_blocks_resamples_like_soxr_at_once(noises, rate, monkeypatch):
    monkeypatch.setattr("codec.audio.reading.BLOCK", 1000)
    source, _ = soundfile.read(noises / f"{rate}.wav", dtype="float32")
    audio, _ = read_audio(noises / f"{rate}.wav", 24000)
    expected = soxr.resample(source, rate, 24000, quality="HQ")[: 2 * 24000].T
    np.testing.assert_allclose(audio, expected, atol=5e-6)


def test_only_the_crop_is_decoded(noises, monkeypatch):
    asked = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, frames=-1, **options: asked.append(frames) or read(file, frames, **options),
    )
    read_segment(noises / "44100.flac", 24000, 2400, 24000, 1)
    assert len(asked) == 1 and 4410 <= asked[0] < 4410 + 1500


def test_written_audio_comes_back(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, (2, 1000))
    write_wav(tmp_path / "a.wav", samples / 32768, 24000)
    audio, rate = read_audio(tmp_path / "a.wav")
    assert rate == 24000 and soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    np.testing.assert_array_equal(audio * 32768, samples)
    write_wav(tmp_path / "a.wav", np.array([[3.0, -3.0, 1.0, 0.0]]), 24000)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], [[1, -1, 1, 0]], atol=1 / 32768)
    assert os.listdir(tmp_path) == ["a.wav"]


def test_write_wav_takes_odd_names_and_refuses_what_is_not_audio(tmp_path):
    for name in ("n" * 251 + ".wav", os.fsdecode(b"\xff.wav")):
        write_wav(tmp_path / name, np.zeros((1, 10)), RATE)
        assert read_info(tmp_path / name).frames == 10
    with pytest.raises(ValueError, match=r"b\.wav: not written: the audio holds NaN"):
        write_wav(tmp_path / "b.wav", np.array([[0, np.nan]]), RATE)
    with pytest.raises(ValueError, match=r"shape \[C, T\], got \[10\]"):
        write_wav(tmp_path / "b.wav", np.zeros(10), RATE)
    assert len(os.listdir(tmp_path)) == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_wav(tmp_path / "a.wav", np.zeros((1, 10)), RATE)

    def fail(file, *arguments, **options):
        file.buffer_write(b"half", "int16")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        write_wav(tmp_path / "a.wav", np.zeros((1, 20)), RATE)
    assert read_info(tmp_path / "a.wav").frames == 10 and os.listdir(tmp_path) == ["a.wav"]


@given(st.binary(min_size=1, max_size=30))
def test_names_print_as_one_line_of_utf8(name):
    text = printable(os.fsdecode(name))
    assert text.isprintable() and text.encode("utf-8")
