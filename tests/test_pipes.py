"""`-` for files: recordings, codes and `.codec` files through pipes, as with other Unix tools."""

import io
import os
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from composed import config

from codec.audio.pipes import read_source, wav_header, write_sink
from codec.audio.reading import AudioError, read_audio
from codec.model.saving import build_codec
from codec.system.files import FileError
from codec.system.stdio import check_pipes

RATE = 8000
AUDIO = (0.3 * np.random.default_rng(0).standard_normal(5001)).astype(np.float32)


def wav(audio: np.ndarray = AUDIO, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, audio, RATE, format=kind, subtype=subtype)
    return content.getvalue()


class Trickle(io.BytesIO):
    """Gives few bytes at a time, as a pipe may."""

    def read1(self, size: int = -1) -> bytes:
        return self.read(min(size, 999))


@pytest.fixture
def stdin(monkeypatch):
    def put(content: bytes) -> Trickle:
        stream = Trickle(content)
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stream))
        return stream

    return put


def read(rate: int = RATE, channels: int = 1) -> np.ndarray:
    return np.concatenate(list(read_source("-", rate, channels)), axis=1)


def with_sizes(content: bytes, riff: int, data: int) -> bytes:
    place = content.index(b"data")
    content = content[:4] + struct.pack("<I", riff) + content[8:]
    return content[: place + 4] + struct.pack("<I", data) + content[place + 8 :]


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_pcm_is_what_the_file_is(stdin, tmp_path, subtype, kind):
    content = wav(np.stack([AUDIO, -AUDIO, AUDIO / 2], 1), subtype, kind)
    (tmp_path / "a.wav").write_bytes(content)
    stdin(content)
    np.testing.assert_array_equal(read(channels=3), read_audio(tmp_path / "a.wav")[0])
    stdin(content)
    np.testing.assert_array_equal(read(RATE * 3 // 2), read_audio(tmp_path / "a.wav", RATE * 3 // 2, 1)[0])


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_header_without_a_length_is_read_to_the_end(stdin, size):
    stdin(with_sizes(wav(), size, size))
    assert read().shape == (1, 5001)


def test_what_follows_the_samples_is_read_so_that_the_writer_can_end_and_is_no_audio(stdin):
    stream = stdin(wav() + b"LIST" + struct.pack("<I", 100_000) + bytes(100_000))
    assert read().shape == (1, 5001) and stream.read() == b""


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_other_formats_are_read_from_a_copy(stdin, tmp_path, kind):
    subtype = {"FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}[kind]
    content = wav(np.tile(AUDIO, 4), subtype, kind)
    (tmp_path / "a").write_bytes(content)
    stdin(content)
    np.testing.assert_array_equal(read(), read_audio(tmp_path / "a")[0])


@pytest.mark.parametrize("subtype", ["ULAW", "IMA_ADPCM"])
def test_other_samples_in_a_wav_are_read_from_a_copy(stdin, tmp_path, subtype):
    (tmp_path / "a.wav").write_bytes(wav(AUDIO, subtype))
    stdin(wav(AUDIO, subtype))
    np.testing.assert_array_equal(read(), read_audio(tmp_path / "a.wav")[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "zero-length"),
        (b"RIFF", "damaged|not audio"),
        (b"hello", "not audio: begins with b'hello'"),
        (wav()[:-100], "truncated: the header promises 10002 bytes of samples, 100 are missing"),
        (wav()[:30], "damaged|not audio"),
        (with_sizes(wav(), 2000, 1000), "header counts too little"),
        (wav_header(1, 1, 10) + bytes(20), "implausible header: a sample rate of 1 Hz"),
        (wav(np.full(9, np.nan, np.float32), "FLOAT"), "not finite"),
        (wav(np.full(9, 1e300), "DOUBLE"), "not finite"),
    ],
)
def test_what_is_wrong_with_standard_input_is_said_of_it(stdin, content, words):
    stdin(content)
    with pytest.raises(AudioError, match=f"^standard input: .*({words})"), np.errstate(over="ignore"):
        read()


def test_hostile_headers_end_in_words_or_audio(stdin):
    random = np.random.default_rng(0)
    content = bytearray(wav())
    for _ in range(300):
        damaged = content.copy()
        for place in random.integers(0, 48, 3):
            damaged[place] = random.integers(256)
        stdin(bytes(damaged))
        try:
            assert len(read()) == 1
        except AudioError as error:
            assert str(error).startswith("standard input: ")


def test_a_wav_on_standard_output_is_that_of_a_file_or_has_no_length(capfdbinary, tmp_path):
    blocks = [AUDIO[None, :3000], AUDIO[None, 3000:]]
    write_sink("-", blocks, RATE, 5001)
    write_sink(tmp_path / "a.wav", blocks, RATE, 5001)
    assert capfdbinary.readouterr().out == (tmp_path / "a.wav").read_bytes()
    for length in (0, 2**31):
        write_sink("-", blocks, RATE, length)
        streamed = capfdbinary.readouterr().out
        assert streamed[4:8] == streamed[40:44] == b"\xff" * 4
        assert (soundfile.read(io.BytesIO(streamed))[0] == soundfile.read(tmp_path / "a.wav")[0]).all()
    with pytest.raises(FileError, match="standard output: nothing written"):
        write_sink("-", [], RATE)


def test_a_terminal_is_refused(monkeypatch):
    terminal = types.SimpleNamespace(isatty=lambda: True, buffer=types.SimpleNamespace(isatty=lambda: True))
    check_pipes(["a"], "b")
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys, "__stdout__", terminal)
    check_pipes(["a"], "b")
    with pytest.raises(FileError, match="standard input: is a terminal"):
        check_pipes(["a", Path("-")])
    with pytest.raises(FileError, match="standard output: is a terminal, which cannot show"):
        check_pipes(["a"], Path("-"))
    for name in ("stdin", "__stdout__"):
        monkeypatch.setattr(sys, name, None)
        with pytest.raises(FileError, match="is closed"):
            check_pipes(["-"], "-")
        monkeypatch.setattr(sys, name, types.SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO()))


