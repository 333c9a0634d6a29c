"""Corpora in shards: tars of WebDataset and Lhotse, Arrow files of `datasets`; as from their folder."""

import gc
import gzip
import io
import json
import shutil
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from bad_audio import RATE, tone, write

from codec.audio.reading import read_audio
from codec.commands import doctor
from codec.commands.main import require_input
from codec.data.index import DataError
from codec.data.module import AudioDataModule, Validation
from codec.data.scan import has_audio, scan, scan_files
from codec.system.archive import contents, unpacked

NAMES = sorted(f"{folder}{number}.wav" for number in range(5) for folder in ("", "b", "c/d"))


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
    (folder.parent / "text.txt").write_text("hello")
    for number in range(num_shards):
        with tarfile.open(target / f"s-{number:02d}.tar", "w") as tar:
            for name in NAMES[number::num_shards]:
                tar.add(folder / name, name)
                tar.add(folder.parent / "text.txt", name.replace(".wav", ".txt"))
    return target


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return shard(folder, folder.parent / "shards")


def make(root, cache: Path, **options) -> AudioDataModule:
    data = AudioDataModule(
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


def assert_same(data: AudioDataModule, expected: AudioDataModule) -> None:
    """The same crops, also in a resumed run, clips and held-out recordings."""
    assert data.crops(0, 40).numpy().tobytes() == expected.crops(0, 40).numpy().tobytes()
    data.load_state_dict({"seen": 36})
    assert torch.equal(next(iter(data.train_dataloader())).audio, expected.crops(36, 4))
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
    assert data.indexes[0].files[1].path == "s-00.tar/3.wav"
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


def test_a_range_that_counts_down_is_refused_unless_it_is_the_name_of_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"\{3\.\.1\} counts down: write \{1\.\.3\}"):
        scan(tmp_path / "s-{3..1}.tar", cache_dir=tmp_path)
    (tmp_path / "s-{3..1}").mkdir()
    write(tmp_path / "s-{3..1}/a.wav", tone())
    assert len(scan(tmp_path / "s-{3..1}", cache_dir=tmp_path).usable) == 1


def test_faults_of_shards_are_reported_and_the_others_are_used(shards, tmp_path):
    whole = (shards / "s-00.tar").read_bytes()
    for name, content in {
        "a.tar": whole,
        "cut.tar": whole[:50_000],
        "joined.tar": whole + (shards / "s-01.tar").read_bytes(),
        "none.tar": b"x" * 600,
        "b.tar.gz": b"x",
    }.items():
        (tmp_path / name).write_bytes(content)
    index = scan(tmp_path, cache_dir=tmp_path / "cache")
    assert {file.path.partition("/")[0] for file in index.usable} == {"a.tar", "cut.tar", "joined.tar"}
    problems = {file.path: file.problem or "" for file in index.problems}
    assert problems.keys() == {"cut.tar", "joined.tar", "none.tar"} and index.ignored[".tar.gz"] == 1
    assert problems["cut.tar"].startswith("truncated: the entry at byte")
    assert problems["joined.tar"].endswith("as of archives joined with cat: join them with tar -A")
    assert problems["none.tar"] == "damaged: no header of an entry at byte 0"
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "a.tar", "start": 1}))
    with pytest.raises(DataError, match=r"start and duration are of a recording, not of a\.tar"):
        scan(tmp_path / "list.jsonl", cache_dir=tmp_path / "cache")


def test_a_weight_of_an_archive_is_that_of_its_recordings(folder, shards, tmp_path):
    rows = [{"path": str(shards / "s-00.tar"), "weight": 3}, {"path": str(folder / "a/1.wav")}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = scan(tmp_path / "list.jsonl", cache_dir=tmp_path).files
    assert sorted(file.weight for file in files) == [1.0, *[3.0] * 5]


def test_a_wav_whose_samples_exceed_it_never_has_those_of_the_next_member(folder, tmp_path):
    content = bytearray((folder / "0.wav").read_bytes())
    content[40:44] = (len(content) + 5000).to_bytes(4, "little")
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs/0.wav").write_bytes(content)
    shutil.copy(folder / "b0.wav", tmp_path / "wavs/1.wav")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "wavs", ".")
    expected, index = (scan(tmp_path / name, cache_dir=tmp_path / "cache") for name in ("wavs", "a.tar"))
    assert [file.problem for file in index.files] == [file.problem for file in expected.files]
    assert (index.problems[0].problem or "").startswith("truncated: the header promises 37")
    wavs = [read_audio(tmp_path / name / "1.wav")[0] for name in ("wavs", "a.tar")]
    assert np.array_equal(*wavs)


