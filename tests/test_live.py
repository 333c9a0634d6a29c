"""codec-stream: what it writes and plays is what the codec makes of the whole file."""

import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from composed import config

from codec.commands.stream import main, rechunked
from codec.config import ConfigError
from codec.model.saving import build_codec
from codec.system.files import FileError

RATE = 8000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    options = ["autoencoder=tiny", "autoencoder.encoder_channels=2", "autoencoder.decoder_channels=2"]
    codec = build_codec(config(*options, "autoencoder.layers.causal=false", f"sample_rate={RATE}")["model"])
    folder = tmp_path_factory.mktemp("model")
    codec.eval().save(folder)
    return codec, folder


def recording(path, samples: int) -> np.ndarray:
    audio = 0.3 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    return audio


def whole(codec, audio: np.ndarray, depth: int | None = None) -> np.ndarray:
    with torch.no_grad():
        codes = codec.encode(torch.from_numpy(audio)[None, None], depth)
        return codec.decode(codes, len(audio))[0, 0].numpy()


@pytest.mark.parametrize(("samples", "frames"), [(5001, 1), (4096, 7), (3, 1)])
def test_a_file_comes_out_as_if_coded_whole(saved, tmp_path, capsys, samples, frames):
    codec, folder = saved
    audio = recording(tmp_path / "in.wav", samples)
    output = tmp_path / "out.wav"
    arguments = [str(folder), str(tmp_path / "in.wav"), "-o", str(output)]
    assert main([*arguments, "--frames", str(frames), "--num-quantizers", "2"]) == 0
    heard, rate = soundfile.read(output, dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(heard, whole(codec, audio, 2), atol=1.1 / 32768)
    latency = codec.streaming().latency_ms + 1000 * (frames - 1) * codec.hop_length / RATE
    assert f"latency {latency:.1f} ms + " in capsys.readouterr().out


def test_microphone_to_speakers_until_ctrl_c(saved, monkeypatch, tmp_path):
    codec, folder = saved
    audio = recording(tmp_path / "in.wav", 20 * codec.hop_length)
    played: list[np.ndarray] = []

    class InputStream:
        def __init__(self, rate, size, channels):
            assert (rate, channels) == (RATE, 1)
            self.place = 0

        def read(self, size):
            block = audio[self.place : self.place + size, None]
            self.place += size
            if self.place == len(audio):
                os.kill(os.getpid(), signal.SIGINT)
            return block, False

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    class OutputStream(InputStream):
        def __init__(self, rate, channels):
            assert (rate, channels) == (RATE, 1)

        def write(self, block):
            played.append(block[:, 0])

    library = SimpleNamespace(InputStream=InputStream, OutputStream=OutputStream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    assert main([str(folder), "--frames", "2"]) == 0
    np.testing.assert_allclose(np.concatenate(played), whole(codec, audio), atol=1e-5)


def test_what_is_missing_is_said(saved, monkeypatch, tmp_path):
    _, folder = saved
    recording(tmp_path / "in.wav", 100)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ConfigError, match=r"neural-audio-codec\[live\]"):
        main([str(folder), str(tmp_path / "in.wav")])
    (tmp_path / "out.wav").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        main([str(folder), str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav")])
    assert (tmp_path / "out.wav").read_text() == "mine"
    with pytest.raises(ConfigError, match="num_quantizers must be 1 to"):
        main([str(folder), str(tmp_path / "in.wav"), "--num-quantizers", "99"])


def test_floats_that_are_scaled_as_integers_are_refused(saved, tmp_path):
    _, folder = saved
    soundfile.write(tmp_path / "in.wav", 32767 * np.ones(5000, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(FileError, match=r"in\.wav: out of range: samples reach 3.28e\+04; scale them to ±1"):
        main([str(folder), str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav")])
    assert not (tmp_path / "out.wav").exists()


def test_blocks_are_cut_anew_without_loss():
    signal_ = np.arange(2 * 103).reshape(2, 103)
    parts = np.split(signal_, [5, 5, 50, 99], axis=1)
    again = list(rechunked(parts, 10))
    assert [part.shape[1] for part in again] == [10] * 10 + [3]
    np.testing.assert_array_equal(np.concatenate(again, 1), signal_)
