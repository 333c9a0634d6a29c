"""Addresses of fsspec: index, crops, lists, tars and faults are those of the local folder; refusals."""

import gzip
import io
import json
import multiprocessing
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import soundfile
from bad_audio import RATE, tone, write
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from test_sources import facts, make, pack, wav

import codec.data.scan
from codec.audio.reading import AudioError, read_audio, read_info, read_segment
from codec.commands import doctor
from codec.commands.evaluate import default_output, places
from codec.commands.main import require_input
from codec.commands.parsers import parse
from codec.commands.train import check_addresses, check_roots
from codec.config import ConfigError
from codec.data.index import DataError, IndexedFile
from codec.data.partition import identity
from codec.data.scan import has_audio, scan, scan_files
from codec.evaluation.reading import read_clip, shown, stamp
from codec.pretrained import require_model
from codec.system import address
from codec.system.address import state_of
from codec.system.files import FileError
from codec.tokens.plan import make_plan
from codec.tokens.sources import Settings, SourceBatches


class Bucket(LocalFileSystem):
    """An object store on the local disk: its own listing takes no options of a walk."""

    protocol = "s3test"
    place = ""

    @classmethod
    def _strip_protocol(cls, path):
        name = str(path)
        return f"{cls.place}/{name[len('s3test://') :]}".rstrip("/") if name.startswith("s3test://") else name

    def find(self, path, maxdepth=None, withdirs=False, detail=False):
        return super().find(path, maxdepth, withdirs, detail)


class ServerError(Exception):
    """An error of a package that is no OSError."""


class Ward(MemoryFileSystem):
    """Files in memory behind a connection that breaks for the names in `broken`."""

    protocol = "ward"
    store, pseudo_dirs = {}, [""]
    broken = frozenset()
    find = fsspec.AbstractFileSystem.find

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("ward://", "memory://"))

    def ls(self, path, detail=True, **options):
        if path.rstrip("/").rsplit("/", 1)[-1] in self.broken:
            raise PermissionError(13, "Forbidden", path)
        return super().ls(path, detail, **options)

    def info(self, path, **options):
        if "all" in self.broken:
            raise ServerError("no route to host")
        return super().info(path, **options)

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        return Dropped(file.getvalue()) if mode == "rb" and path.rsplit("/", 1)[-1] in self.broken else file


class Dropped(io.BytesIO):
    """A file whose connection is lost behind its first bytes."""

    def readinto(self, buffer):
        if self.tell() >= 4096:
            raise ServerError("connection lost")
        return super().readinto(buffer)


class Metered(MemoryFileSystem):
    """Files in memory; `requests` are those that a server would get."""

    protocol = "metered"
    store, pseudo_dirs = {}, [""]
    requests: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("metered://", "memory://"))

    def info(self, path, **options):
        self.requests.append("info")
        return super().info(path, **options)

    def _open(self, path, mode="rb", **options):
        return Ranges(self, path, **options) if mode == "rb" else super()._open(path, mode, **options)

    def cat_file(self, path, start=None, end=None, **options):
        self.requests.append("range")
        return self.store[self._strip_protocol(path)].getvalue()[start:end]


class Ranges(AbstractBufferedFile):
    """A file that is fetched in ranges."""

    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path, start, end)


