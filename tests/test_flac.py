"""FLAC that was written to a pipe: its samples are counted at its end, and it is read as any other."""

import io

import numpy as np
import pytest
import soundfile

from codec.audio import flac
from codec.audio.reading import AudioError, read_audio, read_info, read_segment
from codec.data.scan import scan

RATE = 16_000


def content(samples: int, channels: int = 1, subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    random = np.random.default_rng(samples)
    audio = 0.3 * random.standard_normal((samples, channels)).cumsum(0) / max(1, samples) ** 0.5
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.clip(-1, 1), rate, format="FLAC", subtype=subtype)
    return buffer.getvalue()


def without_length(data: bytes) -> bytes:
    """As an encoder leaves it in a pipe: without samples, frame sizes and the checksum of the audio."""
    head = bytearray(data[:42])
    head[12:18] = bytes(6)
    head[21] &= 0xF0
    head[22:42] = bytes(20)
    return bytes(head) + data[42:]


@pytest.mark.parametrize("samples", [1, 15, 192, 4095, 4096, 4097, 8192, 100_001, 600_000])
@pytest.mark.parametrize(("channels", "subtype", "rate"), [(1, "PCM_16", RATE), (2, "PCM_24", 22_051)])
def test_samples_are_counted_and_read_as_those_of_a_file(tmp_path, samples, channels, subtype, rate):
    data = content(samples, channels, subtype, rate)
    (tmp_path / "a.flac").write_bytes(data)
    (tmp_path / "piped.flac").write_bytes(without_length(data))
    assert read_info(tmp_path / "piped.flac") == (samples, rate, channels) == read_info(tmp_path / "a.flac")
    whole = read_audio(tmp_path / "a.flac")[0]
    np.testing.assert_array_equal(read_audio(tmp_path / "piped.flac")[0], whole)
    start, count = samples // 3, max(1, samples // 4)
    crop = read_segment(tmp_path / "piped.flac", start, count, rate, channels)
    np.testing.assert_array_equal(crop, whole[:, start : start + count])


def test_a_folder_with_one_is_usable(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs/piped.flac").write_bytes(without_length(content(4 * RATE)))
    index = scan(tmp_path / "wavs")
    assert not index.problems and index.usable[0].frames == 4 * RATE


def test_a_file_that_changed_is_counted_again(tmp_path):
    for samples in (5000, 9000):
        (tmp_path / "a.flac").write_bytes(without_length(content(samples)))
        assert read_info(tmp_path / "a.flac").frames == samples


def test_an_end_that_is_no_frame_is_said(tmp_path):
    data = without_length(content(50_000))
    damaged = data[:-500] + bytes([data[-500] ^ 1]) + data[-499:]
    for wrong in (data[:-1], data + b"x", data[:42], damaged):
        (tmp_path / "a.flac").write_bytes(wrong)
        with pytest.raises(AudioError, match="length unknown: its header counts no samples"):
            read_info(tmp_path / "a.flac")


def test_a_count_that_does_not_decode_is_no_count(tmp_path):
    data = without_length(content(50_000))
    middle = len(data) // 2
    (tmp_path / "a.flac").write_bytes(data[:middle] + data[middle + 5000 :])
    with pytest.raises(AudioError, match=r"truncated|damaged"):
        read_audio(tmp_path / "a.flac")


def test_checksums_are_those_of_the_format():
    # CRC-8 (SMBUS) and CRC-16 (UMTS) of "123456789", as their catalogs list them.
    assert flac.crc8(b"123456789") == 0xF4 and flac.crc16(b"123456789") == 0xFEE8


def test_every_header_of_a_stream_is_understood():
    data = content(600_000)
    starts = [
        place
        for place in range(42, len(data) - 16)
        if data[place] == 0xFF and flac.end_of_frame(data[place : place + 16], 4096) is not None
    ]
    ends = [flac.end_of_frame(data[place : place + 16], 4096) for place in starts]
    assert ends == [min(4096 * (n + 1), 600_000) for n in range(len(ends))] and ends[-1] == 600_000
    assert not any(flac.crc16(data[a:b]) for a, b in zip(starts, [*starts[1:], len(data)], strict=True))
