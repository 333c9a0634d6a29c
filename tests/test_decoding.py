"""Tokens back to recordings: lengths, names, stages, and what is refused."""

import json
import os
import re

import numpy as np
import pytest
import torch
from test_files import held
from tokenized import LAYOUTS, RATE, noise, small_codec, write_corpus

from codec.audio.reading import AudioError, read_audio, read_info
from codec.audio.writing import write_wav
from codec.bitstream.writer import BitstreamError
from codec.commands import decode as decoding
from codec.commands.decode import decode_dataset
from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.system.files import LOCK, FileError
from codec.tokens import TokenDataset, TokenError
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings


def encode(codec, tmp_path, layout="npy", **options):
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "tokens", Settings(layout, workers=0, **options))
    return TokenDataset(tmp_path / "tokens")


def wavs(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.wav"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wavs_have_the_lengths_and_the_sound_of_coding_each_file(codec, tmp_path, layout):
    names = write_corpus(tmp_path / "wavs")
    dataset = encode(codec, tmp_path, layout)
    decode_dataset(codec, dataset, tmp_path / "out")
    assert wavs(tmp_path / "out") == sorted(n if n.endswith(".wav") else f"{n}.wav" for n in names)
    for i in range(len(dataset)):
        name, samples = dataset.utterance(i).path, dataset.length(i)
        made, rate = read_audio(tmp_path / "out" / (name if name.endswith(".wav") else f"{name}.wav"))
        assert rate == RATE and made.shape == names[name].shape
        with torch.inference_mode():
            expected = codec.decode(dataset[i][None], samples)[0].clamp(-1, 1)
        assert np.abs(made - expected.numpy()).max() < 1e-4


def test_lengths_at_the_codec_s_rate_of_files_of_other_rates(codec, tmp_path):
    (tmp_path / "wavs").mkdir()
    write_wav(tmp_path / "wavs" / "a.wav", noise(44_101), 44_100)
    decode_dataset(codec, encode(codec, tmp_path), tmp_path / "out")
    assert read_info(tmp_path / "out" / "a.wav") == (44_101 * RATE // 44_100, RATE, 1)


def test_no_two_recordings_share_a_wav(codec, tmp_path):
    (tmp_path / "wavs").mkdir()
    names = ["a.wav", "a.flac", "a.flac.wav", "a.WAV", "a.ogg", "n" * 250 + ".flac", "n" * 250 + ".aiff"]
    for number, name in enumerate(names):
        write_wav(tmp_path / "wavs" / name, noise(1000 + number, number), RATE)
    dataset = encode(codec, tmp_path)
    written = decode_dataset(codec, dataset, tmp_path / "out")
    assert len(set(written)) == len(names)
    assert {path.name for path in written} >= {"a.wav", "a.flac.wav", "a.flac.wav.wav", "a.WAV", "a.ogg.wav"}
    lengths = {dataset.utterance(i).path: read_info(path).frames for i, path in enumerate(written)}
    assert lengths == {name: 1000 + number for number, name in enumerate(names)}


def test_fewer_stages_decode_what_fewer_stages_encode(codec, tmp_path):
    write_corpus(tmp_path / "wavs")
    encode(codec, tmp_path)
    decode_dataset(codec, TokenDataset(tmp_path / "tokens", num_quantizers=1), tmp_path / "out")
    settings = Settings("npy", num_quantizers=1, workers=0)
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "one", settings)
    assert TokenDataset(tmp_path / "one").num_quantizers == 1
    decode_dataset(codec, TokenDataset(tmp_path / "one"), tmp_path / "out1")
    for name in wavs(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "out1" / name).read_bytes()


def test_another_codec_is_refused_unless_it_is_meant(codec, tmp_path):
    write_corpus(tmp_path / "wavs")
    dataset = encode(codec, tmp_path)
    other = small_codec("autoencoder.decoder_channels=6")
    with pytest.raises(ConfigError, match=r"is of another codec .* --any-codec decodes them"):
        decode_dataset(other, dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    decode_dataset(other, dataset, tmp_path / "out", any_codec=True)
    with pytest.raises(ConfigError, match="another sample rate or hop length"):
        decode_dataset(small_codec("autoencoder.strides=[4,4]"), dataset, tmp_path / "o", any_codec=True)


def test_what_was_interrupted_goes_on(codec, tmp_path, monkeypatch):
    write_corpus(tmp_path / "wavs")
    dataset = encode(codec, tmp_path)
    decode_dataset(codec, dataset, tmp_path / "whole")
    write, calls = decoding.write_wav_blocks, []

    def stops(path, *arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(path)
        write(path, *arguments)

    monkeypatch.setattr(decoding, "write_wav_blocks", stops)
    with pytest.raises(KeyboardInterrupt):
        decode_dataset(codec, dataset, tmp_path / "out")
    monkeypatch.setattr(decoding, "write_wav_blocks", lambda path, *a: (calls.append(path), write(path, *a)))
    decode_dataset(codec, dataset, tmp_path / "out")
    assert len(calls) == len(set(calls)) == len(dataset)
    for name in wavs(tmp_path / "whole"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(
        ConfigError, match=r"out was made with other settings: num_quantizers 3 → 1; name another"
    ):
        decode_dataset(codec, TokenDataset(tmp_path / "tokens", 1), tmp_path / "out")
    with pytest.raises(ConfigError, match="is not empty"):
        decode_dataset(codec, dataset, tmp_path / "wavs")


@pytest.mark.slow
def test_one_process_decodes_into_a_folder(codec, tmp_path):
    write_corpus(tmp_path / "wavs")
    dataset = encode(codec, tmp_path)
    decode_dataset(codec, dataset, tmp_path / "out")
    (tmp_path / "out" / "s1" / "utt 4.wav").unlink()
    refused = pytest.raises(ConfigError, match=r"out: process \d+ on .* is writing here")
    with held(tmp_path / "out" / LOCK), refused:
        decode_dataset(codec, dataset, tmp_path / "out")
    decode_dataset(codec, dataset, tmp_path / "out")
    assert (tmp_path / "out" / "s1" / "utt 4.wav").is_file()


def test_damaged_codes_are_named_and_not_decoded(codec, tmp_path):
    write_corpus(tmp_path / "wavs")
    dataset = encode(codec, tmp_path)
    victim = tmp_path / "tokens" / "s1" / "utt 4.wav.npy"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(TokenError, match=r"damaged: s1/utt 4 differs from its CRC-32"):
        decode_dataset(codec, dataset, tmp_path / "out")


@pytest.mark.parametrize("evil", ["../evil.wav", "/evil.wav", "s0/../../evil.wav"])
def test_paths_of_a_token_file_cannot_lead_outside(codec, tmp_path, evil):
    import zlib

    write_corpus(tmp_path / "wavs")
    encode(codec, tmp_path)
    manifest, meta = tmp_path / "tokens" / "manifest.jsonl", tmp_path / "tokens" / "tokens.json"
    content = re.sub(
        rb'"path": "[^"]*"', b'"path": ' + json.dumps(evil).encode(), manifest.read_bytes(), count=1
    )
    manifest.write_bytes(content)
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"index_crc32": zlib.crc32(content)}))
    before = set(os.listdir(tmp_path))
    with pytest.raises(TokenError, match="not a plain relative one"):
        decode_dataset(codec, TokenDataset(tmp_path / "tokens"), tmp_path / "out")
    assert set(os.listdir(tmp_path)) - before <= {"out"}
    assert wavs(tmp_path / "out") == [] if (tmp_path / "out").exists() else True


def test_the_commands(codec, tmp_path, capsys):
    from codec.commands import encode as encoding

    codec.save(tmp_path / "model")
    write_corpus(tmp_path / "wavs")
    model, tokens, out = (str(tmp_path / name) for name in ("model", "tokens", "out"))
    arguments = [model, str(tmp_path / "wavs"), "-o", tokens, "--format", "npy", "--workers", "1"]
    assert encoding.main([*arguments, "--device", "cpu"]) == 0
    assert "9 files, 0.00 hours, 519 frames, 3 files skipped" in capsys.readouterr().out
    assert encoding.main([*arguments, "--device", "cpu"]) == 0
    assert decoding.main([model, tokens, "-o", out, "--num-quantizers", "2", "--device", "cpu"]) == 0
    assert f"9 wavs in {out}" in capsys.readouterr().out
    with pytest.raises(BitstreamError, match=r"tokens\.json: not a \.codec file"):
        decoding.main([model, str(tmp_path / "tokens" / "tokens.json"), "-o", f"{out}.wav"])
    with pytest.raises(ConfigError, match=r"one\.wav: .* becomes a folder of wavs: name a folder"):
        decoding.main([model, tokens, "-o", str(tmp_path / "one.wav")])
    assert not (tmp_path / "one.wav").exists()
    with pytest.raises(ConfigError, match="--device nonsense"):
        decoding.main([model, tokens, "-o", out, "--device", "nonsense"])
    with pytest.raises(ConfigError, match="num_quantizers must be 1 to 3"):
        decoding.main([model, tokens, "-o", out, "--num-quantizers", "9"])


def test_one_array_of_codes_is_decoded_to_one_wav(codec, tmp_path):
    codec.save(tmp_path / "model")
    codes = codec.encode(torch.from_numpy(noise(5000, 1))[None])[0].numpy()
    np.save(tmp_path / "codes.npy", codes.astype(np.uint16))
    arguments = [str(tmp_path / "model"), str(tmp_path / "codes.npy"), "-o", str(tmp_path / "out.wav")]
    assert decoding.main([*arguments, "--device", "cpu", "--num-quantizers", "2"]) == 0
    with torch.no_grad():
        expected = codec.decode(torch.from_numpy(codes[None, :2]))[0].numpy()
    np.testing.assert_allclose(read_audio(tmp_path / "out.wav")[0], expected.clip(-1, 1), atol=1.1 / 32768)
    with pytest.raises(ConfigError, match="exists"):
        decoding.main([*arguments, "--device", "cpu"])
    with pytest.raises(AudioError, match=r"other\.flac: audio is written as wav alone"):
        decoding.main([*arguments[:3], str(tmp_path / "other.flac"), "--device", "cpu"])
    np.save(tmp_path / "codes.npy", codes + 1000)
    with pytest.raises(FileError, match=r"codes\.npy: codes must be .*below the codebook sizes"):
        decoding.main([*arguments[:3], str(tmp_path / "other.wav"), "--device", "cpu"])


def test_a_codec_file_is_decoded_with_the_packages_that_the_user_trusts(tmp_path, monkeypatch):
    (tmp_path / "a.codec").write_bytes(b"no tokens")
    seen: list[list[str]] = []
    monkeypatch.setattr(decoding, "decompress_main", lambda arguments: seen.append(arguments) or 0)
    paths = ["model", str(tmp_path / "a.codec"), "-o", str(tmp_path / "a.wav")]
    assert decoding.main([*paths, "--trust", "one", "--trust", "two"]) == 0
    assert parse("decompress", seen[0]).trust == ["one", "two"]
