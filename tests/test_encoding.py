"""Encoding a corpus: every file accounted for, the same bytes in any order, after any kills."""

import hashlib
import json
import os
import signal
import socket
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import programs
import pytest
import soundfile
import torch
from bad_audio import BAD as BAD_ZOO
from bad_audio import GOOD, write_zoo
from test_files import held
from tokenized import BAD, LAYOUTS, NEEDS_ARROW, RATE, noise, require_same_codes, small_codec, write_corpus

from codec.audio.conversion import resampled_length
from codec.audio.reading import read_audio
from codec.audio.writing import write_wav
from codec.config import ConfigError
from codec.data.index import DataError
from codec.tokens import TokenDataset, TokenError, encoding
from codec.tokens.encoding import encode_corpus
from codec.tokens.plan import batches, make_plan, shard_of_jobs
from codec.tokens.shards import Shards
from codec.tokens.sources import Settings

SMALL_SHARDS = {"shard_hours": 0.0004, "workers": 0}


@pytest.fixture
def wavs(tmp_path):
    write_corpus(tmp_path / "wavs")
    return tmp_path / "wavs"


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file of a dataset."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_source_is_in_the_index_or_in_the_report(codec, wavs, tmp_path, layout):
    about = encode_corpus(codec, [wavs], tmp_path / "tokens", Settings(layout, **SMALL_SHARDS))
    dataset = TokenDataset(tmp_path / "tokens")
    encoded = {dataset.utterance(i).path for i in range(len(dataset))}
    lines = (tmp_path / "tokens" / "skipped.jsonl").read_text().splitlines()
    skipped = {line["path"]: line["problem"] for line in map(json.loads, lines)}
    assert encoded | skipped.keys() == {str(p.relative_to(wavs)) for p in wavs.rglob("*.*")}
    assert not encoded & skipped.keys() and skipped.keys() == BAD.keys()
    report = (tmp_path / "tokens" / "report.txt").read_text()
    for path, reason in BAD.items():
        assert reason in skipped[path] and f"skipped  {path}: {skipped[path]}" in report
    assert about["items"] == len(encoded) == 9 and about["skipped"] == 3 and about["files"] == 12
    assert about["frames"] == sum(codes.shape[1] for codes in dataset)
    for path in encoded:
        row = dataset.utterance(dataset.find(path))
        assert row.sha256 == hashlib.sha256((wavs / path).read_bytes()).hexdigest()
        assert (row.channels, row.sample_rate) == (1, RATE)
    assert not (tmp_path / "tokens" / ".encoding").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_jobs_and_a_merge_make_the_same_bytes_as_one_job(codec, wavs, tmp_path, layout):
    settings = Settings(layout, **SMALL_SHARDS)
    encode_corpus(codec, [wavs], tmp_path / "one", settings)
    for job in (2, 0, 1):
        made = encode_corpus(codec, [wavs], tmp_path / "three", settings, jobs=(3, job))
        assert (made is not None) == (job == 1)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_merging_alone_waits_for_all_jobs(codec, wavs, tmp_path, monkeypatch):
    settings = Settings("npy", **SMALL_SHARDS)
    encode_corpus(codec, [wavs], tmp_path / "two", settings, jobs=(2, 0))
    with pytest.raises(ConfigError, match=r"[1-9] of \d+ shards are not encoded yet"):
        encode_corpus(codec, [wavs], tmp_path / "two", settings, merge_only=True)
    monkeypatch.setattr(encoding.Encoding, "finish", lambda _: None)  # a job that is killed before it merges
    encode_corpus(codec, [wavs], tmp_path / "two", settings, jobs=(2, 1))
    monkeypatch.undo()
    encode_corpus(codec, [wavs], tmp_path / "two", settings, merge_only=True)
    assert len(TokenDataset(tmp_path / "two")) == 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rerun_changes_nothing(codec, wavs, tmp_path, layout, capsys):
    settings = Settings(layout, **SMALL_SHARDS)
    encode_corpus(codec, [wavs], tmp_path / "tokens", settings)
    before = contents(tmp_path / "tokens"), times(tmp_path / "tokens")
    assert encode_corpus(codec, [wavs], tmp_path / "tokens", settings) is None
    assert "complete: nothing to do" in capsys.readouterr().out
    assert (contents(tmp_path / "tokens"), times(tmp_path / "tokens")) == before


