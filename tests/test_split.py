"""Held-out parts: within a file where whole files cannot give the share, else the same files as ever."""

import csv
import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bad_audio import RATE, tone, write

from codec.audio.reading import read_audio, read_blocks
from codec.config import ConfigError
from codec.data.augmentation import Augmentation
from codec.data.index import DataError, Excerpt, Index, IndexedFile
from codec.data.module import AudioDataModule, Validation
from codec.data.partition import held_out, read_record, warn_of_changes, write_record
from codec.data.scan import scan
from codec.data.split import GAP, split
from codec.evaluation.reading import read_clip, shown


def seconds(name: str, length: float, rate: int = 16_000) -> IndexedFile:
    return IndexedFile(name, 1, 1, round(length * rate), rate, 1)


def make(folder: Path, known=None, share: float = 0.05, **options) -> AudioDataModule:
    data = AudioDataModule(
        str(folder),
        options.pop("sample_rate", RATE),
        segment_seconds=options.pop("segment", 0.5),
        num_workers=0,
        validation=Validation(share, clips=4),
        index=partial(scan, cache_dir=folder.parent / "cache", progress=False),
        **options,
    )
    data.known = known or {}
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def book(tmp_path) -> Path:
    """A folder of one recording of 40 s: zeros, from 37.75 s on ones."""
    (tmp_path / "book").mkdir()
    audio = np.zeros((40 * RATE, 1), np.float32)
    audio[round(37.75 * RATE) :] = 1.0
    write(tmp_path / "book/book.wav", audio, subtype="FLOAT")
    return tmp_path / "book"


def test_partitions_of_similar_files_are_those_of_the_first_version():
    """The values are those of the version before files were cut."""
    listed = [IndexedFile(f"speaker/{n}.wav", 1, 1, 16000 + n, 16000, 1) for n in range(5000)]
    names = [file.path for file in split(listed, 0.05)[1]]
    assert len(names) == 255
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "ceca6af46db7276b"
    few = [IndexedFile(f"{n}.wav", 1, 1, 16000 * (1 + n % 5), 16000, 1) for n in range(7)]
    assert split(few, 0.05)[1] == (few[0],)


def test_crops_and_clips_of_similar_files_are_those_of_the_first_version(tmp_path):
    """The values are those of the version before files were cut."""
    (tmp_path / "wavs").mkdir()
    for number in range(12):
        audio = 0.05 * (number + 1) + 1e-5 * np.arange(4000 + 500 * number)
        write(tmp_path / "wavs" / f"{number:02d}.wav", audio[:, None], subtype="FLOAT")
    index = partial(scan, cache_dir=tmp_path / "cache", progress=False)
    data = AudioDataModule(str(tmp_path / "wavs"), RATE, segment_seconds=0.1, num_workers=0, index=index)
    data.setup()
    assert hashlib.sha256(data.crops(0, 64).numpy().tobytes()).hexdigest()[:16] == "896275d84d3397ab"
    (batch,) = data.val_dataloader()
    assert hashlib.sha256(batch.audio.numpy().tobytes()).hexdigest()[:16] == "5cf4b06f1f7cfa4b"
    data.train_crops.augmentation = Augmentation(speed=(0.9, 1.1))
    places = [data.train_crops._choose(np.random.default_rng(number)) for number in range(4)]
    assert [(Path(file.path).name, start, str(speed)) for file, start, speed in places] == [
        ("07.wav", 1927, "83/87"),
        ("06.wav", 168, "121/111"),
        ("03.wav", 1709, "119/124"),
        ("01.wav", 571, "18/19"),
    ]


@pytest.mark.parametrize("length", [20, 600, 36_000])
def test_the_end_of_a_single_file_is_held_out(length):
    (train,), (valid,) = split([seconds("a.wav", length)], 0.05)
    assert valid.seconds == max(1.0, 0.05 * length) and valid.range[1] == length * 16_000
    assert train.range == (0, valid.range[0] - GAP * 16_000)


def test_a_file_that_is_too_short_to_be_cut_is_used_twice(caplog):
    file = seconds("a.wav", 2.4)
    assert split([file], 0.05) == ((file,), (file,))
    assert "used for training and for validation" in caplog.text
    assert split([seconds("a.wav", 4)], 0.05, crop=3.0)[1][0].span is None
    assert split([seconds("a.wav", 6)], 0.05, crop=3.0)[1][0].span


def test_a_dominating_file_gives_what_short_ones_cannot():
    short = [seconds(f"{number}.wav", 2) for number in range(3)]
    long = seconds("long.wav", 516)
    train, valid = split([*short, long], 0.05)
    (part,) = [file for file in valid if file.span]
    whole = [file for file in valid if not file.span]
    assert sum(file.seconds for file in valid) == pytest.approx(0.05 * 522)
    assert part.path == "long.wav" and {file.path for file in whole} < {file.path for file in short}
    assert {file.path for file in train} == {file.path for file in short} - {file.path for file in whole} | {
        "long.wav"
    }
    assert all(file.range[1] < part.range[0] for file in train if file.span)
    # Half of the duration is no reason: a whole file is better held out.
    assert not any(
        file.span for part in split([seconds("a.wav", 60), seconds("b.wav", 50)], 0.05) for file in part
    )


