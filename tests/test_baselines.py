"""Classical codecs: which bytes carry audio, and how what comes back is aligned."""

import struct
import sys

import numpy as np
import pytest
import torch

from codec.audio.synthetic import speech
from codec.config import ConfigError
from codec.evaluation import classical as baselines
from codec.evaluation.classical import Baseline, adts_payload, align, amr_payload, ogg_payload
from codec.metrics.signal import si_sdr

RATE = 16_000


def page(*segments: int, body: int = 0) -> bytes:
    """An Ogg page with segments of these lengths (RFC 3533, section 6)."""
    header = b"OggS" + struct.pack("<BBqIIIB", 0, 0, 0, 1, 0, 0, len(segments))
    return header + bytes(segments) + bytes(sum(segments))


def test_ogg_payload_is_the_packets_after_the_headers():
    # Headers of 19 and 300 bytes; packets of 10, of 255 + 45 over two pages, of 255 + 0, of 7.
    stream = page(19) + page(255, 45) + page(10, 255) + page(45, 255, 0, 7) + page(254, 8)
    assert ogg_payload(stream, 2) == 10 + 300 + 255 + 7 + 262
    assert ogg_payload(stream, 0) == 19 + 300 + 10 + 300 + 255 + 7 + 262
    assert ogg_payload(page(10, 20) + page(254, 8), 3) == 8  # a packet of 254 bytes ends with its segment
    with pytest.raises(ValueError, match="no Ogg page at byte 47"):
        ogg_payload(page(19) + b"junk" * 20, 2)


def test_adts_payload_is_the_frames_without_their_headers():
    def frame(payload: int, checked: bool) -> bytes:
        length = payload + (9 if checked else 7)
        head = [
            0xFF,
            0xF0 | (not checked),
            0x50,
            0x40 | length >> 11,
            length >> 3 & 0xFF,
            (length & 7) << 5,
            0,
        ]
        return bytes(head) + bytes(length - 7)

    assert adts_payload(frame(100, False) + frame(3000, True)) == 3100
    with pytest.raises(ValueError, match="no ADTS frame at byte 107"):
        adts_payload(frame(100, False) + b"\0" * 20)


def test_amr_payload_is_the_bits_of_the_frames():
    # RFC 4867, table 6 and section 5.3: 6.6, 12.65 and 23.85 kbit/s, silence, and a frame without data.
    frames = [(0, 17), (2, 32), (8, 60), (9, 5), (15, 0)]
    content = b"#!AMR-WB\n" + b"".join(bytes([kind << 3 | 4]) + bytes(size) for kind, size in frames)
    assert 8 * amr_payload(content) == 132 + 253 + 477 + 40
    with pytest.raises(ValueError, match="no AMR-WB file: begins with b'#!AMR'"):
        amr_payload(b"#!AMR")


@pytest.mark.parametrize("delay", [-400, -1, 0, 1, 1234])
def test_a_delay_is_found_and_undone(delay):
    reference = np.random.default_rng(0).standard_normal((2, 8000)).astype(np.float32)
    late = np.pad(reference, ((0, 0), (2000, 2000)))[:, 2000 - delay : 2000 - delay + 8300]
    aligned = align(0.5 * late, reference, 4800)
    assert aligned.shape == reference.shape
    inner = slice(500, 7000)
    np.testing.assert_allclose(aligned[:, inner], 0.5 * reference[:, inner])


def test_a_delay_beyond_the_limit_is_not_looked_for():
    reference = np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32)
    assert not np.allclose(align(np.roll(reference, 2000), reference, 1000)[:, :5000], reference[:, :5000])


@pytest.fixture
def ffmpeg():
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra `baselines`")


def tone(seconds: float = 3.0) -> torch.Tensor:
    t = torch.arange(round(seconds * RATE)) / RATE
    sweep = torch.sin(2 * torch.pi * (200 + 400 * t) * t) * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * t))
    return (0.3 * sweep)[None, None]


