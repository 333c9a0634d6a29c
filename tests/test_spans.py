"""Parts of files named by lists: tokens of the cut-out samples, names, resumes and lengths."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_encoding import contents
from tokenized import NEEDS_ARROW, RATE, noise, small_codec

from codec.audio.reading import read_blocks
from codec.audio.writing import write_wav
from codec.commands import doctor
from codec.commands.decode import decode_dataset
from codec.config import ConfigError
from codec.data.scan import scan
from codec.tokens import TokenDataset
from codec.tokens.encoding import encode_corpus
from codec.tokens.features import Features
from codec.tokens.shards import Shards
from codec.tokens.sources import Settings

# File, first frame and the one after the last; the rates of a and b differ.
SPANS = [("a.wav", 1601, 9000), ("a.wav", 8000, 24_000), ("b.flac", 44_099, 60_001)]
RATES = {"a.wav": RATE, "b.flac": 44_100}


@pytest.fixture
def wavs(tmp_path):
    """Two files, of which the first has silence from 2 to 3 s, and one of the spans alone for each span."""
    folder, cuts = tmp_path / "wavs", tmp_path / "cuts"
    folder.mkdir()
    cuts.mkdir()
    first = noise(3 * RATE, 1)
    first[:, 2 * RATE :] = 0
    write_wav(folder / "a.wav", first, RATE)
    soundfile.write(folder / "b.flac", noise(70_000, 2, channels=2).T, 44_100, subtype="PCM_16")
    for number, (name, begin, end) in enumerate(SPANS):
        samples, rate = soundfile.read(folder / name, start=begin, stop=end, dtype="int16")
        soundfile.write(cuts / f"{number}.wav", samples, rate, subtype="PCM_16")
    return folder


def write_list(path: Path, spans=SPANS, more=()) -> Path:
    """List of spans in seconds, as its extension says, and of further rows."""
    times = [(name, begin / RATES[name], (end - begin) / RATES[name]) for name, begin, end in spans]
    rows = [dict(zip(("path", "start", "duration"), row, strict=True)) for row in times] + list(more)
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(file, ("path", "start", "duration", "weight"))
            table.writeheader()
            table.writerows(rows)
    return path


# In batches, and streamed in blocks.
@pytest.mark.parametrize(
    ("name", "batch_seconds", "layout"),
    [pytest.param("list.csv", 30.0, "arrow", marks=NEEDS_ARROW), ("list.jsonl", 0.2, "npy")],
)
def test_tokens_are_those_of_the_cut_out_samples(codec, wavs, tmp_path, name, batch_seconds, layout):
    more = [{"path": "a.wav", "start": 2.5, "duration": 1}, {"path": "a.wav", "start": 2.25, "duration": 0.5}]
    settings = Settings(layout, batch_seconds=batch_seconds, workers=0)
    about = encode_corpus(codec, [write_list(wavs / name, more=more)], tmp_path / "tokens", settings)
    encode_corpus(codec, [tmp_path / "cuts"], tmp_path / "expected", settings)
    tokens, expected = TokenDataset(tmp_path / "tokens"), TokenDataset(tmp_path / "expected")
    assert about["items"] == len(expected) == 3 and about["skipped"] == 2
    assert about["hours"] == pytest.approx(expected.description["hours"])
    for number, (file, begin, end) in enumerate(SPANS):
        i = tokens.find(f"{file}:{begin}-{end}")
        assert torch.equal(tokens[i], expected[number])
        row, other = tokens.utterance(i), expected.utterance(number)
        assert (row.n_samples, row.sample_rate, row.channels) == (
            *(other.n_samples, other.sample_rate, other.channels),
        )
        assert row.sha256 == hashlib.sha256((wavs / file).read_bytes()).hexdigest()
    skipped = [json.loads(line) for line in (tmp_path / "tokens" / "skipped.jsonl").read_text().splitlines()]
    problems = {line["path"]: line["problem"] for line in skipped}
    assert problems["a.wav"] == "outside of the file: 2.5 + 1 s of its 3.000 s"
    assert problems["a.wav%3A36000-44000"].startswith("silent")
    assert "skipped  a.wav:36000-44000: silent" in (tmp_path / "tokens" / "report.txt").read_text()


def test_jobs_that_are_killed_and_go_on_write_the_same_bytes(codec, wavs, tmp_path, monkeypatch):
    rows, settings = write_list(wavs / "list.csv"), Settings("npy", shard_hours=1e-5, workers=2)
    encode_corpus(codec, [rows], tmp_path / "whole", Settings("npy", shard_hours=1e-5, workers=0))
    write = Shards.write

    def stops(shards, shard, *arguments):
        if shard:
            raise KeyboardInterrupt
        write(shards, shard, *arguments)

    monkeypatch.setattr(Shards, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(codec, [rows], tmp_path / "parts", settings, jobs=(2, 0))
    monkeypatch.undo()
    for job in (1, 0):
        encode_corpus(codec, [rows], tmp_path / "parts", settings, jobs=(2, job))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    write_list(rows, [*SPANS[:2], ("b.flac", 44_099, 60_002)])
    with pytest.raises(ConfigError, match="files_sha256"):
        encode_corpus(codec, [rows], tmp_path / "parts", settings)


def test_wavs_have_the_lengths_of_the_parts_and_names_of_their_own(codec, wavs, tmp_path):
    more = [{"path": "a.wav"}, {"path": "a.wav", "weight": 2}, {"path": "a.wav", "start": 9}]
    encode_corpus(
        codec, [write_list(wavs / "list.csv", more=more)], tmp_path / "t", Settings("npy", workers=0)
    )
    tokens = TokenDataset(tmp_path / "t")
    assert [tokens.utterance(i).id for i in range(4)] == [
        *("a", "a.wav:1601-9000", "a.wav:8000-24000", "b.flac:44099-60001"),
    ]
    decode_dataset(codec, tokens, tmp_path / "out")
    lengths = {path.name: soundfile.info(path).frames for path in (tmp_path / "out").glob("*.wav")}
    assert lengths == {
        "a.wav": 3 * RATE,
        "a.wav%3A1601-9000.wav": 7399,
        "a.wav%3A8000-24000.wav": 16_000,
        "b.flac%3A44099-60001.wav": 15_902 * RATE // 44_100,
    }


def test_a_part_of_a_good_mp3_is_read_without_a_warning(tmp_path, caplog):
    soundfile.write(tmp_path / "a.mp3", noise(5 * RATE, 3)[0], RATE)
    whole, _ = soundfile.read(tmp_path / "a.mp3", dtype="float32")
    (block,) = read_blocks(tmp_path / "a.mp3", span=(16_000, 24_000))
    np.testing.assert_allclose(block[0], whole[16_000:24_000], atol=1e-6)
    assert not caplog.records


def test_a_list_beside_other_inputs_is_refused_by_name(codec, wavs, tmp_path):
    rows = write_list(wavs / "list.csv")
    with pytest.raises(ConfigError, match=r"list\.csv is no recording or archive; encode it alone"):
        encode_corpus(codec, [wavs / "a.wav", rows], tmp_path / "tokens", Settings("npy", workers=0))


def test_crops_find_the_features_of_the_part_that_holds_them(wavs, tmp_path):
    codec = small_codec("quantizer=none")
    rows = write_list(wavs / "list.csv", SPANS[1:])
    encode_corpus(codec, [rows], tmp_path / "features", Settings("npy", workers=0))
    features, latents = Features(str(tmp_path / "features")), TokenDataset(tmp_path / "features")
    index, hop = scan(rows, cache_dir=tmp_path), codec.hop_length
    features.require([file.below(index.root) for file in index.usable])
    # A quarter of the way from frame 3 to frame 4, and a crop of b at twice the codec's rate.
    found = features.read(str(wavs / "a.wav"), 8000 + 3 * hop + hop // 4, 2 * hop, RATE)
    expected = 0.75 * latents[0][:, 3:5] + 0.25 * latents[0][:, 4:6]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    start = -(-44_099 * 2 * RATE // 44_100)
    found = features.read(str(wavs / "b.flac"), start + 4 * hop, 6 * hop, 2 * RATE)
    np.testing.assert_allclose(found, latents[1][:, 2:5], rtol=0.01, atol=0.01)
    write_list(rows)
    more = [file.below(index.root) for file in scan(rows, cache_dir=tmp_path).usable]
    with pytest.raises(ConfigError, match=r"lacks the features of 1 of 3 recordings, as .*a\.wav:1601-9000"):
        features.require(more)


def test_the_doctor_reports_on_each_of_several_folders(wavs, tmp_path, capsys):
    rows = write_list(wavs / "list.csv", more=[{"path": "a.wav", "start": 9}])
    assert doctor.main([str(tmp_path / "cuts"), str(rows)]) == 1
    found = capsys.readouterr().out
    assert f"{tmp_path}/cuts: 3 usable files" in found and f"{rows}: 3 usable files" in found
    assert "skipped  a.wav: outside of the file: 9 s of its 3.000 s" in found
    assert doctor.main([str(tmp_path / "nowhere"), str(tmp_path / "cuts"), "--json"]) == 2
    (report,) = json.loads(capsys.readouterr().out)
    assert report["root"] == str(tmp_path / "cuts") and report["usable"] == 3