# Lhotse


@pytest.fixture(scope="module")
def shar(folder) -> Path:
    """Shar folder that Lhotse wrote, with a second field of recordings."""
    lhotse = pytest.importorskip("lhotse")
    target = folder.parent / "shar"
    target.mkdir()
    cuts = [
        lhotse.Recording.from_file(folder / name)
        .to_cut()
        .truncate(offset=0.25)
        .with_id(name.removesuffix(".wav"))
        for name in NAMES
    ]
    for cut in cuts:
        cut.custom = {"target_recording": cut.recording}
    fields = {"recording": "flac", "target_recording": "wav"}
    lhotse.CutSet.from_cuts(cuts).to_shar(target, fields=fields, shard_size=4)
    return target


@pytest.mark.filterwarnings("ignore")  # lhotse leaves its files open
def test_shar_has_the_samples_that_lhotse_reads(shar, tmp_path):
    from lhotse import CutSet

    index = scan(shar, cache_dir=tmp_path)
    samples = {unpacked(file.path): read_audio(file.located(index.root))[0] for file in index.usable}
    expected = {f"{cut.id}.flac": cut.load_audio() for cut in CutSet.from_shar(in_dir=shar)}
    gc.collect()
    assert samples.keys() == expected.keys() and len(expected) == 15 and not index.problems
    assert all(np.array_equal(samples[name], expected[name]) for name in expected)
    assert index.ignored == {".gz": 4, ".tar": 4, ".json": 15}
    unpack = tmp_path / "unpacked"
    for path in shar.glob("recording.*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(unpack, filter="data")
    assert_same(make(shar, tmp_path), make(unpack, tmp_path))


def test_faults_of_a_shar_folder_are_named(shar, tmp_path):
    copy = shutil.copytree(shar, tmp_path / "shar")
    (copy / "recording.000001.tar").unlink()
    (copy / "cuts.000002.jsonl.gz").write_bytes(b"x" * 99)
    with gzip.open(copy / "cuts.000000.jsonl.gz", "at") as file:
        file.write('{"id": "another"}\n')
    content = (copy / "cuts.000003.jsonl.gz").read_bytes()
    (copy / "cuts.000003.jsonl.gz").write_bytes(content[:-9])
    index = scan(copy, cache_dir=tmp_path)
    problems = {file.path: file.problem or "" for file in index.problems}
    assert problems.pop("recording.000001.tar") == "missing: cuts.000001.jsonl.gz needs it"
    name = "recording.000000.tar/another"
    assert problems.pop(name) == "missing in its archive: it is a cut of cuts.000000.jsonl.gz"
    assert len(problems) == 2 and len(index.usable) == 11
    assert all("damaged: not the cuts of recording" in problem for problem in problems.values())


# Hugging Face's datasets


def save(target: Path, rows: list[dict], name: str = "audio", shards: int = 2) -> Path:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{name: row, "text": "x"} for row in rows])
    table.cast_column(name, datasets.Audio(decode=False)).save_to_disk(target, num_shards=shards)
    return target


@pytest.fixture(scope="module")
def saved(folder) -> Path:
    rows = [{"bytes": (folder / name).read_bytes(), "path": name} for name in NAMES]
    return save(folder.parent / "saved", rows, shards=3)


def test_a_dataset_gives_the_crops_of_the_folder_it_was_made_of(folder, saved, tmp_path):
    flat = tmp_path / "flat"  # `datasets` keeps the last part of a path
    flat.mkdir()
    for name in NAMES:
        shutil.copy(folder / name, flat)
    data, expected = make(saved, tmp_path), make(flat, tmp_path)
    assert_same(data, expected)
    assert data.indexes[0].files[0].path == "data-00000-of-00003.arrow/0.wav"
    assert_same(make(saved / "data-{00000..00002}-of-00003.arrow", tmp_path), expected)
    batches = iter(make(saved, tmp_path, num_workers=1).train_dataloader())
    assert next(batches).audio.numpy().tobytes() == expected.crops(0, 4).numpy().tobytes()


