"""Folders: what is found, what is skipped and why, what is cached, how files are divided."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bad_audio import (
    BAD,
    CONTENT,
    FOREIGN,
    GOOD,
    MP3,
    RATE,
    encoded,
    mp3_without_xing,
    tone,
    write,
    write_zoo,
)
from hypothesis import given
from hypothesis import strategies as st

import codec.data.scan
from codec.commands import doctor
from codec.data.index import DataError, Index, IndexedFile
from codec.data.scan import has_audio, scan
from codec.data.split import position, split


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return write_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True)
def never_block():
    signal.alarm(60)  # a FIFO that is opened would wait for ever
    yield
    signal.alarm(0)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files that are opened from now on."""
    names: list[str] = []
    original = codec.data.scan.open_audio
    monkeypatch.setattr(
        codec.data.scan, "open_audio", lambda path: names.append(os.path.basename(path)) or original(path)
    )
    return names


def test_every_file_of_the_zoo_is_judged(zoo, cache):
    index = scan(zoo, cache_dir=cache)
    found = {os.path.basename(file.path): file for file in index.files}
    names = Counter(os.path.basename(file.path) for file in index.files)
    assert names == Counter([*GOOD, *BAD])  # each once, although links lead in circles
    assert [file.path for file in index.files] == sorted(file.path for file in index.files)
    for name, (_, rate, channels) in GOOD.items():
        assert found[name].problem is None
        assert found[name].path.startswith("good/deep/")
        assert found[name].info == (rate, rate, channels)
    for name, (_, reason) in BAD.items():
        assert reason in (found[name].problem or ""), name
    assert index.ignored == {".txt": 1}


@pytest.mark.parametrize("looked_before", [False, True])
def test_headers_alone_find_less(zoo, cache, looked_before):
    if looked_before:
        scan(zoo, cache_dir=cache)
    index = scan(zoo, check_content=False, cache_dir=cache)
    assert {os.path.basename(file.path) for file in index.problems} == set(BAD) - CONTENT
    assert looked_before or all(file.peak == 0 for file in index.files)


def test_levels_are_measured(zoo, cache):
    found = {os.path.basename(file.path): file for file in scan(zoo, cache_dir=cache).files}
    for name in ("pcm16.wav", "float32.wav", "192k.wav", "stereo.flac"):
        channels = GOOD[name][2]
        levels = 0.5 / (1 + np.arange(channels))
        assert found[name].peak == pytest.approx(0.5, abs=1e-3)
        assert found[name].rms == pytest.approx(np.sqrt((levels**2 / 2).mean()), rel=1e-3)
        assert found[name].clipped == 0
    # 2 sin(x) passes 0.999 for all but asin(0.999 / 2) of a quarter period.
    expected = 1 - np.arcsin(0.999 / 2) / (np.pi / 2)
    assert found["clipped.wav"].clipped == pytest.approx(expected, abs=0.02)


def test_lone_full_scale_samples_are_not_clipping(tmp_path, cache):
    audio = 0.5 * tone()
    audio[100:1000:10] = 1.0
    audio[101:1000:10] = 1.0
    write(tmp_path / "peaks.wav", audio)
    assert scan(tmp_path, cache_dir=cache).files[0].clipped == 0


def test_clipping_counts_across_channels_alone(tmp_path, cache):
    audio = np.zeros((1000, 3), np.float32)
    audio[500] = 1.0  # three channels at once are no run in time
    audio[700:704, 1] = 1.0
    write(tmp_path / "a.wav", audio)
    assert scan(tmp_path, cache_dir=cache).files[0].clipped == pytest.approx(4 / 3000)


