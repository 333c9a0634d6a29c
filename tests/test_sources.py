"""Sources: folder, tar and list give the same recordings, crops and faults; damage and lists of parts."""

import io
import json
import os
import shutil
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from bad_audio import RATE, mp3_without_xing, tone, write, write_zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import codec.data.scan
from codec.audio.reading import AudioError, read_audio, read_info
from codec.commands import doctor
from codec.data.index import DataError, Index
from codec.data.module import AudioDataModule, Validation
from codec.data.partition import place as place_of
from codec.data.scan import scan, scan_files
from codec.evaluation.reading import read_clip, shown, stamp
from codec.system import archive, tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve recordings in several formats and rates; one name needs a long header, one is not UTF-8."""
    root = tmp_path_factory.mktemp("corpus") / "wavs"
    random = np.random.default_rng(5)
    names = ["a.wav", "b.flac", "sub/c.ogg", "sub/d.mp3", f"sub/{'long' * 30}.wav", os.fsdecode(b"\xff.wav")]
    for number, name in enumerate([*names, *(f"many/{number}.wav" for number in range(6))]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with open(root / name, "wb") as file:
            noise = 0.1 * random.standard_normal((RATE + 1000 * number, 1 + number % 2))
            rate = (RATE, 24_000)[number % 2]
            soundfile.write(file, noise, rate, format=name.rpartition(".")[2].upper())
    (root / "notes.md").write_text("not audio")
    (root / ".hidden").mkdir()
    write(root / ".hidden/e.wav", tone())
    return root


def pack(folder: Path, target: Path, form: int = tarfile.PAX_FORMAT) -> Path:
    """Tar of a folder, as `tar -C folder -cf target .` makes it."""
    with tarfile.open(target, "w", format=form, errors="surrogateescape") as tar:
        tar.add(folder, ".")
    return target


@pytest.fixture(scope="module")
def packed(folder) -> Path:
    return pack(folder, folder.parent / "corpus.tar")


def lists(folder: Path) -> list[Path]:
    """The folder's recordings as lists of three kinds beside it."""
    names = [str(path.relative_to(folder.parent)) for path in folder.rglob("*.*") if path.is_file()]
    names = [name for name in names if ".hidden" not in name and not name.endswith(".md")]
    place = folder.parent
    (place / "list.txt").write_bytes(b"\n".join(map(os.fsencode, names)) + b"\n\n")
    rows = [json.dumps({"path": str(folder.parent / name), "speaker": 3}) for name in names]
    (place / "list.jsonl").write_text("\n".join(rows))
    (place / "list.csv").write_bytes(b"path\r\n" + b"\r\n".join(map(os.fsencode, names)))
    return [place / f"list.{kind}" for kind in ("txt", "jsonl", "csv")]


def make(root, cache: Path, **options) -> AudioDataModule:
    data = AudioDataModule(
        root if isinstance(root, list) else str(root),
        RATE,
        segment_seconds=0.25,
        batch_size=4,
        num_workers=options.pop("num_workers", 0),
        validation=Validation(0.2, clips=4),
        index=partial(scan, cache_dir=cache, progress=False),
        **options,
    )
    data.prepare_data()
    data.setup()
    return data


def facts(index: Index) -> list[tuple]:
    return [(file.path, file.size, file.info, file.peak, file.rms, file.problem) for file in index.files]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_gives_the_index_and_the_crops_of_its_folder(folder, tmp_path, form):
    packed = pack(folder, tmp_path / "corpus.tar", form)
    one, other = make(folder, tmp_path), make(packed, tmp_path)
    assert facts(one.indexes[0]) == facts(other.indexes[0]) and len(facts(one.indexes[0])) == 12
    assert one.indexes[0].ignored == other.indexes[0].ignored == {".md": 1}
    assert one.crops(0, 40).numpy().tobytes() == other.crops(0, 40).numpy().tobytes()
    clips = [[batch.audio.numpy() for batch in data.val_dataloader()] for data in (one, other)]
    assert np.array_equal(*map(np.concatenate, clips))
    names = [[os.path.relpath(path, data.roots[0]) for path in data.valid_files] for data in (one, other)]
    assert names[0] == names[1] and names[0]


