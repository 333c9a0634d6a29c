"""Recordings to compressed files and back, and the commands that do it."""

import argparse
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import programs
import pytest
import soundfile
import torch
from composed import config

from codec.audio.reading import AudioError, read_audio, read_info
from codec.audio.writing import write_wav
from codec.bitstream.compress import compress, decompress, file_bits
from codec.bitstream.entropy_model import EntropyTables, TablesError
from codec.bitstream.fit import fit_tables
from codec.bitstream.tables import load_tables, save_tables
from codec.bitstream.writer import BitstreamError, BitstreamReader
from codec.commands.compress import compress_main, decompress_main
from codec.commands.decode import main as decode_main
from codec.commands.descriptions import TABLES_FILE
from codec.commands.errors import report_errors
from codec.commands.fit_entropy import examples
from codec.commands.fit_entropy import main as fit_main
from codec.commands.truncate import main as truncate_main
from codec.config import ConfigError
from codec.data.scan import scan
from codec.data.split import split
from codec.model.codec import Codec
from codec.model.saving import build_codec
from codec.model.streaming import Stream
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings

SMALL = [
    *("experiment=tiny", "autoencoder.encoder_channels=2", "autoencoder.decoder_channels=2"),
    *("autoencoder.latent_dim=8", "quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=16"),
]


def run(command: Callable[[list[str]], int], *arguments: object) -> int:
    """Exit status of a command, as the console script has it."""
    return report_errors(lambda: command([str(argument) for argument in arguments]))