def test_long_files_are_read_in_blocks(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("codec.audio.reading.BLOCK", 1000)
    audio = tone()
    audio[12345] = 0.9
    write(tmp_path / "a.wav", audio)
    BAD["nan.wav"][0](tmp_path / "b.wav")
    good, bad = scan(tmp_path, cache_dir=cache).files
    assert good.peak == pytest.approx(0.9, abs=1e-4)
    assert good.rms == pytest.approx(np.sqrt((audio**2).mean()), rel=1e-4)
    assert bad.problem == BAD["nan.wav"][1]


def test_unchanged_files_come_from_the_cache(tmp_path, cache, opened):
    folder = tmp_path / "wavs"
    folder.mkdir()
    for name in ("a.wav", "b.wav", os.fsdecode(b"\xff.wav"), "c\n.wav"):
        write(folder / name, tone())
    first = scan(folder, cache_dir=cache)
    assert len(opened) == 4
    opened.clear()
    (kept,) = cache.iterdir()
    written = kept.stat().st_mtime_ns
    assert scan(folder, cache_dir=cache) == first and opened == []
    assert kept.stat().st_mtime_ns == written and list(cache.iterdir()) == [kept]
    assert scan(folder, check_content=False, cache_dir=cache) == first and opened == []
    write(folder / "b.wav", tone(2.0))
    (folder / "a.wav").unlink()
    write(folder / "d.wav", tone())
    second = scan(folder, cache_dir=cache)
    assert sorted(opened) == ["b.wav", "d.wav"]
    assert {file.path: file.frames for file in second.files}["b.wav"] == 2 * RATE
    assert len(second.files) == 4


def test_a_touched_file_of_the_same_size_is_read_again(tmp_path, cache, opened):
    write(tmp_path / "a.wav", tone())
    scan(tmp_path, cache_dir=cache)
    write(tmp_path / "a.wav", 0 * tone())
    os.utime(tmp_path / "a.wav", ns=(0, 12345))
    assert "silent" in (scan(tmp_path, cache_dir=cache, require_usable=False).files[0].problem or "")


def test_headers_in_the_cache_do_not_count_as_content(tmp_path, cache, opened):
    write(tmp_path / "a.wav", 0 * tone())
    assert scan(tmp_path, check_content=False, cache_dir=cache).usable
    with pytest.raises(DataError, match=r"1 silent \(a\.wav\)"):
        scan(tmp_path, cache_dir=cache)
    assert len(opened) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]\n[2]", '{"version": 2, "files": 1}\n["a.wav"]', "\udcff"])
def test_a_broken_cache_is_ignored_with_a_warning(tmp_path, cache, content, caplog):
    folder = tmp_path / "wavs"
    folder.mkdir()
    write(folder / "a.wav", tone())
    first = scan(folder, cache_dir=cache)
    (kept,) = cache.iterdir()
    kept.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert scan(folder, cache_dir=cache) == first
    assert "ignoring the index cache" in caplog.text
    assert json.loads(kept.read_text().splitlines()[0])["files"] == 1


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "wavs").mkdir()
    write(tmp_path / "wavs" / "a.wav", tone())
    (tmp_path / "file").write_text("not a folder")
    assert len(scan(tmp_path / "wavs", cache_dir=tmp_path / "file").usable) == 1
    assert "the index cache is not kept" in caplog.text


def test_the_cache_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "wavs").mkdir()
    write(tmp_path / "wavs" / "a.wav", tone())
    scan(tmp_path / "wavs")
    assert [path.suffix for path in (tmp_path / "xdg" / "codec").iterdir()] == [".jsonl"]
    assert os.listdir(tmp_path / "wavs") == ["a.wav"]