def test_lists_give_the_crops_of_their_folder(folder, packed, tmp_path):
    expected = {file.path: file.info for file in scan(folder, cache_dir=tmp_path).files}
    made = [make(path, tmp_path) for path in lists(folder)]
    for data in made:
        assert {f.path.removeprefix("wavs/"): f.info for f in data.indexes[0].files} == expected
        assert data.crops(0, 20).numpy().tobytes() == made[0].crops(0, 20).numpy().tobytes()
    (folder.parent / "members.txt").write_bytes(b"corpus.tar/a.wav\ncorpus.tar/b.flac")
    members = scan(folder.parent / "members.txt", cache_dir=tmp_path)
    assert [file.info for file in members.files] == [expected["a.wav"], expected["b.flac"]]


def test_workers_read_a_tar_as_one_process_does(packed, tmp_path):
    alone, parallel = make(packed, tmp_path), make(packed, tmp_path, num_workers=2)
    batches = iter(parallel.train_dataloader())
    for start in (0, 4, 8):
        assert next(batches).audio.numpy().tobytes() == alone.crops(start, 4).numpy().tobytes()


def test_faults_within_a_tar_are_those_of_the_folder(tmp_path):
    zoo = write_zoo(tmp_path / "zoo")
    for path in [*zoo.rglob("*")]:
        special = path.is_symlink() or not (path.is_file() or path.is_dir())
        if special or path.stat().st_size > 2**24:  # one takes 4.5 GB where it is not sparse
            path.unlink()
    (zoo / "plain.mp3").write_bytes(mp3_without_xing())
    expected = scan(zoo, cache_dir=tmp_path, progress=False)
    found = scan(pack(zoo, tmp_path / "zoo.tar"), cache_dir=tmp_path, progress=False)
    assert facts(found) == facts(expected) and len(found.problems) > 10
    assert found.summary().partition("\n")[2] == expected.summary().partition("\n")[2]


def test_a_second_scan_opens_nothing_and_a_changed_tar_is_read_again(folder, tmp_path, monkeypatch):
    packed, names = pack(folder, tmp_path / "corpus.tar"), list[str]()
    original = codec.data.scan.open_audio
    monkeypatch.setattr(codec.data.scan, "open_audio", lambda path: names.append(path) or original(path))
    first = scan(packed, cache_dir=tmp_path / "cache")
    assert len(names) == 12
    names.clear()
    assert scan(packed, cache_dir=tmp_path / "cache") == first and not names
    content = io.BytesIO()
    soundfile.write(content, tone(1.0), RATE, format="WAV")
    with tarfile.open(packed, "a") as tar:
        entry = tarfile.TarInfo("./a.wav")
        entry.size = len(content.getvalue())
        tar.addfile(entry, io.BytesIO(content.getvalue()))
    again = scan(packed, cache_dir=tmp_path / "cache")
    assert [os.path.basename(name) for name in names] == ["a.wav"] and len(again.files) == 12
    assert np.allclose(read_audio(packed / "a.wav")[0], tone(1.0).T, atol=1e-4)


def test_commands_take_archives_and_lists(packed, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert doctor.main([str(packed)]) == 0
    assert "corpus.tar: 12 usable files" in capsys.readouterr().out
    files = scan_files([packed]).files
    assert [file.info for file in files] == [file.info for file in scan(folder, cache_dir=tmp_path).files]
    for name in ("a.wav", "sub/d.mp3"):
        clip = [read_clip(str(root / name), RATE, 1, 0.5) for root in (packed, folder)]
        assert np.array_equal(*clip)
    assert shown(str(packed / "sub/d.mp3"), packed) == "sub/d.mp3" and stamp(str(packed / "a.wav"))
    with pytest.raises(AudioError, match="no such file"):
        read_info(packed / "missing.wav")


def test_tokens_of_a_tar_are_those_of_its_folder(folder, packed, tmp_path):
    from codec.tokens.sources import Settings, SourceBatches

    mix = SimpleNamespace(sample_rate=RATE, audio_channels=1)
    loaded = []
    for root in (folder, packed):
        index = scan_files([root]) if root is packed else scan(root, check_content=False, cache_dir=tmp_path)
        sources = [SimpleNamespace(file=file, problem=None, seconds=file.seconds) for file in index.files]
        plan = SimpleNamespace(root=index.root, sources=sources)
        batches = SourceBatches(plan, [tuple(range(12))], mix, Settings(batch_seconds=9))  # type: ignore
        loaded.append(batches[0])
    for one, other in zip(*loaded, strict=True):
        assert one.problem is None and one.sha256 == other.sha256 and np.array_equal(one.audio, other.audio)


# Archives


def entry(name: str, content: bytes = b"", **values) -> tuple[tarfile.TarInfo, io.BytesIO]:
    found = tarfile.TarInfo(name)
    found.size = len(content)
    for key, value in values.items():
        setattr(found, key, value)
    return found, io.BytesIO(content)


def build(path: Path, *entries: tuple[tarfile.TarInfo, io.BytesIO]) -> Path:
    with tarfile.open(path, "w") as tar:
        for one in entries:
            tar.addfile(*one)
    return path


def wav(seconds: float = 1.0) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, tone(seconds), RATE, format="WAV")
    return content.getvalue()