def tone(seconds: float, rate: int, pitch: float = 200.0, channels: int = 1) -> np.ndarray:
    """A gliding tone `[C, T]`, with its second half silent in the last channel."""
    time = np.arange(round(seconds * rate)) / rate
    audio = np.tile(0.3 * np.sin(2 * np.pi * pitch * time * (1 + time)), (channels, 1)).astype(np.float32)
    audio[-1, audio.shape[1] // 2 :] *= 0.1
    return audio


def small_codec(*overrides: str) -> Codec:
    torch.manual_seed(0)
    return build_codec(config(*SMALL, *overrides)["model"]).eval()


@pytest.fixture(scope="module")
def codec() -> Codec:
    return small_codec()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(6):
        write_wav(folder / f"{number}.wav", tone(1.5, 16000, 100 + 50 * number), 16000)
    return folder


@pytest.fixture(scope="module")
def tables(codec, recordings) -> EntropyTables:
    codes = [offline(codec, path) for path in sorted(recordings.glob("*.wav"))]
    return fit_tables(codes, codec.codec_id(), codec.quantizer.codebook_sizes).tables


@pytest.fixture(scope="module")
def saved(codec, tables, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    codec.save(folder)
    save_tables(tables, folder / TABLES_FILE)
    return folder


@torch.no_grad()
def offline(codec: Codec, path: Path, beam: int = 1) -> np.ndarray:
    audio, _ = read_audio(path, codec.sample_rate, codec.audio_channels)
    return codec.encode(torch.from_numpy(audio)[None], beam=beam)[0].numpy()


@torch.no_grad()
def expected(codec: Codec, path: Path, num_quantizers: int | None = None) -> np.ndarray:
    """What encoding and decoding at once gives."""
    length = read_audio(path, codec.sample_rate, codec.audio_channels)[0].shape[1]
    codes = torch.from_numpy(offline(codec, path)[None, :num_quantizers])
    return codec.decode(codes, length)[0].numpy()


def close(path: Path, audio: np.ndarray) -> bool:
    """Whether a 16-bit wav is this audio `[C, T]`."""
    found, _ = read_audio(path)
    return found.shape == audio.shape and np.abs(found - audio.clip(-1, 1)).max() < 1e-4


@pytest.mark.parametrize("overrides", [(), ("channels=2",), ("autoencoder.layers.causal=false",)])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_what_comes_back_is_what_the_codec_makes_at_once(tmp_path, overrides, rate, channels):
    codec, source = small_codec(*overrides), tmp_path / "in.wav"
    write_wav(source, tone(1.3, rate, channels=channels), rate)
    compress(codec, source, tmp_path / "a.codec", chunk_seconds=0.5)
    assert decompress(codec, tmp_path / "a.codec", tmp_path / "out.wav") == []
    assert close(tmp_path / "out.wav", expected(codec, source))
    assert soundfile.info(tmp_path / "out.wav").samplerate == 16000


@pytest.mark.parametrize("samples", [1, 127, 128, 129, 4001])
def test_recordings_of_any_length_keep_it(tmp_path, codec, samples):
    write_wav(tmp_path / "in.wav", tone(1, 16000)[:, 50 : 50 + samples], 16000)
    compress(codec, tmp_path / "in.wav", tmp_path / "a.codec")
    decompress(codec, tmp_path / "a.codec", tmp_path / "out.wav")
    assert close(tmp_path / "out.wav", expected(codec, tmp_path / "in.wav"))


def test_tables_make_files_smaller_and_change_nothing_else(tmp_path, codec, recordings, tables):
    source = recordings / "2.wav"
    raw = compress(codec, source, tmp_path / "raw.codec")
    coded = compress(codec, source, tmp_path / "coded.codec", tables)
    assert coded.bytes == (tmp_path / "coded.codec").stat().st_size < 0.9 * raw.bytes
    assert (coded.seconds, coded.nominal) == (1.5, 125 * 12)
    assert raw.bitrate == pytest.approx(8 * (tmp_path / "raw.codec").stat().st_size / 1.5)
    assert sum(raw.stage_bytes) == 3 * np.ceil(188 / 2)
    for name, used in (("raw", None), ("coded", tables)):
        decompress(codec, tmp_path / f"{name}.codec", tmp_path / f"{name}.wav", used)
    assert (tmp_path / "raw.wav").read_bytes() == (tmp_path / "coded.wav").read_bytes()


def test_fewer_stages_can_be_chosen_at_both_ends(tmp_path, codec, recordings, tables):
    source = recordings / "1.wav"
    compress(codec, source, tmp_path / "all.codec", tables)
    compress(codec, source, tmp_path / "two.codec", tables, num_quantizers=2)
    assert (
        truncate_main(
            [str(tmp_path / "all.codec"), "-o", str(tmp_path / "cut.codec"), "--num-quantizers", "2"]
        )
        == 0
    )
    assert (tmp_path / "cut.codec").read_bytes() == (tmp_path / "two.codec").read_bytes()
    decompress(codec, tmp_path / "two.codec", tmp_path / "two.wav", tables)
    decompress(codec, tmp_path / "all.codec", tmp_path / "first.wav", tables, num_quantizers=2)
    assert close(tmp_path / "two.wav", expected(codec, source, 2))
    assert (tmp_path / "first.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()


def damage(path: Path, chunk: int) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"CHNK" + bytes([chunk])) + 25] ^= 1  # behind its head of 22 bytes
    path.write_bytes(data)


def test_a_damaged_chunk_is_an_error_or_silence(tmp_path, codec, recordings, tables, capsys, saved):
    source, path, wav = recordings / "0.wav", tmp_path / "a.codec", tmp_path / "out.wav"
    compress(codec, source, path, tables, chunk_seconds=0.4)
    damage(path, 1)
    with pytest.raises(BitstreamError, match=r"chunk 1, from 0\.40 s on: its checksum"):
        decompress(codec, path, wav, tables)
    assert not wav.exists() and not list(tmp_path.glob("*.tmp"))
    assert run(decompress_main, saved, path, "-o", wav) == 2
    assert "chunk 1, from 0.40 s on" in capsys.readouterr().err
    assert run(decompress_main, saved, path, "-o", wav, "--salvage") == 1
    assert "a.codec: 0.40 to 0.80 s are lost: its checksum does not match" in capsys.readouterr().out
    found, whole = read_audio(wav)[0], expected(codec, source)
    assert found.shape == whole.shape and not found[:, 6400:12800].any()
    assert np.abs(found - whole)[:, :6400].max() < 1e-4
    codes = torch.from_numpy(offline(codec, source)[None, :, 100:])
    after = codec.decode(codes)[0].detach().numpy()[:, : 24000 - 12800]
    assert np.abs(found[:, 12800:] - after).max() < 1e-4


def test_a_file_without_its_end_is_salvaged(tmp_path, codec, recordings):
    path, wav = tmp_path / "a.codec", tmp_path / "out.wav"
    compress(codec, recordings / "0.wav", path, chunk_seconds=0.4)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BitstreamError, match="no end record"):
        decompress(codec, path, wav)
    assert decompress(codec, path, wav, salvage=True) == []
    assert np.abs(read_audio(wav)[0] - expected(codec, recordings / "0.wav")[:, : 3 * 6400]).max() < 1e-4


