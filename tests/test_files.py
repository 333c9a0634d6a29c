"""Files and folders that are whole or absent, whatever happens while they are written."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codec.config import ConfigError
from codec.system.files import FileError, folder_whole, only_writer, remove_leftovers, written_whole
from codec.system.resuming import require_same

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as of a file object's write: it names nothing


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FULL, "No space left on device: '{}'"),
        (OSError("9 requested and 4 written"), "{} cannot be written: 9 requested"),
    ],
)
def test_a_full_disk_is_said_of_the_output(tmp_path, error, message):
    target = tmp_path / "out.npy"
    target.write_text("before")
    with pytest.raises(OSError, match=message.format(target)), written_whole(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert os.listdir(tmp_path) == ["out.npy"] and target.read_text() == "before"
    folder = tmp_path / "folder"
    expected = pytest.raises(OSError, match=message.format(folder / "a"))
    with expected, folder_whole(folder) as temporary, written_whole(temporary / "a"):
        raise error
    assert os.listdir(tmp_path) == ["out.npy"]


def test_errors_name_no_temporary_file_and_leave_those_of_inputs_alone(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=f"'{tmp_path}/none/out'"),
        written_whole(tmp_path / "none/out") as t,
    ):
        t.write_text("nowhere")
    with pytest.raises(FileNotFoundError, match=r"'in\.wav'"), written_whole(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "in.wav")
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match=f"'{tmp_path}/out'$"), written_whole(tmp_path / "out") as temporary:
        temporary.write_text("a file in the place of a folder")


def test_a_folder_takes_the_place_of_nothing_or_an_empty_one(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty"):
        with folder_whole(tmp_path / name) as folder:
            (folder / "a").write_text("a")
        assert (tmp_path / name / "a").read_text() == "a"
        with pytest.raises(FileError, match=f"{name}: exists already"), folder_whole(tmp_path / name):
            pytest.fail("it was begun")
    with pytest.raises(FileError, match="late: exists already"), folder_whole(tmp_path / "late") as folder:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").write_text("of another process, which was faster")
    assert sorted(os.listdir(tmp_path)) == ["empty", "late", "new"]


def test_what_the_dead_left_is_removed_and_no_more(tmp_path):
    host, dead = socket.gethostname(), 2**22 + 1
    kept = [
        f".codec-{host}-{os.getpid()}-ab.tmp",
        f".codec-other{host}-{dead}-ab.tmp",
        "a.tmp",
        ".codec-x.tmp",
    ]
    kept += [f"00001-{host}-{dead}-ab.tmp", f".codec-{host}-{dead}-ab.wav"]
    for name in [*kept, f".codec-{host}-{dead}-cd.tmp"]:
        (tmp_path / name).write_text("half")
    (tmp_path / f".codec-{host}-{dead}-ef.tmp" / "deep").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_leftovers(tmp_path / "none")


HOLD = """
import os, sys, time
from pathlib import Path
from codec.system.files import only_writer
lock = Path(sys.argv[1])
with only_writer(lock.parent, lock.name):
    if os.fork() == 0:  # as a worker of a DataLoader, which outlives it for some seconds
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(lock: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds a lock until it is killed; its child lives on."""
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_one_process_writes_until_it_is_killed(tmp_path):
    lock = tmp_path / "work" / "lock"
    with held(lock) as process:
        refused = pytest.raises(ConfigError, match=rf"{tmp_path}: process \d+ on .* is writing here")
        with refused, only_writer(tmp_path, "work/lock"):
            pytest.fail("both write")
        with only_writer(tmp_path, "work/another"):
            pass
        process.kill()
        process.wait()
        with only_writer(tmp_path, "work/lock"):
            pass


def test_without_locks_nobody_is_kept_out(tmp_path, monkeypatch, caplog):
    def refuse(_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("codec.system.files.take", refuse)
    with only_writer(tmp_path):
        assert "is not locked against a second process" in caplog.text


@pytest.mark.parametrize(
    ("stored", "new", "words"),
    [
        (None, 3, "none → 3"),
        ("0123456789abcdef" * 4, "f" * 64, "0123456789ab… → ffffffffffff…"),
        ("0123456789abcdef" * 4, "0123456789abcdef" * 3 + "f" * 16, "…abcdef012345… → …abcdefffffff…"),
        ([1024] * 4, [1024] * 3 + [512], "[1024, 1024, 1024, 1024] → [1024, 1024, 1024, 512]"),
        ([1024] * 8, [1024] * 6, f"{[1024] * 8} → {[1024] * 6}"),
        ([1024] * 32, [1024] * 20 + [7] * 12, None),
        (["a"] * 32, ["a"] * 31, None),
    ],
)
def test_settings_that_differ_are_shown_where_they_differ(stored, new, words):
    with pytest.raises(ConfigError) as caught:
        require_same(Path("out"), {"size": stored}, {"size": new}, "name another")
    _, _, change = str(caught.value).removesuffix("; name another").partition("settings: size ")
    first, second = change.split(" → ")
    assert first != second and len(change) < 130
    assert words is None or change == words