def test_links_and_paths_out_of_a_tar_are_counted_and_never_read(tmp_path):
    packed = build(
        tmp_path / "odd.tar",
        entry("/root.wav", wav()),
        entry("a/../../out.wav", wav()),
        entry("link.wav", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("hard.wav", type=tarfile.LNKTYPE, linkname="root.wav"),
        entry("fifo.wav", type=tarfile.FIFOTYPE),
        entry("empty.wav"),
        entry("old.wav", wav(0.5), mtime=-5),
        entry("mine/.codec-output"),
        entry("mine/made.wav", wav()),
    )
    index = scan(packed, cache_dir=tmp_path / "cache")
    assert [file.path for file in index.usable] == ["old.wav", "root.wav"]
    assert {file.path: file.problem for file in index.problems} == {
        "empty.wav": "zero-length file",
        "mine": "written by a codec command (to use it, name the folder itself)",
    }
    assert index.ignored == {"path out of the archive": 1, "link": 2, "special file": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "odd.tar"]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_long_path_cut_at_a_slash_is_a_file(tmp_path, form):
    name = f"{'x' * 50}/{'y' * 48}/sub/file.wav"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for one in ("a.wav", name, "z.wav"):
            tar.addfile(*entry(one, b"x" * 700, type=tarfile.AREGTYPE))
        tar.addfile(*entry("old/", type=tarfile.AREGTYPE))  # a folder
    found = archive.contents(str(tmp_path / "a.tar"))
    assert list(found.members) == ["a.wav", name, "z.wav"] and not found.others and not found.damage


def test_a_name_ends_before_a_nul_and_has_no_empty_parts(tmp_path):
    write(tmp_path / "a.wav", tone())
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(*entry("a.wav", wav(), pax_headers={"path": "b.wav\0c.wav"}))
        tar.addfile(*entry("././@LongLink", b"d.wav\0e.wav\0", type=tarfile.GNUTYPE_LONGNAME))
        for name in ("a.wav", "././f.wav", "g//./h.wav"):
            tar.addfile(*entry(name, wav()))
    index = scan(tmp_path / "a.tar", cache_dir=tmp_path)
    assert [file.path for file in index.usable] == ["b.wav", "d.wav", "f.wav", "g/h.wav"]
    (tmp_path / "a.txt").write_text("a.tar/g//h.wav")
    assert len(scan(tmp_path / "a.txt", cache_dir=tmp_path).usable) == 1
    assert not archive.is_file(tmp_path / "a\0.wav")


def test_entries_after_a_sparse_file_with_a_long_map_are_listed(tmp_path):
    sparse = entry("sparse.wav", b"x" * 700, type=tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT)
    header = bytearray(sparse)
    header[482] = 1
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    maps = bytes(504) + b"\1" + bytes(7) + bytes(512)
    last = build(tmp_path / "b.tar", entry("b.wav", b"y" * 100)).read_bytes()
    (tmp_path / "a.tar").write_bytes(bytes(header) + maps + b"x" * 1024 + last)
    found = archive.contents(str(tmp_path / "a.tar"))
    assert list(found.members) == ["b.wav"] and found.others == {"special file": 1} and not found.damage


def test_a_truncated_tar_gives_the_files_before_the_cut(tmp_path):
    whole = build(tmp_path / "a.tar", entry("a.wav", wav()), entry("b.wav", wav())).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(wav()) + 3000])
    index = scan(tmp_path / "a.tar", cache_dir=tmp_path)
    assert [file.path for file in index.usable] == ["a.wav"]
    (fault,) = index.problems
    assert fault.path == "a.tar" and (fault.problem or "").startswith("truncated: the entry at byte 3")
    (tmp_path / "a.tar").write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"no tar archive, or damaged: truncated"):
        scan(tmp_path / "a.tar", cache_dir=tmp_path)