def test_other_codecs_and_other_tables_are_refused(tmp_path, codec, recordings, tables):
    other, path = small_codec("autoencoder.encoder_channels=3"), tmp_path / "a.codec"
    compress(codec, recordings / "0.wav", path, tables)
    with pytest.raises(BitstreamError, match=f"written by codec {codec.codec_id()[:16]}"):
        decompress(other, path, tmp_path / "out.wav", tables)
    with pytest.raises(TablesError, match="fit them again"):
        compress(other, recordings / "0.wav", tmp_path / "b.codec", tables)
    with pytest.raises(TablesError, match=f"{tables.tables_id} are needed, and none"):
        decompress(codec, path, tmp_path / "out.wav")
    assert sorted(os.listdir(tmp_path)) == ["a.codec"]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_chunks_of_impossible_length_are_refused(tmp_path, codec, recordings, seconds):
    with pytest.raises(ValueError, match=r"chunks must be 0\.008 to 524 seconds"):
        compress(codec, recordings / "0.wav", tmp_path / "a.codec", chunk_seconds=seconds)


def test_a_codebook_beyond_the_format_s_is_refused(tmp_path, recordings):
    grid = ["quantizer=fsq", "quantizer.codebook.levels=[32,32,32,32,32]"]
    codec = build_codec(config(*SMALL[:4], *grid)["model"]).eval()
    with pytest.raises(ConfigError, match=r"cannot hold this codec's codes: .* got \(33554432,\)"):
        compress(codec, recordings / "0.wav", tmp_path / "a.codec")
    assert file_bits(codec, None)(torch.zeros(1, 1, 5, dtype=torch.int64), 100) is None
    assert not list(tmp_path.iterdir())


def test_codes_and_audio_are_computed_without_tf32(tmp_path, codec, recordings, monkeypatch):
    """Where a GPU has it, its rounding would give other codes than codec-encode's."""
    seen, precision = [], torch.get_float32_matmul_precision
    for method in (Stream.encode, Stream.decode):

        def noted(*arguments, method=method, **options):
            seen.append(precision())
            return method(*arguments, **options)

        monkeypatch.setattr(Stream, method.__name__, noted)
    before = precision()
    torch.set_float32_matmul_precision("high")
    try:
        compress(codec, recordings / "0.wav", tmp_path / "a.codec", chunk_seconds=0.4)
        decompress(codec, tmp_path / "a.codec", tmp_path / "out.wav")
        assert set(seen) == {"highest"} and precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_quantizer_without_codes_is_refused(tmp_path, recordings):
    plain = build_codec(config("experiment=tiny", "quantizer=none", *SMALL[1:4])["model"])
    with pytest.raises(ValueError, match="no codes to"):
        compress(plain, recordings / "0.wav", tmp_path / "a.codec")


def test_nothing_is_overwritten_unless_asked(tmp_path, codec, tables, saved, recordings, capsys):
    source, path, wav = str(recordings / "0.wav"), tmp_path / "a.codec", tmp_path / "out.wav"
    path.write_text("mine")
    assert run(compress_main, saved, source, "-o", path) == 2
    assert "exists already" in capsys.readouterr().err and path.read_text() == "mine"
    assert run(compress_main, saved, source, "-o", path, "--force") == 0
    wav.write_text("mine")
    with pytest.raises(FileExistsError):
        decompress(codec, path, wav, tables)
    assert run(decompress_main, saved, path, "-o", wav) == 2 and wav.read_text() == "mine"
    assert run(decompress_main, saved, path, "-o", wav, "--force") == 0
    assert run(fit_main, saved, recordings) == 2
    assert capsys.readouterr().err.count("exists already") == 2


def test_a_name_that_promises_no_wav_is_refused_before_anything_is_read(tmp_path, capsys):
    assert run(decompress_main, "model", "a.codec", "-o", tmp_path / "out.flac") == 2
    assert "out.flac: audio is written as wav alone" in capsys.readouterr().err


def test_recordings_that_were_never_scaled_are_refused(tmp_path, codec):
    soundfile.write(tmp_path / "loud.wav", 1000 * tone(1, 16000)[0], 16000, "FLOAT")
    with pytest.raises(AudioError, match="out of range: samples reach 3"):
        compress(codec, tmp_path / "loud.wav", tmp_path / "a.codec")
    assert os.listdir(tmp_path) == ["loud.wav"]


def test_what_a_killed_command_left_is_removed_by_the_next(tmp_path, codec, recordings):
    left = tmp_path / f".codec-{socket.gethostname()}-{2**22 + 1}-abcd.tmp"
    left.write_bytes(b"half")
    compress(codec, recordings / "0.wav", tmp_path / "a.codec")
    assert os.listdir(tmp_path) == ["a.codec"]


