"""Corpora in shards: tars of WebDataset and Lhotse, Arrow files of `datasets`; as from their folder."""

import json
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bad_audio import RATE, write

from codec.commands import doctor
from codec.commands.main import require_input
from codec.data.index import DataError
from codec.data.module import AudioData, Validation
from codec.data.scan import has_audio, scan, scan_files
from codec.system.archive import unpacked

NAMES = [f"{folder}{number}.wav" for folder in ("", "a/", "b/") for number in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Fifteen recordings of noise, of several lengths."""
    root = tmp_path_factory.mktemp("corpus") / "wavs"
    random = np.random.default_rng(5)
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, 0.1 * random.standard_normal((RATE + 1000 * number, 1)))
    return root


def shard(folder: Path, target: Path, num_shards: int = 3) -> Path:
    """Folder of tars that share the recordings, each with its text, in turns."""
    target.mkdir()
    for number in range(num_shards):
        with tarfile.open(target / f"s-{number:02d}.tar", "w") as tar:
            for name in NAMES[number::num_shards]:
                tar.add(folder / name, name)
                tar.add(__file__, name.replace(".wav", ".txt"))
    return target


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return shard(folder, folder.parent / "shards")


def make(root, cache: Path, **options) -> AudioData:
    data = AudioData(
        str(root),
        RATE,
        segment_seconds=0.25,
        batch_size=4,
        validation=Validation(0.2, clips=4),
        index=partial(scan, cache_dir=cache, progress=False),
        **{"num_workers": 0, **options},
    )
    data.prepare_data()
    data.setup()
    return data


def assert_same(data: AudioData, expected: AudioData) -> None:
    """The same crops, clips and held-out recordings."""
    assert data.crops(0, 40).numpy().tobytes() == expected.crops(0, 40).numpy().tobytes()
    clips = [np.concatenate([batch.audio for batch in one.val_dataloader()]) for one in (data, expected)]
    assert np.array_equal(*clips)
    held_out = [[(file.frames, file.rms) for file in one.valid] for one in (data, expected)]
    assert held_out[0] == held_out[1] and len(held_out[0]) > 1


def test_shards_give_the_crops_of_their_folder_however_they_are_named(folder, tmp_path):
    expected, shards = make(folder, tmp_path), shard(folder, tmp_path / "shards")
    (shards / ".list.txt").write_text("s-00.tar\ns-01.tar\ns-02.tar")
    patterns = [shards / "s-{00..02}.tar", shards / "s-{00,01,02}.tar"]
    for root in (shards, *patterns, shards / ".list.txt"):
        data = make(root, tmp_path)
        assert_same(data, expected)
        assert data.indexes[0].ignored == {".txt": 15} and has_audio(root)
        names = {unpacked(file.path): file.info for file in data.indexes[0].files}
        assert names == {file.path: file.info for file in expected.indexes[0].files}
    assert [file.path for file in scan(shards, cache_dir=tmp_path).files][:2] == [
        "s-00.tar/0.wav",
        "s-00.tar/3.wav",
    ]
    batches = iter(make(shards, tmp_path, num_workers=1).train_dataloader())
    assert next(batches).audio.numpy().tobytes() == expected.crops(0, 4).numpy().tobytes()


def test_other_shards_keep_what_is_held_out(folder, shards, tmp_path):
    held_out = [
        {unpacked(path).rpartition("/")[2] for path in make(root, tmp_path).valid_files}
        for root in (shards, shard(folder, tmp_path / "many", 7))
    ]
    assert held_out[0] == held_out[1]


def test_equal_names_in_several_shards_are_several_recordings(tmp_path):
    for number in range(30):
        write(tmp_path / "0.wav", np.full((RATE + number, 1), 0.1))
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            tar.add(tmp_path / "0.wav", "0.wav")
    (tmp_path / "0.wav").unlink()
    data = make(tmp_path, tmp_path / "cache")
    assert len(data.indexes[0].usable) == 30 and 1 < len(data.valid) < 15


def test_commands_take_several_tars_and_patterns(folder, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = scan_files(sorted(shards.iterdir()))
    assert [file.path for file in found.files] == [file.path for file in scan(shards).files]
    pattern = str(shards / "s-{00..03}.tar")
    require_input(pattern)
    assert doctor.main([pattern]) == 1
    output = capsys.readouterr().out
    assert f"{pattern}: 15 usable files" in output
    assert "skipped  s-03.tar: no such file (deleted, or a dangling link)" in output


def test_faults_of_shards_are_reported_and_the_others_are_used(shards, tmp_path):
    whole = (shards / "s-00.tar").read_bytes()
    for name, content in {
        "a.tar": whole,
        "cut.tar": whole[:50_000],
        "none.tar": b"x" * 600,
        "b.tar.gz": b"x",
    }.items():
        (tmp_path / name).write_bytes(content)
    index = scan(tmp_path, cache_dir=tmp_path / "cache")
    assert {file.path.partition("/")[0] for file in index.usable} == {"a.tar", "cut.tar"}
    problems = {file.path: file.problem or "" for file in index.problems}
    assert problems.keys() == {"cut.tar", "none.tar"} and index.ignored[".tar.gz"] == 1
    assert problems["cut.tar"].startswith("truncated: the entry at byte")
    assert "none.tar is no tar archive, or damaged: damaged: no header" in problems["none.tar"]
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "a.tar", "start": 1}))
    with pytest.raises(DataError, match=r"start and duration are of a recording, not of a\.tar"):
        scan(tmp_path / "list.jsonl", cache_dir=tmp_path / "cache")


def test_a_weight_of_an_archive_is_that_of_its_recordings(folder, shards, tmp_path):
    rows = [{"path": str(shards / "s-00.tar"), "weight": 3}, {"path": str(folder / "a/1.wav")}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = scan(tmp_path / "list.jsonl", cache_dir=tmp_path).files
    assert sorted(file.weight for file in files) == [1.0, *[3.0] * 5]