def test_ctrl_c_keeps_what_was_examined(tmp_path, cache, monkeypatch, opened):
    folder = tmp_path / "wavs"
    folder.mkdir()
    for number in range(20):
        write(folder / f"{number:02d}.wav", tone(0.1))
    judge = codec.data.scan._examine

    def interrupted(root, file, *arguments):
        if file.path == "10.wav":
            raise KeyboardInterrupt
        return judge(root, file, *arguments)

    monkeypatch.setattr(codec.data.scan, "_examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan(folder, cache_dir=cache, workers=1)
    monkeypatch.setattr(codec.data.scan, "_examine", judge)
    opened.clear()
    assert len(scan(folder, cache_dir=cache).usable) == 20
    assert sorted(opened) == [f"{number:02d}.wav" for number in range(10, 20)]


def test_files_without_permission_are_tried_again(tmp_path, cache, monkeypatch):
    write(tmp_path / "a.wav", tone())
    original = codec.data.scan.open_audio

    def refuse(path):
        raise codec.data.scan.AudioError(path, "permission denied") from PermissionError(
            13, "Permission denied"
        )

    monkeypatch.setattr(codec.data.scan, "open_audio", refuse)
    with pytest.raises(DataError, match=r"1 permission denied \(a\.wav\)"):
        scan(tmp_path, cache_dir=cache)
    monkeypatch.setattr(codec.data.scan, "open_audio", original)
    assert len(scan(tmp_path, cache_dir=cache).usable) == 1


def test_an_unreadable_sub_folder_is_reported(tmp_path, cache, monkeypatch):
    write(tmp_path / "a.wav", tone())
    (tmp_path / "private").mkdir()
    original = os.scandir

    def refuse(path):
        if os.path.basename(path) == "private":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    index = scan(tmp_path, cache_dir=cache)
    assert [(file.path, file.problem) for file in index.problems] == [
        ("private", "folder not readable: Permission denied")
    ]
    monkeypatch.setattr(os, "scandir", lambda path: refuse("private"))
    with pytest.raises(DataError, match=r"cannot read the folder .*: Permission denied"):
        scan(tmp_path, cache_dir=cache)


def test_folders_that_cannot_be_used(tmp_path, cache):
    (tmp_path / "speech").mkdir()
    with pytest.raises(DataError, match=r"no such folder: .*speeech; did you mean .*/speech\?"):
        scan(tmp_path / "speeech", cache_dir=cache)
    (tmp_path / "s-0.tar").touch()
    with pytest.raises(
        DataError, match=r"no file is named .*/s-\*\.tar: .* are not expanded, name the folder"
    ):
        scan(tmp_path / "s-*.tar", cache_dir=cache)
    with pytest.raises(DataError, match=r"no such folder: .*/x/y/z$"):
        scan(tmp_path / "x" / "y" / "z", cache_dir=cache)
    with pytest.raises(DataError, match=r"no usable audio file in .*: it is empty; looked in all"):
        scan(tmp_path / "speech", cache_dir=cache)
    for number in range(3):
        (tmp_path / "speech" / f"{number}.srt").write_bytes(b"")
    with pytest.raises(DataError, match=r"it holds only other files \(3 \.srt\);"):
        scan(tmp_path / "speech", cache_dir=cache)
    (tmp_path / "speech" / "train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"1 \.parquet\): .*load_dataset\(\.\.\.\)\.save_to_disk\(FOLDER\)"):
        scan(tmp_path / "speech", cache_dir=cache)
    write(tmp_path / "a.wav", tone())
    with pytest.raises(DataError, match=r"a\.wav is a file: name the folder"):
        scan(tmp_path / "a.wav", cache_dir=cache)


def test_a_folder_of_bad_files_says_what_is_wrong(tmp_path, cache):
    for number in range(5):
        (tmp_path / f"{number}.wav").write_bytes(b"")
    (tmp_path / "page.wav").write_bytes(b"<html>")
    with pytest.raises(DataError) as caught:
        scan(tmp_path, cache_dir=cache)
    assert "5 zero-length file (0.wav, 1.wav, 2.wav, … 2 more); 1 not audio (page.wav)" in str(caught.value)
    assert len(scan(tmp_path, cache_dir=cache, require_usable=False).problems) == 6


def test_a_file_keeps_its_real_path_whatever_links_to_it(tmp_path, cache):
    (tmp_path / "real").mkdir()
    write(tmp_path / "real" / "a.wav", tone())
    (tmp_path / "a link that sorts before").symlink_to(tmp_path / "real")
    (tmp_path / "the link that sorts after").symlink_to(tmp_path / "real")
    assert [file.path for file in scan(tmp_path, cache_dir=cache).files] == ["real/a.wav"]


def test_a_link_out_of_the_folder_is_followed(tmp_path, cache):
    (tmp_path / "wavs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "a.wav", tone())
    (tmp_path / "wavs" / "link").symlink_to(tmp_path / "elsewhere")
    assert [file.path for file in scan(tmp_path / "wavs", cache_dir=cache).files] == ["link/a.wav"]


def test_the_summary_is_short_and_the_report_names_all(zoo, cache):
    index = scan(zoo, cache_dir=cache)
    summary, report = index.summary(), index.report()
    assert len(summary.splitlines()) < 40
    assert f"{len(GOOD)} usable files, 0.4 minutes" in summary
    assert "16000 Hz" in summary and "wav" in summary and "5 truncated" not in summary
    assert f"skipped: {len(BAD)}" in summary and "used although clipped: good/deep/clipped.wav" in summary
    for name in BAD:
        assert f"skipped  bad/deep/{name}: " in report
    assert "clipped  good/deep/clipped.wav: 66.5% of its samples" in report
    summary.encode("utf-8")


def test_audio_that_is_not_read_is_named_with_a_way_to_convert_it(home, capsys):
    for number in range(4):
        write(home / f"{number}.flac", tone(), format="FLAC")
    for number in range(40):
        (home / f"chapter {number}.m4a").write_bytes(FOREIGN["book.m4a"][0])
    (home / "cover.jpg").write_bytes(b"")
    assert doctor.main([str(home)]) == 1
    printed = capsys.readouterr().out
    assert "4 usable files" in printed and "ignored by their names: 1 other file, .jpg (1)" in printed
    assert "40 MPEG-4 (AAC or ALAC), which is not read (chapter 0.m4a, " in printed
    assert "convert it: `ffmpeg -i 'chapter 7.m4a' 'chapter 7.flac'`" in printed


def test_usable_but_odd_files_are_named(home, cache, capfd):
    plain = tone(2.0)
    write(home / "antiphase.wav", np.concatenate([plain, -plain], axis=1))
    (home / "odd.mp3").write_bytes(encoded(20.0, **MP3) + b"APETAGEX".ljust(32, b"\0") + bytes(30000))
    (home / "plain.mp3").write_bytes(mp3_without_xing())
    index = scan(home, cache_dir=cache)
    assert "used although channels cancel: antiphase.wav" in index.summary()
    assert "odd      odd.mp3: libmpg123 says: Warning: Xing stream size off" in index.report()
    assert [file.path for file in index.remarked] == ["antiphase.wav", "odd.mp3"]
    assert scan(home, cache_dir=cache) == index
    assert capfd.readouterr().err == ""


def test_has_audio(tmp_path):
    assert not has_audio(tmp_path / "nowhere") and not has_audio(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "notes.txt").write_text("")
    assert not has_audio(tmp_path)
    (tmp_path / "deep" / "er" / "A.FLAC").write_bytes(b"")
    assert has_audio(tmp_path)


def files(names) -> list[IndexedFile]:
    return [IndexedFile(name, 1, 1) for name in names]


names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=60, unique=True)


@given(names=names, fraction=st.floats(0.01, 0.99))
def test_split_divides_the_files(names, fraction):
    train, valid = split(files(names), fraction)
    assert train and valid
    assert sorted([*train, *valid], key=lambda file: names.index(file.path)) == files(names)
    assert {file.path for file in split(files(reversed(names)), fraction)[1]} == {file.path for file in valid}


@given(names=names, more=names)
def test_split_moves_no_file_when_others_are_added(names, more):
    by_hash = {name for name in names if position(name) < 0.3}
    valid = {file.path for file in split(files(names), 0.3)[1]}
    grown = {file.path for file in split(files(dict.fromkeys([*names, *more])), 0.3)[1]}
    if 0 < len(by_hash) < len(names):  # else one side would have been empty
        assert valid == by_hash == grown & set(names)


@given(names=names, long=st.integers(2, 10**6), fraction=st.floats(0.01, 0.99))
def test_split_holds_out_a_share_of_the_duration(names, long, fraction):
    lengths = [1 + (long - 1) * (number % 7 == 0) for number in range(len(names))]
    listed = [IndexedFile(name, 1, 1, length, 1, 1) for name, length in zip(names, lengths, strict=True)]
    train, valid = split(listed, fraction, crop=float("inf"))  # by whole files
    assert train and valid and {*train} | {*valid} == {*listed} and len(train) + len(valid) == len(listed)
    held, share = (sum(file.seconds for file in part) for part in (valid, listed))
    even = sum(position(file.path) < fraction for file in listed) / len(listed)
    assert held <= max(2 * share * max(even, 1 / len(listed)), share * fraction, min(lengths))


def test_split_holds_no_long_file_out_beside_short_ones():
    short = [IndexedFile(f"{number}.wav", 1, 1, 2 * 16_000, 16_000, 1) for number in range(30)]
    for name in (f"long-{number}.wav" for number in range(100)):
        valid = split([*short, IndexedFile(name, 1, 1, 516 * 16_000, 16_000, 1)], 0.05)[1]
        assert 0.02 < sum(file.seconds for file in valid) / 576 < 0.07


def test_split_keeps_close_to_the_fraction():
    valid = split(files(f"speaker/{number}.wav" for number in range(5000)), 0.05)[1]
    assert 200 < len(valid) < 300


def test_a_single_file_is_used_twice(caplog):
    train, valid = split(files(["a.wav"]), 0.05)
    assert train == valid == tuple(files(["a.wav"]))
    assert "used for training and for validation" in caplog.text


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_impossible_fractions(fraction):
    with pytest.raises(ValueError, match="valid_fraction must lie between 0 and 1"):
        split(files(["a", "b"]), fraction)


def test_progress_is_shown_only_for_slow_scans(tmp_path, cache, capsys):
    write(tmp_path / "a.wav", tone())
    scan(tmp_path, cache_dir=cache)
    assert capsys.readouterr().err == ""


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "wavs").mkdir()
    return tmp_path / "wavs"