def test_listed_parts_of_a_file_stay_together_unless_they_are_most_of_all():
    talk, book = seconds("talk.wav", 100), seconds("book.wav", 1000)
    parts = [replace(talk, span=(16_000 * n, 16_000 * (n + 10))) for n in range(0, 100, 10)]
    others = [seconds(f"{number}.wav", 100) for number in range(10)]
    for share in (0.05, 0.3, 0.9):
        train, valid = split([*parts, *others], share)
        assert train and valid and not {file.path for file in train} & {file.path for file in valid}
    rows = [replace(book, span=(16_000 * n, 16_000 * (n + 10))) for n in range(0, 1000, 10)]
    for listed in (rows, [*rows, *(seconds(f"{number}.wav", 10) for number in range(5))]):
        train, valid = split(listed, 0.05)
        assert 20 <= sum(file.seconds for file in valid) <= 120
        assert {*train} | {*valid} == {*listed} and not {*train} & {*valid}


@pytest.mark.parametrize("rate", [RATE, 24_000, 8_000, 1_000])
def test_no_crop_has_a_trace_of_what_is_held_out(book, rate):
    """Zeros stay zeros through the resampling filter as long as it reads no one; 38 s is held out."""
    augmentation = Augmentation(silence_db=None, speed=None if rate == 8_000 else (0.8, 1.3))
    data = make(book, sample_rate=rate, augmentation=augmentation)
    crops = data.train_crops
    assert data.valid[0].range == (38 * RATE, 40 * RATE) and data.trained[0][0].range == (0, 37.5 * RATE)

    class Last:
        """Draws the last place of all."""

        def random(self):
            return 1.0

        def uniform(self, low, high):
            return high

        def integers(self, low, high, endpoint):
            return high

    _, start, speed = crops._choose(Last())
    assert start + rate // 2 == pytest.approx(37.5 * rate / float(speed), abs=1)
    assert float(data.crops(0, 40).abs().max()) == 0
    (batch,) = data.val_dataloader()
    assert len(batch.audio) == 4 and float((batch.audio - 1).abs().max()) < 0.01
    read = read_clip(data.valid[0].located(), rate, 1, 20.0)
    assert read.shape == (1, 2 * rate) and np.abs(read[:, :rate] - 1).max() < 0.01  # rings at the end


def test_the_cut_is_logged_and_recorded_and_a_resume_keeps_it(book, tmp_path, caplog):
    caplog.set_level("INFO")
    data = make(book)
    assert f"{book}/book.wav is cut: its part from 38.0 s is held out" in caplog.text
    assert "held out for validation: 1 file, 0.0 minutes (5.1%), trained on: 1 file, 0.6 min" in caplog.text
    write_record(tmp_path, data.trained, data.valid, {})
    with (tmp_path / "files.csv").open() as file:
        rows = [(row["part"], row["identity"][16:], row["seconds"]) for row in csv.DictReader(file)]
    assert rows == [("trained", ":0-600000", "37.500"), ("held out", ":608000-640000", "2.000")]
    write(book / "new.wav", tone(3.0))
    write(book / "other.wav", tone(2.0))
    record = read_record(tmp_path)
    again = make(book, {name: row["part"] for name, row in record.items()}, share=0.3)
    assert again.trained[0][0] == data.trained[0][0]
    assert [file for file in again.valid if file.span] == data.valid
    assert {file.path for file in (*again.trained[0], *again.valid)} == {str(path) for path in book.iterdir()}
    caplog.clear()
    warn_of_changes(record, [*again.trained[0], *again.valid])
    assert "the recordings have changed: 2 new (" in caplog.text and "gone" not in caplog.text


def resumed(data: AudioDataModule, folder: Path) -> dict[str, str]:
    write_record(folder, data.trained, data.valid, {})
    return {name: row["part"] for name, row in read_record(folder).items()}


@pytest.mark.parametrize(
    "rows",
    [
        [f"{start},4" for start in range(0, 37, 2)],
        ["0,30", "29,2", "10,3", "1,3"],  # the first is cut: the second overlaps its held-out end
    ],
)
def test_a_resume_with_overlapping_rows_trains_on_the_same(book, tmp_path, rows, caplog):
    caplog.set_level("INFO")
    write(book / "book.wav", 0.1 * np.random.default_rng(1).standard_normal((40 * RATE, 1)))
    text = "".join(f"\nbook/book.wav,{row}" for row in rows)
    (tmp_path / "rows.csv").write_text(f"path,start,duration{text}")
    data = make(tmp_path / "rows.csv")
    assert "parts of files are not trained on: they overlap held-out parts" in caplog.text
    again = make(tmp_path / "rows.csv", resumed(data, tmp_path))
    assert (again.trained, again.valid) == (data.trained, data.valid)
    assert again.crops(0, 20).equal(data.crops(0, 20))