def test_rows_are_those_that_datasets_reads(folder, tmp_path):
    import datasets

    parts = {"train": save(tmp_path / "a", [{"path": str(folder / name)} for name in NAMES[:7]])}
    parts["test"] = save(tmp_path / "b", [{"path": str(folder / name)} for name in NAMES[7:]])
    splits = datasets.DatasetDict({name: datasets.load_from_disk(path) for name, path in parts.items()})
    splits.save_to_disk(tmp_path / "both")
    splits = datasets.load_from_disk(tmp_path / "both")
    (tmp_path / "both/train/cache-0123456789abcdef.arrow").write_bytes(b"of another state")
    index = scan(tmp_path / "both", cache_dir=tmp_path)
    found = [read_audio(file.located(index.root))[0].tobytes() for file in index.usable]
    rows = [row["audio"]["bytes"] for name in ("test", "train") for row in splits[name]]
    (tmp_path / "one.wav").write_bytes(rows[0])
    expected = [read_audio(folder / name)[0].tobytes() for name in NAMES]
    assert sorted(found) == sorted(expected) and len(rows) == 15
    assert not index.problems and index.ignored[".arrow"] == 1


def test_rows_without_a_plain_path_are_named_by_their_numbers(folder, saved, tmp_path):
    import pyarrow as pa

    content, flac = (folder / "0.wav").read_bytes(), io.BytesIO()
    soundfile.write(flac, tone(), RATE, format="FLAC")
    paths = ["a.wav", None, "../../out.wav", "a.wav", "/top/b.wav", None, "c"]
    rows = [{"bytes": flac.getvalue() if n == 5 else content, "path": path} for n, path in enumerate(paths)]
    with pa.memory_map(str(saved / "data-00000-of-00003.arrow")) as file:
        schema = pa.ipc.open_stream(file).schema
    table = pa.table(
        [pa.array([*rows, {"path": "d.wav"}], schema[0].type), pa.array(["x"] * 8)], schema=schema
    )
    for name, codec in {"a.arrow": None, "b.arrow": "lz4"}.items():
        options = pa.ipc.IpcWriteOptions(compression=codec)
        with pa.ipc.new_stream(str(tmp_path / name), schema, options=options) as stream:
            stream.write_table(table)
    index = scan(tmp_path / "a.arrow", cache_dir=tmp_path / "cache")
    names = ["000001.wav", "000002.wav", "000003/a.wav", "000005.flac", "a.wav", "c", "top/b.wav"]
    assert [file.path for file in index.usable] == names
    assert [file.problem for file in index.problems] == [
        "rows without bytes: save it again with `save_to_disk` where their files are (1)"
    ]
    with pytest.raises(DataError, match=r"b\.arrow is no Arrow file .* compressed: save it again"):
        scan(tmp_path / "b.arrow", cache_dir=tmp_path)


def test_unusable_datasets_are_refused_with_the_reason(folder, saved, tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    row = {"bytes": (folder / "0.wav").read_bytes(), "path": None}
    two = datasets.Dataset.from_dict({"noisy": [row], "clean": [row]})
    for name in ("noisy", "clean"):
        two = two.cast_column(name, datasets.Audio(decode=False))
    two.save_to_disk(tmp_path / "two")
    messages = {"text": "no column of type Audio among text", "two": r"several columns .* \(noisy, clean\)"}
    for name, message in messages.items():
        with pytest.raises(DataError, match=f"no usable audio file in .*: 1 {message}"):
            scan(tmp_path / name, cache_dir=tmp_path)
    copy = shutil.copytree(saved, tmp_path / "copy")
    (copy / "data-00000-of-00003.arrow").unlink()
    content = (copy / "data-00001-of-00003.arrow").read_bytes()
    (copy / "data-00001-of-00003.arrow").write_bytes(content[: len(content) // 2])
    index = scan(copy, cache_dir=tmp_path)
    problems = {file.path: file.problem or "" for file in index.problems}
    assert problems["data-00000-of-00003.arrow"] == "missing: state.json lists it"
    assert problems["data-00001-of-00003.arrow"].startswith("damaged: ")
    assert len(index.usable) == 5
    (copy / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(DataError, match=r"1 damaged \(state\.json\)"):
        scan(copy, cache_dir=tmp_path)


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_arrow_file_never_leads_out_of_it(saved, tmp_path, seed):
    random = np.random.default_rng(seed)
    content = bytearray((saved / "data-00000-of-00003.arrow").read_bytes())
    for place in random.integers(0, 900, 3):
        content[place] = random.integers(256)
    (tmp_path / "a.arrow").write_bytes(content)
    for member in contents(str(tmp_path / "a.arrow")).members.values():
        assert 0 <= member.offset <= member.offset + member.st_size <= len(content)