def test_the_order_of_files_and_the_number_of_readers_change_nothing(codec, wavs, tmp_path):
    files = [path for path in wavs.rglob("*.*") if path.is_file()]
    results = []
    for name, order, workers in [("a", files, 0), ("b", files[::-1], 2), ("c", [wavs], 1)]:
        settings = Settings("npy", shard_hours=0.0004, workers=workers)
        encode_corpus(codec, order, tmp_path / name, settings)
        results.append({k: v for k, v in contents(tmp_path / name).items() if k != "report.txt"})
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_interrupted_goes_on_and_ends_with_the_same_bytes(
    codec, wavs, tmp_path, layout, monkeypatch
):
    settings = Settings(layout, **SMALL_SHARDS)
    encode_corpus(codec, [wavs], tmp_path / "whole", settings)
    written, write = [], Shards.write

    def stops(shards, shard, *arguments):
        if len(written) == 2:
            (shards.output / ".encoding" / f"{shard:05d}-1-dead.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(shard)
        write(shards, shard, *arguments)

    monkeypatch.setattr(Shards, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(codec, [wavs], tmp_path / "cut", settings)
    with pytest.raises(FileNotFoundError, match="not finished"):
        TokenDataset(tmp_path / "cut")
    monkeypatch.setattr(Shards, "write", lambda o, s, *a: (written.append(s), write(o, s, *a)))
    encode_corpus(codec, [wavs], tmp_path / "cut", settings)
    assert written == sorted(set(written)) and len(written) > 3, "no shard is made twice"
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_job_sweeps_what_was_left_of_its_own_shards_alone(codec, wavs, tmp_path):
    settings = Settings("npy", **SMALL_SHARDS)
    encode_corpus(codec, [wavs], tmp_path / "t", settings, jobs=(2, 0))
    left = [
        tmp_path / "t" / ".encoding" / f"{shard:05d}-{socket.gethostname()}-{2**22 + 1}-dead.tmp"
        for shard in (0, 1, 2)
    ]
    for path in left:
        path.write_bytes(b"half")
    encode_corpus(codec, [wavs], tmp_path / "t", settings, jobs=(2, 0))
    assert [path.exists() for path in left] == [False, True, False]


def test_two_jobs_may_end_at_the_same_moment(codec, wavs, tmp_path, monkeypatch):
    merge = Shards.merge
    monkeypatch.setattr(Shards, "merge", lambda shards: (merge(shards), merge(shards))[1])
    assert encode_corpus(codec, [wavs], tmp_path / "t", Settings("npy", **SMALL_SHARDS)) is None
    assert len(TokenDataset(tmp_path / "t")) == 9


def start(*arguments: object, **environment: str) -> programs.Program:
    command = [sys.executable, "-c", "from codec.commands.main import encode; encode()", *map(str, arguments)]
    return programs.Program(command, env=os.environ | environment)


def finish(job: programs.Program) -> None:
    assert job.wait(300) == 0, job.outputs()


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [LAYOUTS[0], *(pytest.param(one, marks=pytest.mark.exhaustive) for one in LAYOUTS[1:])]
)
def test_kills_lose_and_double_nothing(codec, tmp_path, layout):
    codec.save(tmp_path / "model")
    (tmp_path / "wavs").mkdir()
    for n in range(150):
        write_wav(tmp_path / "wavs" / f"{n}.wav", noise(6000 + n, n), RATE)
    arguments = [tmp_path / "model", tmp_path / "wavs", "--format", layout, "--shard-hours", "0.001", "-o"]
    finish(start(*arguments, tmp_path / "whole"))
    kills = 0
    for _ in range(2):
        job = start(*arguments, tmp_path / "cut")
        before = len(list((tmp_path / "cut").rglob(".encoding/*.jsonl")))
        deadline = time.monotonic() + 120
        while job.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "cut").rglob(".encoding/*.jsonl"))) >= before + 3:
                job.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        job.wait()
    finish(start(*arguments, tmp_path / "cut"))
    assert kills == 2 and contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_complete_dataset_that_was_cut_since_is_not_called_complete(codec, wavs, tmp_path, layout):
    settings = Settings(layout, **SMALL_SHARDS)
    encode_corpus(codec, [wavs], tmp_path / "t", settings)
    encode_corpus(codec, [wavs], tmp_path / "t", settings)
    cut = sorted((tmp_path / "t").rglob("*.arrow" if layout == "arrow" else "*.npy"))[-1]
    cut = tmp_path / "t" / "shards" / "00000.arrow" if layout == "arrow" else cut
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(TokenError, match="to encode all again"):
        encode_corpus(codec, [wavs], tmp_path / "t", settings)