fsspec.register_implementation("metered", Metered, clobber=True)
fsspec.register_implementation("s3test", Bucket, clobber=True)
fsspec.register_implementation("ward", Ward, clobber=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight recordings in a bucket, beside what a scan leaves out; as `memory://bucket/wavs`, too."""
    place = tmp_path_factory.mktemp("store")
    root = place / "bucket/wavs"
    random = np.random.default_rng(5)
    for number, name in enumerate(["a.wav", "b.flac", "sub/c d.mp3", *(f"many/{n}.wav" for n in range(5))]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise = 0.1 * random.standard_normal((RATE // 2 + 1000 * number, 1 + number % 2))
        soundfile.write(root / name, noise, (RATE, 24_000)[number % 2])
    write(root / "broken.wav", tone())
    (root / "broken.wav").write_bytes((root / "broken.wav").read_bytes()[:3000])
    (root / "notes.md").write_text("not audio")
    for name in (".hidden/e.wav", "tokens/f.wav"):
        (root / name).parent.mkdir()
        write(root / name, tone())
    (root / "tokens/.codec-output").touch()
    pack(root, root.parent / "corpus.tar")
    Bucket.place = str(place)
    fsspec.filesystem("memory").put(f"{root.parent}/", "/bucket/", recursive=True)
    return root


@pytest.fixture(scope="module")
def local(folder):
    return make(folder, folder.parents[1] / "cache")


@pytest.mark.parametrize("protocol", ["file", "memory", "s3test", "simplecache::s3test"])
@pytest.mark.parametrize("name", ["wavs", "wavs/", "corpus.tar"])
def test_an_address_gives_the_index_and_the_crops_of_its_folder(folder, local, tmp_path, protocol, name):
    address = f"file://{folder.parent}/{name}" if protocol == "file" else f"{protocol}://bucket/{name}"
    data = make(address, tmp_path)
    one, other = local.indexes[0], data.indexes[0]
    assert facts(one) == facts(other) and len(one.usable) == 8 and len(one.problems) == 2
    assert one.ignored == other.ignored == {".md": 1}
    assert data.crops(0, 16).numpy().tobytes() == local.crops(0, 16).numpy().tobytes()
    assert [path.removeprefix(other.root) for path in data.valid_files] == [
        path.removeprefix(f"{folder}{'/' * (name != 'corpus.tar')}") for path in local.valid_files
    ]
    assert all(path.startswith(f"{address.rstrip('/')}/") for path in data.valid_files)


def test_workers_read_an_address_as_one_process_does(folder, local, tmp_path):
    # Processes that are not forked have no protocol of this file.
    forked = multiprocessing.get_start_method() == "fork"
    data = make("s3test://bucket/wavs" if forked else f"file://{folder}", tmp_path, num_workers=1)
    batches = iter(data.train_dataloader())
    for start in (0, 4):
        assert next(batches).audio.numpy().tobytes() == local.crops(start, 4).numpy().tobytes()


def test_a_crop_costs_one_request(tmp_path):
    server, sizes = fsspec.filesystem("metered"), (40_000, 50_000, 300_000)
    for number, size in enumerate(sizes):
        (tmp_path / "wavs").mkdir(exist_ok=True)
        noise = 0.1 * np.random.default_rng(number).standard_normal(size)
        soundfile.write(tmp_path / f"wavs/{number}.wav", noise, RATE)
        soundfile.write(tmp_path / f"wavs/{number}.flac", noise[:20_000], RATE)
    pack(tmp_path / "wavs", tmp_path / "corpus.tar")
    server.put(f"{tmp_path}/wavs/", "/metered/wavs/", recursive=True)
    server.put(f"{tmp_path}/corpus.tar", "/metered/corpus.tar")
    local = make(tmp_path / "wavs", tmp_path / "cache")
    for root in ("metered://metered/wavs", "metered://metered/corpus.tar"):
        data = make(root, tmp_path / root[-4:])
        data.crops(0, 32)  # headers
        Metered.requests.clear()
        assert data.crops(0, 64).numpy().tobytes() == local.crops(0, 64).numpy().tobytes()
        assert Metered.requests == ["range"] * 64


def test_a_replaced_file_is_noticed_by_its_length_or_by_the_next_scan(tmp_path):
    server, address = fsspec.filesystem("metered"), "metered://replaced/a.wav"
    server.pipe("/replaced/a.wav", wav())
    read = partial(read_segment, address, RATE - 200, 200, RATE, 1, expected=read_info(address))
    read()
    server.pipe("/replaced/a.wav", wav(0.5))
    for message in ("truncated: ", "changed since it was scanned"):
        with pytest.raises(AudioError, match=message):
            read()
    server.pipe("/replaced/a.wav", wav(2.0))
    assert scan("metered://replaced", cache_dir=tmp_path).usable[0].frames == 2 * RATE
    with pytest.raises(AudioError, match="changed since it was scanned"):
        read()


def test_lists_name_addresses_and_lie_at_addresses(folder, tmp_path):
    expected = {file.path: file.info for file in scan(folder, cache_dir=tmp_path).usable}
    rows = [f"s3test://bucket/wavs/{name}" for name in expected]
    (tmp_path / "a.txt").write_text("\n".join(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"path": row}) for row in rows))
    (folder.parent / "b.csv").write_text("path\n" + "\n".join(f"wavs/{name}" for name in expected))
    for root in (tmp_path / "a.txt", tmp_path / "a.jsonl", "s3test://bucket/b.csv"):
        index = scan(root, cache_dir=tmp_path)
        assert {file.path.removeprefix("wavs/"): file.info for file in index.files} == expected
    (tmp_path / "part.csv").write_text("path,start,duration\nmemory://bucket/corpus.tar/a.wav,0.25,0.125\n")
    index = scan(tmp_path / "part.csv", cache_dir=tmp_path)
    (file,) = index.usable
    clip = read_clip(file.located(index.root), RATE, 1, 9.0)
    assert np.array_equal(clip, read_audio(folder / "a.wav")[0][:, 4000:6000])
    (tmp_path / "mixed.txt").write_text(f"{folder}/a.wav\ns3test://bucket/wavs/b.flac")
    with pytest.raises(DataError, match="at several addresses: use a list for each"):
        scan(tmp_path / "mixed.txt", cache_dir=tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"path": "s3test://bucket/wavs/a.wav"}\n{"path"')
    shutil.copy(tmp_path / "bad.jsonl", folder.parent)
    with pytest.raises(DataError, match=r"s3test://bucket/bad\.jsonl, line 2: no JSON"):
        scan("s3test://bucket/bad.jsonl", cache_dir=tmp_path)


def test_shards_at_an_address_are_those_of_their_folder(tmp_path):
    memory = fsspec.filesystem("memory")
    for number in (0, 1):
        name = tmp_path / f"{number}.tar"
        (tmp_path / str(number)).mkdir()
        write(tmp_path / f"{number}/{number}.wav", (1 + number) * 0.3 * tone())
        pack(tmp_path / f"{number}", name)
        memory.put(str(name), f"/shards/{number}.tar")
        memory.put(str(name), f"/shar/recording.00000{number}.tar")
        cuts = gzip.compress(b'{"id": "0"}\n{"id": "1"}\n')
        memory.pipe(f"/shar/cuts.00000{number}.jsonl.gz", cuts)
    names = ["0.tar/0.wav", "1.tar/1.wav"]
    for root in ("memory://shards", "memory://shards/{0..1}.tar"):
        assert [file.path for file in scan(root, cache_dir=tmp_path).files] == names
    faults = {file.path: file.problem for file in scan("memory://shar", cache_dir=tmp_path).problems}
    assert sorted(faults.values()) == [
        f"missing in its archive: it is a cut of cuts.00000{number}.jsonl.gz" for number in (0, 1)
    ]
    memory.pipe("/rows/data.arrow", b"x")
    memory.pipe("/rows/state.json", b'{"_data_files": [{"filename": "data.arrow"}]}')
    with pytest.raises(DataError, match="Arrow files are read on a local disk alone, copy them there"):
        scan("memory://rows", cache_dir=tmp_path)


def test_a_second_scan_opens_nothing_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    memory, names = fsspec.filesystem("memory"), list[str]()
    for name in ("a", "b"):
        memory.pipe(f"/changing/{name}.wav", wav())
    original = codec.data.scan.open_audio
    monkeypatch.setattr(codec.data.scan, "open_audio", lambda path: names.append(path) or original(path))
    scan_again = partial(scan, "memory://changing", cache_dir=tmp_path)
    first = scan_again()
    assert len(names) == 2 and scan_again() == first and len(names) == 2
    memory.pipe("/changing/b.wav", wav()[:-2000] + bytes(2000))
    assert scan_again() != first and names[2:] == ["memory://changing/b.wav"]


def test_a_lost_connection_is_no_damaged_file(folder, tmp_path, monkeypatch, capfd):
    ward = fsspec.filesystem("ward")
    for name in ("a.wav", "b.flac", "deep/c.wav"):
        ward.pipe(f"/x/{name}", (folder / name.replace("deep/c", "a")).read_bytes())
    monkeypatch.setattr(Ward, "broken", {"a.wav", "b.flac"})
    index = scan("ward://x", cache_dir=tmp_path)
    assert [file.path for file in index.usable] == ["deep/c.wav"]
    assert {file.problem for file in index.problems} == {"ServerError: connection lost"}
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(AudioError, match=r"a\.wav: ServerError: connection lost"):
        read_audio("ward://x/a.wav")
    monkeypatch.setattr(Ward, "broken", set())
    assert len(scan("ward://x", cache_dir=tmp_path).usable) == 3  # the cache has no failure of a server
    monkeypatch.setattr(Ward, "broken", {"deep"})
    with pytest.raises(DataError, match="cannot list ward://x/: Forbidden"):
        scan("ward://x", cache_dir=tmp_path)
    monkeypatch.setattr(Ward, "broken", {"all"})
    with pytest.raises(DataError, match="cannot read the folder ward://x: ServerError: no route to host"):
        scan("ward://x", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nothing/x", "no such folder: memory://nothing/x"),
        ("memory://nothing/x.tar", r"no such folder: memory://nothing/x\.tar"),
        ("memory://bucket/wavs/a.wav", "is a file: name the folder"),
        ("needy://b/x", r"needy://b/x: Install it: `pip install nosuchpackage`"),
        ("s4://b/x", "s4://b/x: unknown protocol: fsspec has .*, s3, "),
    ],
)
def test_addresses_that_cannot_be_read_say_why(folder, address, message, tmp_path):
    fsspec.register_implementation("needy", "nosuchpackage.System", errtxt="Install it", clobber=True)
    for read in (partial(scan, cache_dir=tmp_path), *([] if "a.wav" in address else [require_input])):
        with pytest.raises((DataError, FileError), match=message):
            read(address)


@pytest.mark.parametrize(
    ("address", "shown_as"),
    [
        ("ftp://me:pass@word@host/x", "ftp://***host/x"),
        ("simplecache::s3://ID:pass@bucket/x", "simplecache::s3://***bucket/x"),
        ("https://host/x.tar?v=1&X-Amz-Signature=pass", "https://host/x.tar?v=1&***"),
    ],
)
def test_addresses_with_secrets_are_refused_and_never_shown(address, shown_as, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(address)
    config = {"run_dir": "runs/a", "data": {"root": ["x", address], "generate": {}}}
    for refuse in (
        lambda: scan(address, cache_dir=tmp_path),
        lambda: scan(tmp_path / "a.txt", cache_dir=tmp_path),
        lambda: require_input(address),
        lambda: check_addresses([f"data.root='{address}'"]),
        lambda: check_roots(Config(config | {"data": {"root": address, "generate": {"a": 1}}})),
    ):
        with pytest.raises(FileError, match="environment variables FSSPEC_") as refusal:
            refuse()
        assert shown_as in str(refusal.value) and "pass" not in str(refusal.value).partition(": a ")[0]
    with pytest.raises(SystemExit):
        parse("encode", ["model", "wavs", "-o", address])
    assert "pass" not in capsys.readouterr().err


class Config(dict):
    """A composed config, as far as the check of roots reads it."""

    @property
    def run_dir(self):
        return self["run_dir"]


def test_nothing_is_written_to_an_address(tmp_path, capsys):
    for command in ("encode", "evaluate", "features", "decode"):
        with pytest.raises(SystemExit):
            parse(command, ["one", *["two"] * (command != "decode"), "-o", "s3://b/x"])
        assert "s3://b/x is an address" in capsys.readouterr().err
    for refuse in (
        lambda: check_addresses(["run_dir=s3://b/x"]),
        lambda: check_roots(Config(run_dir="s3://b/x")),
        lambda: scan(tmp_path, cache_dir="s3://b/x"),
        lambda: require_model("s3://b/x"),
    ):
        with pytest.raises(ConfigError, match=r"s3://b/x is an address: .* copy the files"):
            refuse()
    assert has_audio("memory://nowhere")  # synthetic audio would be written there


def test_commands_take_addresses(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert doctor.main(["s3test://bucket/wavs"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("s3test://bucket/wavs/: 8 usable files") and "broken.wav: truncated" in out
    one, other = (make_plan([root], RATE, 1.0) for root in (folder, "s3test://bucket/wavs"))
    assert one.sha256 == other.sha256
    mix = SimpleNamespace(sample_rate=RATE, audio_channels=1)
    loaded = [
        SourceBatches(plan, [tuple(range(len(plan.sources)))], mix, Settings())[0]  # type: ignore
        for plan in (one, other)
    ]
    for first, second in zip(*loaded, strict=True):
        assert first.sha256 == second.sha256 and (first.audio is None) == (second.audio is None)
        assert first.problem == second.problem and np.array_equal(first.audio, second.audio)
    index = scan_files([f"s3test://bucket/wavs/{name}" for name in ("a.wav", "many/0.wav")])
    assert [file.path for file in index.usable] == ["a.wav", "many/0.wav"]
    assert places(["a", "data.root=s3://b/x"]) == (["a"], "s3://b/x")
    assert default_output([], "s3://b/x") == Path("evaluation-x")
    assert shown("s3://b/x/sub/a.wav", Path("s3://b/x/")) == "sub/a.wav"
    assert stamp("s3test://bucket/wavs/a.wav") == stamp("s3test://bucket/wavs/a.wav") != []


def test_identities_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    file = IndexedFile("s3://b/x/a.wav", 1, 1)
    name = identity(file)
    monkeypatch.chdir(tmp_path)
    assert identity(file) == name


def test_versions_of_objects_are_times_or_checksums():
    about = {"size": 3, "type": "file"}
    assert state_of(about | {"mtime": 1.5})[:2] == (3, 1_500_000_000)
    tags = [state_of(about | {"ETag": tag})[1] for tag in ("a", "b", "a")]
    assert tags[0] == tags[2] != tags[1]


class Slow(dict):
    """A dictionary whose first key another thread may delete while this one reads it."""

    def __iter__(self):
        key = next(super().__iter__())
        time.sleep(0.001)
        return iter([key])


def test_threads_fill_a_memory_of_limited_size_together(monkeypatch):
    monkeypatch.setattr(address, "MOST_REMEMBERED", 8)
    memory = Slow()

    def fill(thread: int) -> None:
        for number in range(20):
            address.remember(memory, (thread, number), number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))  # raises the KeyError of a thread
    assert len(memory) == 8
