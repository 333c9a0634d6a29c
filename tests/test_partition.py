"""What a run trains on and holds out: never its own output, never one recording on both sides."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from composed import config
from test_training import run

from codec.audio.writing import write_wav
from codec.commands.doctor import main as doctor
from codec.config import build
from codec.data.module import AudioDataModule
from codec.data.partition import held_out
from codec.data.scan import scan
from codec.system.files import mark_output

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Forty recordings, half of them in a sub-folder."""
    random = np.random.default_rng(3)
    for number in range(40):
        folder = tmp_path / "all" / ("clean" if number % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        noise = 0.1 * random.standard_normal((1, 2000)).astype(np.float32)
        write_wav(folder / f"{number}.wav", noise, 16_000)
    return tmp_path / "all"


def data(*roots: Path) -> AudioDataModule:
    listed = ",".join(map(str, roots))
    node = config("data=folder", f"data.root=[{listed}]", "data.segment_seconds=0.1", "sample_rate=16000")
    made = build(node["data"] | {"validation": {"_target_": "codec.data.module.Validation", "fraction": 0.2}})
    made.prepare_data()
    made.setup()
    return made


def contents(files) -> set[bytes]:
    return {Path(file.path).read_bytes() for file in files}


def test_overlapping_roots_and_copies_train_on_nothing_that_is_held_out(corpus, tmp_path, caplog):
    caplog.set_level("INFO")
    copies = shutil.copytree(corpus, tmp_path / "copies/with/other/names")
    for roots in ([corpus, corpus / "clean"], [corpus, copies]):
        made = data(*roots)
        trained = contents(file for root in made.trained for file in root)
        assert trained and not trained & contents(made.valid)
        assert len(trained | contents(made.valid)) == 40
        assert len(contents(made.valid)) == len(made.valid)
        if roots[1] != copies:  # of each recording in both roots, one
            share = 1 - len(made.valid) / 40
            assert (
                f"trained on: {len(trained)} files, {len(trained) / 480:.1f} minutes ({share:.1%})"
                in caplog.text
            )


def test_one_root_is_divided_as_ever(corpus, caplog):
    from codec.data.split import split

    caplog.set_level("INFO")
    made = data(corpus)
    held = len(made.valid)
    assert f"held out for validation: {held} files, {held / 480:.1f} minutes ({held / 40:.1%})" in caplog.text
    assert f"trained on: {40 - held} files, " in caplog.text
    train, valid = split(made.indexes[0].usable, 0.2)
    assert [file.path for file in made.trained[0]] == [str(corpus / file.path) for file in train]
    assert made.valid_files == [str(corpus / file.path) for file in valid]


def test_a_run_s_own_output_is_no_data(corpus, tmp_path, caplog):
    options = ["trainer.val_check_interval=2", "evaluate=2", f"run_dir={corpus}/runs/mine"]
    (corpus / "decoded").mkdir()
    mark_output(corpus / "decoded")
    write_wav(corpus / "decoded/speech.wav", np.full((1, 4000), 0.1, np.float32), 16_000)
    (corpus / "run").symlink_to(corpus / "runs/mine")
    for steps in (2, 4):
        run_in(corpus, tmp_path, *options, f"trainer.max_steps={steps}", "resume=auto")
        assert len((corpus / "runs/mine/files.csv").read_text().splitlines()) == 1 + 40
    assert "the recordings have changed" not in caplog.text
    assert list((corpus / "runs/mine/samples").glob("*.wav"))
    assert "written by a codec command" in scan(corpus, cache_dir=tmp_path).summary()
    for inside in ("samples", "evaluation"):  # named, it is used; from outside of a run folder it is not
        assert scan(corpus / "runs/mine" / inside, cache_dir=tmp_path).usable
        moved = shutil.copytree(corpus / "runs/mine" / inside, tmp_path / "moved" / inside)
        assert moved.is_dir()
    assert not scan(tmp_path / "moved", cache_dir=tmp_path, require_usable=False).usable


def run_in(folder: Path, cache: Path, *options: str) -> None:
    run(folder, folder, *options, f"data.index.cache_dir={cache}")


def test_a_resume_with_other_recordings_names_them_and_holds_out_the_same(corpus, tmp_path, caplog):
    run(tmp_path, corpus, "trainer.max_steps=2", "data.validation.fraction=0.2")
    with (tmp_path / "run/files.csv").open() as file:
        before = {row["identity"]: row["part"] for row in csv.DictReader(file)}
    (corpus / "0.wav").unlink()
    (corpus / "2.wav").rename(corpus / "elsewhere.wav")
    write_wav(corpus / "new.wav", np.linspace(-0.5, 0.5, 3000, dtype=np.float32)[None], 16_000)
    run(tmp_path, corpus, "trainer.max_steps=4", "data.validation.fraction=0.4", "resume=auto")
    assert "the recordings have changed: 1 gone (0.wav), 1 new (new.wav)" in caplog.text
    with (tmp_path / "run/files.csv").open() as file:
        after = {row["identity"]: row["part"] for row in csv.DictReader(file)}
    # The recording that is gone keeps its row, and its part if it comes back.
    assert len(after) == 41 and before.items() <= after.items()


def test_a_resume_of_a_run_that_held_other_recordings_out_keeps_to_its_record(corpus, tmp_path):
    long = np.random.default_rng(5).standard_normal((1, 160_000), np.float32) / 20
    write_wav(corpus / "long.wav", long, 16_000)
    run(tmp_path, corpus, "trainer.max_steps=1")
    record = tmp_path / "run/files.csv"
    with record.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert 0 < sum(float(row["seconds"]) for row in rows if row["part"] == "held out") < 2
    for row in rows:  # as a version that counted files may have done
        row["part"] = "held out" if row["file"] == "long.wav" else "trained"
    with record.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    run(tmp_path, corpus, "trainer.max_steps=2", "resume=auto")
    with record.open(newline="") as file:
        after = {row["file"] for row in csv.DictReader(file) if row["part"] == "held out"}
    assert after == {"long.wav"}


def test_a_root_of_one_recording_is_trained_on_beside_others(corpus, tmp_path):
    book = tmp_path / "book"
    book.mkdir()
    write_wav(book / "book.wav", np.linspace(-0.4, 0.4, 3000, dtype=np.float32)[None], 16_000)
    made = data(corpus, book)
    assert len(made.trained[0]) + len(made.valid) == 40 and len(made.trained[1]) == 1
    assert not contents(made.trained[1]) & contents(made.valid)


def test_recordings_that_any_model_was_trained_on_are_never_scored(corpus, tmp_path):
    for name, fraction in (("a", 0.2), ("b", 0.5)):
        run(tmp_path / name, corpus, "trainer.max_steps=1", f"data.validation.fraction={fraction}")
    index = scan(corpus, cache_dir=tmp_path / "cache")
    models = [str(tmp_path / name / "run") for name in "ab"]
    one, other = ({file.path for file in held_out(index, 0.2, order)} for order in (models, models[::-1]))
    trained = set()
    for model in models:
        with (Path(model) / "files.csv").open() as file:
            trained |= {row["file"] for row in csv.DictReader(file) if row["part"] == "trained"}
    assert one == other and one and not {Path(path).name for path in one} & trained


def test_recordings_beside_an_output_stay_data(corpus, tmp_path):
    mark_output(corpus)
    assert len(scan(corpus.parent, cache_dir=tmp_path / "cache").usable) == 40
    assert doctor([str(corpus.parent)]) == 0
    (corpus / "decoded").mkdir()
    mark_output(corpus / "decoded")
    assert doctor([str(corpus)]) == 0  # a skipped output is no fault of the corpus


@pytest.mark.parametrize("named", ["run", "run/model", "run/checkpoints/last.ckpt"])
def test_evaluation_scores_what_the_run_held_out_wherever_it_lies(corpus, tmp_path, named):
    run(tmp_path, corpus, "trainer.max_steps=1", "data.validation.fraction=0.2")
    with (tmp_path / "run/files.csv").open() as file:
        out = {row["file"] for row in csv.DictReader(file) if row["part"] == "held out"}
    index = scan(corpus / "clean", cache_dir=tmp_path / "cache")
    found = {file.path for file in held_out(index, 0.2, [str(tmp_path / named)])}
    assert found == out & {file.path for file in index.usable} and found
    assert {file.path for file in held_out(index, 0.2, [])} != found