def test_another_codec_other_options_or_other_files_are_refused(codec, wavs, tmp_path):
    settings = Settings("npy", **SMALL_SHARDS)
    encode_corpus(codec, [wavs], tmp_path / "done", settings)
    encode_corpus(codec, [wavs], tmp_path / "begun", settings, jobs=(2, 0))
    before = [contents(tmp_path / name) for name in ("done", "begun")]
    for output in (tmp_path / "done", tmp_path / "begun"):
        changed = Settings("npy", beam=2, **SMALL_SHARDS)
        with pytest.raises(ConfigError, match=r"other settings: --beam 1 → 2; name another folder"):
            encode_corpus(codec, [wavs], output, changed)
        with pytest.raises(ConfigError, match=r"\(--num-quantizers\) \[64, 64, 64\] → \[64\]; name"):
            encode_corpus(codec, [wavs], output, Settings("npy", num_quantizers=1, **SMALL_SHARDS))
        other = small_codec("autoencoder.decoder_channels=6")
        with pytest.raises(ConfigError, match="codec_id"):
            encode_corpus(other, [wavs], output, settings)
    write_wav(wavs / "new.wav", noise(2000), RATE)
    with pytest.raises(ConfigError, match="files 12 → 13, files_sha256"):
        encode_corpus(codec, [wavs], tmp_path / "done", settings)
    (wavs / "new.wav").unlink()
    assert [contents(tmp_path / name) for name in ("done", "begun")] == before


def test_a_folder_with_something_else_is_left_alone(codec, wavs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="is not empty and holds nothing to resume"):
        encode_corpus(codec, [wavs], tmp_path / "mine", Settings("npy", workers=0))
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_a_long_file_in_pieces_has_the_codes_of_the_whole(codec, tmp_path, monkeypatch):
    (tmp_path / "wavs").mkdir()
    write_wav(tmp_path / "wavs" / "long.wav", noise(70_000, 1), 22_050)
    monkeypatch.setattr("codec.audio.reading.BLOCK", 5000)
    monkeypatch.setattr("codec.model.inference.PIECE_SECONDS", 0.11)
    seen = []
    monkeypatch.setattr(
        "codec.tokens.sources.encode_batch", lambda c, audio, **_: seen.append(len(audio)) or []
    )
    settings = Settings("npy", batch_seconds=0.5, workers=0)
    encode_corpus(codec, [tmp_path / "wavs" / "long.wav"], tmp_path / "pieces", settings)
    assert not seen, "it was read as a whole"
    audio = torch.from_numpy(read_audio(tmp_path / "wavs" / "long.wav", RATE)[0])
    require_same_codes(codec, TokenDataset(tmp_path / "pieces")[0], audio)


def test_progress_moves_within_a_long_file(codec, tmp_path, monkeypatch):
    (tmp_path / "wavs").mkdir()
    write_wav(tmp_path / "wavs" / "long.wav", noise(70_000, 1), 22_050)
    write_wav(tmp_path / "wavs" / "short.wav", noise(2000, 2), RATE)
    monkeypatch.setattr("codec.model.inference.PIECE_SECONDS", 0.5)
    told = []
    monkeypatch.setattr(
        encoding, "progress", lambda seconds: nullcontext(told.append(-seconds) or told.append)
    )
    settings = Settings("npy", batch_seconds=0.5, workers=0)
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "tokens", settings)
    assert len(told) > 6 and max(told) <= 0.6 and sum(told) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_job_that_is_at_work_is_not_done_twice(codec, wavs, tmp_path):
    settings = Settings("npy", **SMALL_SHARDS)
    encode_corpus(codec, [wavs], tmp_path / "t", settings, jobs=(3, 0))
    with held(tmp_path / "t" / ".encoding" / "1-of-3.lock"):
        with pytest.raises(ConfigError, match=r"t: process \d+ on .* is writing here: wait until it ends"):
            encode_corpus(codec, [wavs], tmp_path / "t", settings, jobs=(3, 1))
        encode_corpus(codec, [wavs], tmp_path / "t", settings, jobs=(3, 2))
    assert encode_corpus(codec, [wavs], tmp_path / "t", settings, jobs=(3, 1))["items"] == 9
    assert not (tmp_path / "t" / ".encoding").exists()