def test_the_doctor_tells_good_from_bad_folders(home, capsys):
    assert doctor.main([str(home)]) == 2
    assert "it is empty" in capsys.readouterr().err
    (home / "bad.wav").write_bytes(b"")
    assert doctor.main([str(home)]) == 2
    assert "skipped  bad.wav: zero-length file" in capsys.readouterr().out
    write(home / "good.wav", tone())
    assert doctor.main([str(home)]) == 1
    printed = capsys.readouterr().out
    assert "1 usable file," in printed and "skipped  bad.wav: zero-length file" in printed
    (home / "bad.wav").unlink()
    assert doctor.main([str(home)]) == 0
    assert doctor.main([str(home / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_doctor_reads_headers_alone_when_asked(home):
    write(home / "good.wav", tone())
    write(home / "silent.wav", 0 * tone())
    assert doctor.main([str(home), "--no-content"]) == 0
    assert doctor.main([str(home)]) == 1


def test_the_doctor_prints_json(home, capsys):
    name = os.fsdecode(b"\xff.wav")
    write(home / name, tone())
    (home / "bad.wav").write_bytes(b"")
    assert doctor.main([str(home), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] == 1 and found["hours"] == pytest.approx(1 / 3600)
    assert [(file["path"], file["problem"]) for file in found["files"]] == [
        ("bad.wav", "zero-length file"),
        (name, None),
    ]


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def test_the_doctor_starts_without_torch():
    done = run(
        "import sys, codec.commands.doctor\n"
        "print({'torch', 'lightning', 'hydra', 'matplotlib'} & set(sys.modules))"
    )
    assert done.stdout == "set()\n", done.stderr


def test_the_doctor_prints_on_any_terminal(home):
    write(home / "zażółć.wav", 0 * tone())
    done = run(
        "import sys; from codec.commands.doctor import main; main(sys.argv[1:])",
        str(home),
        PYTHONIOENCODING="ascii",
    )
    assert r"za\u017c\xf3\u0142\u0107.wav: silent" in done.stdout


def test_real_recordings_are_usable(real_speech, cache):
    index = scan(real_speech, cache_dir=cache)
    assert len(index.usable) > 0.9 * len(index.files)
    file = index.usable[0]
    audio, rate = soundfile.read(os.path.join(index.root, file.path), dtype="float32", always_2d=True)
    assert file.info == (len(audio), rate, audio.shape[1])
    assert file.peak == pytest.approx(np.abs(audio).max())
    assert file.rms == pytest.approx(np.sqrt((audio.astype(float) ** 2).mean()))


def test_nothing_is_logged_about_good_folders(home, caplog):
    write(home / "a.wav", tone())
    with caplog.at_level(logging.INFO):
        assert isinstance(scan(home), Index)
    assert caplog.text == ""