def test_a_sample_is_reported_in_bytes(tmp_path, saved, capsys):
    write_wav(tmp_path / "in.wav", tone(1, 16000)[:, 50:51], 16000)
    assert run(compress_main, saved, tmp_path / "in.wav", "-o", tmp_path / "a.codec") == 0
    codes = 3 * 1  # stages, of a byte each
    overhead = (tmp_path / "a.codec").stat().st_size - codes
    assert capsys.readouterr().out.endswith(f"and {overhead} bytes of header and checksums\n")


def test_tables_of_the_first_stages_serve_all(tmp_path, codec, recordings, saved, capsys):
    """Stages without tables are stored as they are, and files of fewer stages are those of any tables."""
    encode_corpus(codec, [recordings], tmp_path / "two", Settings("npy", num_quantizers=2))
    assert run(fit_main, saved, tmp_path / "two", "-o", tmp_path / "t") == 0
    assert "for the first 2 of 3 quantizers\n" in capsys.readouterr().out
    tables, sizes = load_tables(tmp_path / "t"), {}
    for stages in (3, 2, 1):
        path = tmp_path / f"{stages}.codec"
        sizes[stages] = compress(codec, recordings / "1.wav", path, tables, stages).stage_bytes
        decompress(codec, path, tmp_path / f"{stages}.wav", tables)
        assert close(tmp_path / f"{stages}.wav", expected(codec, recordings / "1.wav", stages))
    assert sizes[3][:2] == sizes[2] and sizes[3][2] == np.ceil(188 / 2) > sizes[3][1]
    assert run(truncate_main, tmp_path / "3.codec", "-o", tmp_path / "cut", "--num-quantizers", 2) == 0
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "2.codec").read_bytes()


def test_tokens_of_another_codec_are_refused_in_the_commands_words(tmp_path, recordings, saved, capsys):
    other = small_codec("autoencoder.encoder_channels=3")
    encode_corpus(other, [recordings], tmp_path / "tokens", Settings("npy"))
    assert run(fit_main, saved, tmp_path / "tokens", "-o", tmp_path / "t") == 2
    message = capsys.readouterr().err
    assert "is of another codec" in message and "encode the recordings again" in message