@pytest.mark.parametrize("name", ["opus_16", "opus-voip_16", "mp3_32", "aac_32", "vorbis_32"])
def test_a_classical_codec_comes_back_aligned_at_its_bitrate(ffmpeg, name):
    audio = tone()
    codes, points = Baseline(name, RATE, 1).code(audio)
    (point,) = points
    assert codes is None and point.estimate.shape == audio.shape
    assert si_sdr(point.estimate, audio) > 12
    kbps = point.bits / 3000
    assert 0.15 * float(name.split("_")[1]) < kbps < 1.3 * float(name.split("_")[1])
    overhead = (point.file_bits - point.bits) / 3000
    assert overhead == 0 if name.startswith("mp3") else 0.3 < overhead < 12


def test_more_bits_are_a_better_copy(ffmpeg):
    audio = tone()
    scores = [
        float(si_sdr(next(Baseline(f"opus_{k}", RATE, 1).code(audio)[1]).estimate, audio)) for k in (6, 32)
    ]
    assert scores[0] < scores[1]


def test_stereo_stays_stereo(ffmpeg):
    audio = torch.cat([tone(), -0.5 * tone().flip(-1)], dim=1)
    (point,) = Baseline("opus_64", RATE, 2).code(audio)[1]
    assert point.estimate.shape == audio.shape and si_sdr(point.estimate, audio) > 15


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("opus", "expected FORMAT_KBPS as opus_12"),
        ("opus_0", "expected FORMAT_KBPS"),
        ("speex_8", "there are opus, opus-voip, mp3"),
    ],
)
def test_a_name_that_is_none_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        Baseline(name, RATE, 1)


def test_an_encoder_that_ffmpeg_lacks_is_named(ffmpeg, monkeypatch):
    monkeypatch.setattr(baselines, "encoders", lambda: " A....D libopus  Opus")
    with pytest.raises(ConfigError, match=r"has no encoder libmp3lame: pip install .*IMAGEIO_FFMPEG_EXE"):
        Baseline("mp3_16", RATE, 1)


def test_amr_wb_s_rate_is_its_name_and_what_it_says_is_where_it_was(ffmpeg):
    if "libvo_amrwbenc" not in baselines.encoders():
        pytest.skip("this FFmpeg has no encoder of AMR-WB: set IMAGEIO_FFMPEG_EXE to one that has")
    audio = torch.from_numpy(speech(3.0, RATE, np.random.default_rng(0)))[None, None]
    (point,) = Baseline("amr-wb_12.65", RATE, 1).code(audio)[1]
    assert point.bits / 3000 == pytest.approx(12.65, rel=0.02) and point.file_bits > point.bits
    assert si_sdr(point.estimate, audio) > 3


def test_codec2_s_rate_is_its_name_and_what_it_says_is_where_it_was():
    pytest.importorskip("pycodec2", reason="needs the extra `baselines`")
    audio = torch.from_numpy(speech(3.0, RATE, np.random.default_rng(0)))[None, None]
    for kbps, least in ((0.7, 0.3), (3.2, 0.5)):
        (point,) = Baseline(f"codec2_{kbps}", RATE, 1).code(audio)[1]
        assert point.estimate.shape == audio.shape and point.estimate.dtype == torch.float32
        assert point.bits / 3000 == pytest.approx(kbps, rel=0.02) and point.file_bits >= point.bits
        loudness = [clip.unfold(-1, 320, 320).square().mean(-1).flatten() for clip in (point.estimate, audio)]
        assert torch.corrcoef(torch.stack(loudness))[0, 1] > least


def test_codec2_at_another_rate_and_without_its_package_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"baseline codec2_5: there are codec2_3\.2, .*codec2_0\.7"):
        Baseline("codec2_5", RATE, 1)
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    with pytest.raises(ConfigError, match=r"pip install pycodec2, or .*codec\[baselines\]"):
        Baseline("codec2_1.3", RATE, 1)


def test_without_ffmpeg_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    baselines.ffmpeg.cache_clear()
    baselines.encoders.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install imageio-ffmpeg, or .*codec\[baselines\]"):
        Baseline("opus_12", RATE, 1)


def test_the_original_is_the_audio_itself():
    audio = tone(0.1)
    (point,) = Baseline("original", RATE, 1).code(audio)[1]
    assert point.estimate is audio and point.bits is None