def test_rows_that_all_overlap_are_refused(book, tmp_path):
    write(book / "book.wav", tone(40.0))
    (tmp_path / "rows.csv").write_text("path,start,duration\nbook/book.wav,0,10\nbook/book.wav,5,10")
    with pytest.raises(DataError, match=r"training overlap held-out parts: list parts that do not overlap"):
        make(tmp_path / "rows.csv")


def test_a_resume_with_longer_crops_skips_parts_that_are_too_short(book, tmp_path, caplog):
    write(book / "book.wav", tone(40.0))
    known = resumed(make(book), tmp_path)
    with pytest.raises(DataError, match=r"no part for training is as long as a crop: .* is 39\.000 s"):
        make(book, known, segment=39.0)
    write(book / "new.wav", tone(39.5))
    again = make(book, known, segment=39.0)
    assert [Path(file.path).name for file in again.trained[0]] == ["new.wav"]
    assert "1 parts of files are not trained on: shorter than a crop" in caplog.text
    assert again.crops(0, 4).shape[2] == 39 * RATE


def test_a_file_in_both_parts_counts_as_trained(book, tmp_path):
    write(book / "book.wav", tone(1.2))
    known = resumed(make(book), tmp_path)
    assert list(known.values()) == ["trained"]
    assert make(book, known).trained == [make(book, known).valid]
    with pytest.raises(ConfigError, match="trained on all recordings"):
        held_out(scan(book, cache_dir=tmp_path / "cache"), 0.05, [str(tmp_path)])


def record(folder: Path, trained: list[IndexedFile], valid: list[IndexedFile]) -> str:
    folder.mkdir()
    write_record(folder, [trained], valid, {})
    return str(folder)


def test_evaluation_scores_the_held_out_part_of_every_run(tmp_path):
    file = replace(seconds("/a.wav", 100), rms=0.1)
    index = Index("/", (replace(file, path="a.wav"), replace(seconds("b.wav", 3), rms=0.2)))

    def part(first: float, end: float) -> IndexedFile:
        return replace(file, span=(round(first * 16_000), round(end * 16_000)))

    first = record(tmp_path / "1", [part(0, 94.5)], [part(95, 100)])
    second = record(tmp_path / "2", [part(0, 89.5)], [part(90, 100)])
    third = record(tmp_path / "3", [file], [])
    for models, expected in (([first], [(95, 100)]), ([second, first], [(95, 100)]), ([second], [(90, 100)])):
        found = [one.range for one in held_out(index, 0.05, models) if one.path == "a.wav"]
        assert found == [(a * 16_000, b * 16_000) for a, b in expected]
    fourth = record(tmp_path / "4", [replace(seconds("/b.wav", 3), rms=0.2)], [])
    with pytest.raises(ConfigError, match="trained on all recordings"):
        held_out(index, 0.05, [first, third, fourth])


def test_roots_that_cut_one_recording_elsewhere_train_on_nothing_held_out(book, tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.wav", tone(3.0, RATE) * (0.5 + 0.1 * number))
    data = AudioDataModule(
        [str(book), str(tmp_path)], RATE, num_workers=0, index=partial(scan, cache_dir=tmp_path)
    )
    data.setup()
    trained = [file.range for root in data.trained for file in root if file.span]
    held = [file.range for file in data.valid if file.span]
    assert trained and held and max(end for _, end in trained) < min(first for first, _ in held)
    whole = {file.path for root in data.trained for file in root if not file.span}
    assert not whole & {file.path for file in data.valid}


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_blocks_of_a_part_are_those_of_the_file(tmp_path, name):
    random = np.random.default_rng(3)
    noise = 0.1 * random.standard_normal((4 * RATE, 2))
    soundfile.write(tmp_path / name, noise, RATE)
    whole, _ = read_audio(tmp_path / name)
    for span in ((0, RATE), (20_001, 50_000), (RATE, whole.shape[1])):
        part = np.concatenate(list(read_blocks(tmp_path / name, span=span)), axis=1)
        np.testing.assert_allclose(part, whole[:, span[0] : span[1]], atol=2e-4)


def test_parts_of_one_file_have_names_of_their_own(tmp_path):
    path = str(tmp_path / "a.wav")
    parts = [Excerpt(path, (0, 8000)), Excerpt(path, (8000, 16000)), path]
    assert [shown(part, tmp_path) for part in parts] == ["a.wav:0-8000", "a.wav:8000-16000", "a.wav"]