def test_files_that_break_while_they_are_encoded_are_reported(codec, wavs, tmp_path, monkeypatch):
    long = noise(40_000, 5)
    soundfile.write(wavs / "cut.flac", long[0], RATE, format="FLAC", subtype="PCM_16")
    content = (wavs / "cut.flac").read_bytes()
    (wavs / "cut.flac").write_bytes(content[: len(content) // 2])
    write_wav(wavs / "changes.wav", long, RATE)
    write_wav(wavs / "long and silent.wav", np.zeros((1, 40_000), np.float32), RATE)
    plan = encoding.make_plan

    def and_then(*arguments):
        made = plan(*arguments)
        write_wav(wavs / "changes.wav", long[:, :5000], RATE)
        (wavs / "s1" / "utt 1.wav").unlink()
        return made

    monkeypatch.setattr(encoding, "make_plan", and_then)
    about = encode_corpus(codec, [wavs], tmp_path / "tokens", Settings("npy", batch_seconds=1.5, workers=0))
    lines = (tmp_path / "tokens" / "skipped.jsonl").read_text().splitlines()
    skipped = {line["path"]: line["problem"] for line in map(json.loads, lines)}
    assert "truncated or damaged" in skipped["cut.flac"]
    assert skipped["changes.wav"] == "changed since the folder was scanned"
    assert skipped["s1/utt 1.wav"].startswith("no such file") and about["skipped"] == len(BAD) + 4
    assert skipped["long and silent.wav"].startswith("silent: no sample above")
    assert len(TokenDataset(tmp_path / "tokens")) == 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_the_odd_files_there_are(codec, tmp_path, layout):
    write_zoo(tmp_path / "zoo")
    settings = Settings(layout, batch_seconds=1.5, shard_hours=0.002, workers=0)
    about = encode_corpus(codec, [tmp_path / "zoo"], tmp_path / "tokens", settings)
    dataset = TokenDataset(tmp_path / "tokens")
    assert about["items"] == len(dataset) == len(GOOD) and about["skipped"] == len(BAD_ZOO)
    for i in range(len(dataset)):
        row = dataset.utterance(i)
        dataset.verify(i)
        assert dataset[i].shape[1] == -(-resampled_length(row.n_samples, row.sample_rate, RATE) // 128)


def test_stereo_and_other_rates(tmp_path):
    codec = small_codec(channels=2)
    (tmp_path / "wavs").mkdir()
    write_wav(tmp_path / "wavs" / "a.wav", noise(30_000, 1, channels=2), 44_100)
    write_wav(tmp_path / "wavs" / "b.wav", noise(9000, 2), 8_000)
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "tokens", Settings("npy", workers=0))
    dataset = TokenDataset(tmp_path / "tokens")
    for i, name in enumerate(("a.wav", "b.wav")):
        audio = torch.from_numpy(read_audio(tmp_path / "wavs" / name, RATE, 2)[0])
        require_same_codes(codec, dataset[i], audio)
    assert dataset.utterance(0).channels == 2 and dataset.decode(codec, 1).shape == (2, 18_000)


@pytest.mark.parametrize("batch_seconds", [30.0, 0.5])
def test_channels_that_cancel_are_named_and_one_of_them_can_be_taken(codec, tmp_path, batch_seconds):
    (tmp_path / "wavs").mkdir()
    one = noise(20_000, 1)
    write_wav(tmp_path / "wavs" / "a.wav", np.concatenate([one, -one]), RATE)
    write_wav(tmp_path / "wavs" / "b.wav", one, RATE)
    settings = Settings("npy", batch_seconds=batch_seconds, workers=0)
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "mid", settings)
    assert "a.wav: silent when its 2 channels are mixed to 1: they cancel" in (
        tmp_path / "mid" / "report.txt"
    ).read_text(encoding="utf-8")
    for downmix, audio in (("left", one), ("right", -one)):
        taken = replace(settings, downmix=downmix)
        about = encode_corpus(codec, [tmp_path / "wavs"], tmp_path / downmix, taken)
        assert about["skipped"] == 0 and about["downmix"] == downmix
        require_same_codes(codec, TokenDataset(tmp_path / downmix)[0], torch.from_numpy(audio))
    with pytest.raises(ConfigError, match="--downmix left → right"):
        encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "left", taken)