# Commands


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    options = ["autoencoder=tiny", "autoencoder.encoder_channels=2", "autoencoder.decoder_channels=2"]
    codec = build_codec(config(*options, f"sample_rate={RATE}")["model"])
    folder = tmp_path_factory.mktemp("pipes")
    codec.eval().save(folder / "model")
    (folder / "in.wav").write_bytes(wav())
    return folder


def shell(work: Path, line: str) -> subprocess.CompletedProcess:
    """Run a line of bash in which `codec` is the command, and a failure anywhere in a pipe fails."""
    start = f'set -o pipefail; codec() {{ "{sys.executable}" -m codec "$@"; }}\n'
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.run(
        ["bash", "-c", start + line], cwd=work, env=environment, capture_output=True, timeout=300, check=False
    )


def test_compress_truncate_and_decompress_in_a_pipe_give_what_they_write_to_files(work):
    files = shell(
        work,
        "codec compress model in.wav -o a.codec && codec truncate a.codec -o b.codec --num-quantizers 2"
        " && codec decompress model b.codec -o b.wav",
    )
    assert files.returncode == 0, files.stderr
    piped = shell(
        work,
        "codec compress model - -o - < in.wav | tee a.piped | codec truncate - -o - --num-quantizers 2 |"
        " codec decompress model - -o -",
    )
    assert piped.returncode == 0, piped.stderr
    assert (work / "a.piped").read_bytes() == (work / "a.codec").read_bytes()
    assert piped.stdout == (work / "b.wav").read_bytes()
    assert b"standard output: 0.63 s in " in piped.stderr and b"b.wav" in files.stdout


def test_tokens_of_one_recording_in_a_pipe(work):
    piped = shell(work, "codec encode model - -o - < in.wav | tee a.npy | codec decode model - -o - > d.wav")
    assert piped.returncode == 0 and piped.stderr == b"", piped.stderr
    codes = np.load(work / "a.npy")
    assert codes.ndim == 2 and codes.dtype.kind in "iu"
    named = shell(work, "codec encode model - -o b.npy < in.wav && codec decode model b.npy -o e.wav")
    assert named.returncode == 0, named.stderr
    assert (work / "a.npy").read_bytes() == (work / "b.npy").read_bytes()
    piped_wav = (work / "d.wav").read_bytes()
    assert piped_wav == (work / "e.wav").read_bytes()
    compressed = shell(work, "codec compress model - -o - < in.wav | codec decode model - -o -")
    heard, expected = (np.frombuffer(data[44:], "<i2") for data in (compressed.stdout, piped_wav))
    np.testing.assert_allclose(heard, expected[:5001], atol=2)  # that of chunks, in another order of sums


def test_a_stream_gives_audio_while_more_is_to_come(work):
    command = [sys.executable, "-m", "codec", "stream", "model", "-", "-o", "-"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        command,
        cwd=work,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        content = with_sizes(wav(), 0xFFFFFFFF, 0xFFFFFFFF)
        process.stdin.write(content[:8000])
        process.stdin.flush()
        start = process.stdout.read(1000)  # waits for ever, if nothing is given before the end
        process.stdin.write(content[8000:])
        process.stdin.close()
        rest, messages = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0 and b"times real time" in messages
    assert len(start + rest) == 44 + 2 * 5001 and start[40:44] == b"\xff" * 4


@pytest.mark.parametrize(
    "line",
    [
        "codec decompress model long.codec -o - | head -c 50",
        "codec encode model in.wav -o - | true",
        "codec doctor . --no-content --json | true",
    ],
)
def test_a_reader_that_has_enough_ends_the_command_quietly(work, line):
    if not (work / "long.codec").is_file():
        (work / "long.wav").write_bytes(wav(np.tile(AUDIO, 40)))
        assert shell(work, "codec compress model long.wav -o long.codec").returncode == 0
    done = shell(work, line)
    assert done.stderr == b"" and done.returncode in (0, 1, 141)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("codec decode model - -o - < in.wav", "standard input: not a .codec file"),
        ("codec encode model in.wav -o - | codec decode model - -o x.mp3", "written as wav alone"),
        ("codec encode model in.wav in.wav -o -", "standard input is one recording"),
        ("codec encode model - -o folder < in.wav", "a .npy file, or - for standard output"),
        ("codec compress model - -o x.codec <&-", "standard input: is closed"),
    ],
)
def test_what_cannot_be_piped_is_said(work, line, words):
    done = shell(work, line)
    assert done.returncode == 2 and words in done.stderr.decode() and b"Traceback" not in done.stderr