def test_a_tar_that_is_cut_or_replaced_in_training_is_named_with_the_remedy(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("codec.data.crops.PAUSES", ())
    packed = pack(folder, tmp_path / "corpus.tar")
    data, whole = make(packed, tmp_path), packed.read_bytes()
    other = build(tmp_path / "other.tar", entry("other.wav", wav())).read_bytes()
    for content, reason in (
        (whole[: whole.index(b"RIFF") + 99], r"which is truncated: the entry at byte \d+ lacks \d+ bytes"),
        (b"x" * 5000, "which is damaged: no header of an entry at byte 0"),
        (other, "which may be another than was scanned"),
    ):
        packed.write_bytes(content)
        message = rf"not readable any more: .*no such file in its archive, {reason}: put the archive back"
        with pytest.raises(DataError, match=message):
            data.crops(0, 1)
    packed.write_bytes(whole)
    assert data.crops(0, 1).shape[-1] == RATE // 4


def test_what_is_no_tar_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "a.tar").write_bytes(wav())
    with pytest.raises(DataError, match=r"a\.tar is no tar archive, or damaged: .* at byte 0"):
        scan(tmp_path / "a.tar", cache_dir=tmp_path)
    for name, tool in (("b.tar.gz", "gzip -dk b.tar.gz"), ("b.tgz", "gzip"), ("b.tar.zst", "zstd -dk"),
                       ("b.tar.bz2", "bzip2 -dk"), ("b.tar.xz", "xz -dk")):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=rf"is compressed, .* decompress it with `{tool}"):
            scan(tmp_path / name, cache_dir=tmp_path)
    write(tmp_path / "a.tar.wav", tone())
    assert scan_files([tmp_path / "a.tar.wav"]).usable
    write(tmp_path / "a.wav", tone())
    with pytest.raises(DataError, match=r"is a file: name the folder .* a \.tar, or a list \(\.txt, \.csv"):
        scan(tmp_path / "a.wav", cache_dir=tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=6), sums=st.booleans())
def test_a_damaged_tar_never_leads_out_of_the_file(tmp_path, places, sums):
    header = [entry(f"{'n' * 120}.wav", b"x" * 700), entry("b.wav", b"y" * 100)]
    content = bytearray(build(tmp_path / "a.tar", *header).read_bytes())[:4096]
    for place, value in places:
        content[place] = value
    if sums:  # with right checksums, so that damaged sizes and kinds are believed
        for start in range(0, len(content), 512):
            block = content[start : start + 512]
            total = sum(block) - sum(block[148:156]) + 8 * 32
            content[start + 148 : start + 156] = b"%06o\0 " % total
    found = tar.read_contents(io.BytesIO(content), "a.tar", len(content))
    for member in found.members.values():
        assert 0 <= member.offset <= member.offset + member.st_size <= len(content)


# Lists