def test_batches_hold_similar_lengths_and_never_more_than_they_may(wavs):
    plan = make_plan([wavs], RATE, 1.0)
    groups = list(batches(plan, 0, 1.0))
    assert sorted(n for group in groups for n in group) == list(range(12))
    for group in groups:
        longest = max(plan.sources[n].seconds for n in group)
        assert len(group) == 1 or longest * len(group) <= 1.0
    assert max(map(len, groups)) > 1


def test_shards_are_decided_by_the_files_alone(wavs):
    plan = make_plan([wavs], RATE, 0.0004)
    assert [n for shard in plan.shards for n in shard] == list(range(12)) and len(plan.shards) > 3
    assert all(plan.seconds(k) <= 0.0004 * 3600 or len(shard) == 1 for k, shard in enumerate(plan.shards))


@pytest.mark.parametrize(
    ("environment", "expected", "told_by"),
    [
        ({}, (1, 0), ""),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (8, 3), "RANK says"),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3"},
            (4, 2),
            "SLURM_ARRAY_TASK_ID says",
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "RANK": "1",
                "WORLD_SIZE": "2",
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "1",
            },
            (6, 5),
            "SLURM_ARRAY_TASK_ID and RANK say",
        ),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, (4, 2), "SLURM_PROCID says"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (1, 0), ""),  # a batch script without srun
    ],
)
def test_jobs_are_counted_as_torchrun_and_slurm_say(environment, expected, told_by, capsys):
    assert shard_of_jobs(None, None, environment) == expected
    said = f"job {expected[1]} of {expected[0]}, as {told_by}\n" if told_by else ""
    assert capsys.readouterr().out == said
    assert shard_of_jobs(7, 6, environment) == (7, 6) and not capsys.readouterr().out


def test_impossible_arguments_are_refused_in_a_sentence(codec, wavs, tmp_path):
    with pytest.raises(ConfigError, match="go together"):
        shard_of_jobs(4, None, {})
    with pytest.raises(ConfigError, match="--shard-id must be 0 to 3"):
        shard_of_jobs(4, 4, {})
    with pytest.raises(ConfigError, match="--num-quantizers must be 1 to 3, got 9"):
        encode_corpus(codec, [wavs], tmp_path / "t", Settings("npy", num_quantizers=9))
    with pytest.raises(ConfigError, match="--format"):
        Settings("tar")
    with pytest.raises(ConfigError, match="above 0"):
        Settings(batch_seconds=0)
    with pytest.raises(ConfigError, match="one folder, or any number of files"):
        encode_corpus(codec, [wavs, wavs / "s0"], tmp_path / "t", Settings("npy"))
    with pytest.raises(DataError, match="no such folder"):
        encode_corpus(codec, [wavs / "gone"], tmp_path / "t", Settings("npy"))
    assert not (tmp_path / "t").exists()


def test_without_pyarrow_the_message_names_the_other_format(codec, wavs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"neural-audio-codec\[tokens\].*--format npy"):
        encode_corpus(codec, [wavs], tmp_path / "t", Settings("arrow", workers=0))
    assert not (tmp_path / "t").exists()


@NEEDS_ARROW
@pytest.mark.slow
def test_ray_runs_the_jobs(codec, wavs, tmp_path):
    pytest.importorskip("ray", reason="--engine ray needs Ray: pip install -e '.[ray]'")
    codec.save(tmp_path / "model")
    settings = Settings(shard_hours=0.0004, workers=0)
    encode_corpus(codec, [wavs], tmp_path / "one", settings)
    arguments = [
        tmp_path / "model",
        wavs,
        "-o",
        tmp_path / "ray",
        "--shard-hours",
        "0.0004",
        "--workers",
        "0",
    ]
    more = ["--engine", "ray", "--num-shards", "3", "--device", "cpu"]
    finish(start(*arguments, *more, PYTHONWARNINGS="default"))
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_codes_of_a_dtype_that_holds_them():
    for size, dtype in [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)]:
        from codec.tokens.files import code_dtype

        assert code_dtype([2, size]) == dtype