@pytest.mark.parametrize("command", [compress_main, decompress_main, truncate_main, fit_main])
def test_help_has_an_example_that_can_be_parsed(command, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        command(["--help"])
    shown = capsys.readouterr().out
    example = shlex.split(re.search(r"example: (codec-.*)", shown)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(argparse.ArgumentParser, "error", lambda _, message: pytest.fail(message))
    assert run(command, *example[1:]) == 2  # there is no such model


def test_outputs_in_no_folder_are_refused_before_anything_is_read(tmp_path, recordings, capsys):
    for command, source in ((compress_main, "in.wav"), (decompress_main, "a.codec")):
        assert run(command, "model", source, "-o", tmp_path / "none" / "out.wav") == 2
        assert "none: no such folder to write into" in capsys.readouterr().err


def test_the_commands_fit_compress_and_decompress(tmp_path, codec, recordings, capsys):
    codec.save(tmp_path / "model")  # as in a run folder
    model, source = str(tmp_path), str(recordings / "3.wav")
    raw, coded, wav = (str(tmp_path / name) for name in ("raw.codec", "coded.codec", "out.wav"))
    assert run(compress_main, model, source, "-o", raw) == 0
    assert "no entropy tables" in capsys.readouterr().out
    assert run(fit_main, model, recordings) == 0
    shown = capsys.readouterr().out
    assert "with contexts:" in shown and load_tables(tmp_path / "model" / TABLES_FILE).tables_id in shown
    assert run(compress_main, model, source, "-o", coded) == 0
    size = os.path.getsize(coded)
    assert (
        f"1.50 s in {size} bytes, {8 * size / 1500:.3f} kbit/s; nominal 1.500 kbit/s"
        in capsys.readouterr().out
    )
    assert size < os.path.getsize(raw)
    assert run(decompress_main, model, coded, "-o", wav) == 0
    assert close(Path(wav), expected(codec, recordings / "3.wav"))
    assert run(compress_main, model, source, "-o", raw, "--force", "--beam", "0") == 2
    assert "--beam: expected 1 or more" in capsys.readouterr().err
    assert run(compress_main, model, source, "-o", raw, "--force", "--beam", "8") == 0
    with BitstreamReader(raw) as reader:
        searched = np.concatenate(
            [chunk.codes for chunk in reader.chunks(load_tables(tmp_path / "model" / TABLES_FILE))], 1
        )
    assert np.array_equal(searched, offline(codec, recordings / "3.wav", beam=8))
    assert not np.array_equal(searched, offline(codec, recordings / "3.wav"))
    with BitstreamReader(coded) as reader:
        assert reader.header.codec_id == codec.codec_id()
    assert run(decode_main, model, coded, "-o", tmp_path / "again.wav") == 0
    assert (tmp_path / "again.wav").read_bytes() == Path(wav).read_bytes()
    encode_corpus(codec, [recordings], tmp_path / "tokens", Settings("npy"))
    assert run(fit_main, model, tmp_path / "tokens", "-o", tmp_path / "of_tokens") == 0
    of_recordings = load_tables(tmp_path / "model" / TABLES_FILE).tables_id
    assert load_tables(tmp_path / "of_tokens").tables_id == of_recordings
    assert run(fit_main, model, tmp_path / "tokens", "-o", tmp_path / "no", "--held-out", 0.3) == 2
    assert "--held-out is for recordings" in capsys.readouterr().err
    assert run(fit_main, model, recordings, "-o", tmp_path / "few", "--held-out", 1.5) == 2
    assert "between 0 and 1" in capsys.readouterr().err
    assert run(fit_main, model, recordings, "-o", tmp_path / "few", "--held-out", 0.4) == 0
    fewer, all_of_them = (len(list(examples(codec, recordings, share)[1])) for share in (0.4, None))
    assert fewer == len(split(scan(recordings).usable, 0.4)[0]) < all_of_them


@pytest.mark.parametrize("stages", [2, None])
def test_the_size_of_a_file_is_known_without_writing_it(tmp_path, codec, tables, recordings, stages):
    source = recordings / "2.wav"
    compress(codec, source, tmp_path / "a.codec", tables, stages)
    codes = torch.from_numpy(offline(codec, source))[None, :stages]
    bits = file_bits(codec, tables)(codes, read_info(source).frames)
    assert bits == 8 * (tmp_path / "a.codec").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "in.wav"], "nowhere: no such model"),
        (["{saved}", "in.wav"], "in.wav: no such file"),
        (["{saved}", "{wav}", "--num-quantizers", "9"], "num_quantizers must be 1 to 3, got 9"),
        (["{saved}", "{wav}", "--tables", "none"], "none: no such file; make it with codec-fit-entropy"),
        (["{saved}", "{wav}", "--device", "cuda:99"], "--device cuda:99"),
    ],
)
def test_mistakes_give_a_message_and_no_file(
    tmp_path, saved, recordings, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    filled = [a.format(saved=saved, wav=recordings / "0.wav") for a in arguments]
    assert run(compress_main, *filled, "-o", "a.codec") == 2
    output = capsys.readouterr()
    assert message in output.err and not output.out and not os.listdir(tmp_path)


@pytest.mark.slow
def test_the_commands_run(tmp_path, saved, recordings):
    for name, *arguments in (
        ("fit-entropy", saved, recordings, "-o", "t.safetensors"),
        ("compress", saved, recordings / "0.wav", "-o", "a.codec", "--tables", "t.safetensors"),
        ("truncate", "a.codec", "-o", "b.codec", "--num-quantizers", "1"),
        ("decompress", saved, "b.codec", "-o", "b.wav", "--tables", "t.safetensors"),
    ):
        command = [sys.executable, "-m", "codec", name, *map(str, arguments)]
        done = programs.run(command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert soundfile.info(tmp_path / "b.wav").frames == 24000


MEASURE = """
import resource, sys
from codec.bitstream.compress import compress, decompress
from codec.model.saving import load
codec = load(sys.argv[1])
compress(codec, sys.argv[2], "a.codec", num_quantizers=1, overwrite=True)
decompress(codec, "a.codec", "out.wav", overwrite=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_long_recording_takes_as_much_memory_as_a_short_one(tmp_path, saved):
    """Half an hour is 115 MB in floats."""
    peaks = []
    for minutes in (1, 30):
        with soundfile.SoundFile(tmp_path / f"{minutes}.wav", "w", 16000, 1) as file:
            for minute in range(minutes):
                file.write(tone(60, 16000, 100 + minute)[0])
        command = [sys.executable, "-c", MEASURE, str(saved), f"{minutes}.wav"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert soundfile.info(tmp_path / "out.wav").frames == minutes * 60 * 16000
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 40