def test_rows_name_parts_of_files_and_their_weights(tmp_path):
    audio = np.repeat(np.arange(1, 41), RATE // 4)[:, None] / 100  # a level for each quarter of a second
    write(tmp_path / "a.wav", audio, subtype="FLOAT")
    write(tmp_path / "b.wav", np.full((4 * RATE, 1), 0.9), subtype="FLOAT")
    rows = ["path,start,duration,weight,text", "a.wav,2,1.5,,hello", "a.wav,5,,2,x", "b.wav,0.5,1.0,0.5,y"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    index = scan(tmp_path / "list.csv", cache_dir=tmp_path / "cache")
    assert [(file.path, file.range, file.weight) for file in index.usable] == [
        ("a.wav", (2 * RATE, round(3.5 * RATE)), 1.0),
        ("a.wav", (5 * RATE, 10 * RATE), 2.0),
        ("b.wav", (RATE // 2, round(1.5 * RATE)), 0.5),
    ]
    assert index.summary().startswith(f"{tmp_path}/list.csv: 3 usable files, 0.1 minutes")
    data = make(tmp_path / "list.csv", tmp_path / "cache")
    levels = np.unique(np.round(data.crops(0, 300).numpy() * 100).astype(int))
    heard = {2: range(9, 15), 5: range(21, 41), 0: range(90, 91)}
    assert set(levels) <= {level for part in heard.values() for level in part} and len(levels) > 3
    crops = data.train_crops
    probabilities = np.diff(crops.cumulative, prepend=0)
    assert [file.seconds * file.weight for file in crops.files] == pytest.approx(probabilities)
    assert {*map(place_of, data.valid)}.isdisjoint({*map(place_of, crops.files)}) and len(crops.files) == 2


def test_a_part_of_a_tar_s_member_is_read_from_a_list(packed, folder, tmp_path):
    (tmp_path / "one.jsonl").write_text(
        json.dumps({"path": f"{packed}/a.wav", "start": 0.25, "duration": 0.5})
    )
    (file,) = scan(tmp_path / "one.jsonl", cache_dir=tmp_path).usable
    assert file.range == (4000, 12000)
    root = scan(tmp_path / "one.jsonl", cache_dir=tmp_path).root
    whole = read_audio(folder / "a.wav")[0]
    assert np.array_equal(read_clip(file.located(root), RATE, 1, 9.0), whole[:, 4000:12000])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file\na.wav", r"a\.csv, line 2: no path; the columns are path, start, duration, weight"),
        ("a.csv", "path,start\na.wav,soon", r"line 2: start must be a number above 0, got 'soon'"),
        ("a.csv", "path,duration\na.wav,0", r"line 2: duration must be"),
        ("a.csv", "path,weight\na.wav,-1", r"line 2: weight must be"),
        ("a.jsonl", '{"path": "a.wav"}\n{"path"', r"line 2: no JSON"),
        ("a.jsonl", "[1]", r"line 1: expected an object with a path"),
        ("a.jsonl", '{"path": "a.wav", "start": NaN}', r"line 1: start must be"),
        ("a.jsonl", '{"path": "a.wav", "start": ' + "9" * 400 + "}", r"line 1: start must be .* is 1e\+12"),
        ("a.csv", "path,start\na.wav,1e308", r"line 2: start must be"),
        ("a.csv", "path,weight\na.wav,1e308", r"line 2: weight must be"),
        ("a.jsonl", '{"path": "a.wav", "weight": true}', r"line 1: weight must be"),
        ("a.txt", "\n", r"no usable audio file in .*a\.txt"),
        ("a.txt", "missing.wav", r"1 no such file \(deleted, or a dangling link\) \(missing\.wav\)"),
        ("a.csv", "path,start,duration\na.wav,3,1", r"1 outside of the file \(a\.wav\)"),
    ],
)  # fmt: skip
def test_faults_of_lists_are_named_with_their_line(tmp_path, name, content, message):
    write(tmp_path / "a.wav", tone())
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        scan(tmp_path / name, cache_dir=tmp_path / "cache")


def test_columns_that_are_not_read_are_mentioned(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "a.wav", tone())
    (tmp_path / "a.jsonl").write_text('{"path": "a.wav", "text": "hi", "duration": 1.004}')
    (file,) = scan(tmp_path / "a.jsonl", cache_dir=tmp_path / "cache").usable
    assert file.span is None  # a duration that was rounded up is the whole file
    assert "columns that are not read: text; read are path, start, duration, weight" in caplog.text


def test_roots_of_all_kinds_go_together(folder, packed, tmp_path):
    write(tmp_path / "own.wav", 0.5 * tone(2.0))
    (tmp_path / "own.txt").write_text("own.wav")
    copy = shutil.copytree(folder, tmp_path / "copy")
    data = make([str(copy), str(packed), str(tmp_path / "own.txt")], tmp_path / "cache")
    trained = {(file.rms, file.frames) for root in data.trained for file in root}
    assert not trained & {(file.rms, file.frames) for file in data.valid}  # a copy is held out in both
    assert len(data.trained[2]) == 1
