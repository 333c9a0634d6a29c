"""What a kill, a divergence or vanishing data leave behind, and that the next start makes it whole."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from composed import tiny_run
from omegaconf import OmegaConf
from test_training import last, run

from codec.config import ConfigError
from codec.data.index import DataError
from codec.losses.objective import Objective
from codec.metrics.signal import MEL
from codec.training.checkpoints import AtomicCheckpoints
from codec.training.module import CodecTraining
from codec.training.run import train

pytestmark = pytest.mark.filterwarnings("default")


class Killed(BaseException):
    """Stands for `kill -9`: nothing of ours catches it."""


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "run/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def scored(folder: Path) -> list[int]:
    return [int(row["step"]) for row in rows(folder) if row.get("valid/mel")]


def trained(folder: Path) -> list[int]:
    return [int(row["step"]) for row in rows(folder) if row.get("train/mel")]


def killed_at(monkeypatch, place: str, step: int, folder: Path, wavs: Path, *options: str) -> None:
    """Train until `place` is called at a step, and no further."""
    holder, _, name = place.rpartition(".")
    from codec.config import locate

    owner = locate(holder)
    real = getattr(owner, name)

    def kill(self, trainer, *arguments, **keywords):
        if trainer.global_step == step:
            raise Killed
        return real(self, trainer, *arguments, **keywords)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, kill)
        train(OmegaConf.create(tiny_run(folder, wavs, *options)))


def test_a_kill_before_the_first_checkpoint_leaves_no_step_twice(tmp_path, wavs, monkeypatch):
    options = ["trainer.max_steps=8", "trainer.log_every_n_steps=1", "checkpoint.save_every=100"]
    place = "codec.training.telemetry.Telemetry.on_train_batch_end"
    killed_at(monkeypatch, place, 5, tmp_path, wavs, *options)
    assert trained(tmp_path) == [1, 2, 3, 4] and not (tmp_path / "run/checkpoints/last.ckpt").exists()
    run(tmp_path, wavs, *options, "resume=auto")
    assert trained(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("steps", "step", "place"), [
    (8, 4, "codec.training.samples.Samples.on_validation_batch_end"),
    (4, 4, "codec.training.checkpoints.LastCheckpoint.on_validation_end"),
])  # fmt: skip
def test_a_validation_that_was_killed_is_made_up(tmp_path, wavs, monkeypatch, place, steps, step):
    options = [f"trainer.max_steps={steps}", "trainer.val_check_interval=2"]
    killed_at(monkeypatch, place, step, tmp_path / "parts", wavs, *options)
    parts = run(tmp_path / "parts", wavs, *options, "resume=auto")
    whole = run(tmp_path / "whole", wavs, *options)
    assert scored(tmp_path / "parts") == scored(tmp_path / "whole") == list(range(2, steps + 1, 2))
    scores = [[row["valid/mel"] for row in rows(tmp_path / name)] for name in ("parts", "whole")]
    assert scores[0] == scores[1]
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name])


def diverging(monkeypatch, first: int) -> None:
    """From a step on nothing is finite any more, and the weights are ruined."""
    real, calls = Objective.reconstruction_losses, []

    def broken(self, outputs, parts):
        calls.append(1)
        losses = real(self, outputs, parts)
        return losses if len(calls) < first else {k: loss * float("nan") for k, loss in losses.items()}

    monkeypatch.setattr(Objective, "reconstruction_losses", broken)


def test_a_divergence_replaces_no_healthy_checkpoint(tmp_path, wavs, monkeypatch):
    options = ["trainer.max_steps=20", "training.max_skipped=8", "checkpoint.save_every=2"]
    diverging(monkeypatch, 4)
    with pytest.raises(ConfigError, match=r"8 steps in a row were not finite.*last.ckpt is of step 2"):
        run(tmp_path, wavs, *options, "trainer.val_check_interval=5", "checkpoint.keep_every=2")
    assert last(tmp_path)["global_step"] == 2
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {
        "last.ckpt",
        "step-0000002.ckpt",
    }


def test_after_a_divergence_the_best_checkpoint_is_named_too(tmp_path, wavs, monkeypatch):
    options = ["trainer.max_steps=20", "training.max_skipped=2", "trainer.val_check_interval=2"]
    diverging(monkeypatch, 4)
    with pytest.raises(ConfigError, match=r"last.ckpt is of step 3.*, or resume=\S+/best.ckpt from step 2$"):
        run(tmp_path, wavs, *options, "checkpoint.save_every=1", "data.validation.clips=1")


def test_steps_that_were_not_finite_at_the_end_are_not_saved(tmp_path, wavs, monkeypatch):
    diverging(monkeypatch, 4)
    assert run(tmp_path, wavs, "trainer.max_steps=5", "checkpoint.save_every=1")["global_step"] == 3


def test_a_checkpoint_that_fell_due_in_a_skipped_step_follows_in_the_next(tmp_path, wavs, monkeypatch):
    saved, real = [], AtomicCheckpoints.save_checkpoint

    def save(self, checkpoint, path, storage_options=None):
        saved.append(checkpoint["global_step"])
        real(self, checkpoint, path)

    losses, calls = Objective.reconstruction_losses, []

    def broken(self, *arguments):
        calls.append(1)
        found = losses(self, *arguments)
        return {k: loss * float("nan") for k, loss in found.items()} if len(calls) == 4 else found

    monkeypatch.setattr(Objective, "reconstruction_losses", broken)
    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", save)
    run(tmp_path, wavs, "trainer.max_steps=7", "checkpoint.save_every=2")
    assert saved == [2, 5, 6, 7]


def test_the_best_checkpoint_has_a_finite_score(tmp_path, wavs, monkeypatch):
    real, calls = MEL.score, []

    def mel(estimate, audio, rate):
        calls.append(1)
        return real(estimate, audio, rate) * (float("nan") if len(calls) == 1 else 1)

    monkeypatch.setitem(vars(MEL), "score", mel)
    best = tmp_path / "run/checkpoints/best.ckpt"
    run(tmp_path, wavs, "trainer.max_steps=2", "trainer.val_check_interval=2", "data.validation.clips=1")
    assert len(calls) == 1 and not best.exists()
    run(tmp_path, wavs, "trainer.max_steps=4", "trainer.val_check_interval=2", "resume=auto")
    assert torch.load(best, weights_only=True)["global_step"] == 4


def test_a_run_folder_that_moved_keeps_its_best_checkpoint(tmp_path, wavs, monkeypatch):
    options = ["trainer.val_check_interval=2", "data.validation.clips=1"]
    run(tmp_path / "old", wavs, "trainer.max_steps=2", *options)
    real = MEL.score
    monkeypatch.setitem(vars(MEL), "score", lambda *arguments: real(*arguments) + 100)
    shutil.move(tmp_path / "old", tmp_path / "new")
    run(tmp_path / "new", wavs, "trainer.max_steps=4", *options, "resume=auto")
    folder = tmp_path / "new/run/checkpoints"
    assert torch.load(folder / "best.ckpt", weights_only=True)["global_step"] == 2
    assert str(tmp_path / "old").encode() not in (folder / "last.ckpt").read_bytes()


def test_data_that_were_away_for_a_moment_are_waited_for(tmp_path, wavs, monkeypatch, caplog):
    copy = shutil.copytree(wavs, tmp_path / "copy")
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            (tmp_path / "away").rename(copy)

    real = CodecTraining.on_train_start

    def start(self: CodecTraining) -> None:
        real(self)
        copy.rename(tmp_path / "away")

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(CodecTraining, "on_train_start", start)
    parts = run(tmp_path / "parts", copy, "trainer.max_steps=3")
    assert pauses == [1, 2, 4] and "trying again in 1 s" in caplog.text
    assert "drawn from another file" not in caplog.text
    monkeypatch.undo()
    whole = run(tmp_path / "whole", copy, "trainer.max_steps=3")
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name])


def test_what_was_trained_before_the_data_vanished_is_saved(tmp_path, wavs, monkeypatch):
    copy = shutil.copytree(wavs, tmp_path / "copy")
    real = CodecTraining.on_train_batch_end

    def vanish(self, *arguments):
        real(self, *arguments)
        if self.global_step == 3:
            copy.rename(tmp_path / "away")

    options = ["trainer.max_steps=5", "checkpoint.save_every=100"]
    with monkeypatch.context() as patch:
        patch.setattr("codec.data.crops.PAUSES", ())
        patch.setattr(CodecTraining, "on_train_batch_end", vanish)
        with pytest.raises(
            DataError, match=r"not readable any more: .*; last\.ckpt is of step 3: resume=auto"
        ):
            run(tmp_path / "parts", copy, *options)
    (tmp_path / "away").rename(copy)
    parts = run(tmp_path / "parts", copy, *options, "resume=auto")
    whole = run(tmp_path / "whole", copy, *options)
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name])


def test_a_finished_training_without_a_file_to_evaluate_says_so(tmp_path, wavs, monkeypatch):
    copy = shutil.copytree(wavs, tmp_path / "copy")
    options = ["trainer.max_steps=2", "evaluate=2"]
    with monkeypatch.context() as patch:
        patch.setattr(CodecTraining, "on_train_end", lambda self: copy.rename(tmp_path / "away"))
        with pytest.raises(DataError, match=r"none of 1 files could be .*\n.* /?.*/model saved"):
            run(tmp_path, copy, *options)
    (tmp_path / "away").rename(copy)
    run(tmp_path, copy, *options, "resume=auto")
    assert (tmp_path / "run/evaluation/summary.json").is_file()


CTRL_C = """
import builtins, os, signal, sys
import codec.commands
real = builtins.__import__
def interrupted(name, *arguments):
    if name == {module!r}:
        builtins.__import__ = real
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *arguments)
builtins.__import__ = interrupted
from codec.commands import main as cli
cli.{command}()
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        *(("train", "hydra"), ("train", "lightning"), ("train", "soundfile")),
        *(("doctor", "numpy"), ("doctor", "argparse")),
    ],
)
def test_ctrl_c_while_a_command_starts_is_an_interruption(tmp_path, wavs, command, module):
    arguments = [str(wavs)] if command == "doctor" else [f"data.root={wavs}", f"run_dir={tmp_path}/run"]
    code = CTRL_C.format(command=command, module=module)
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert process.stderr.strip() == "interrupted"
    # 130 is a shell's status of -2, which Python itself ends with before a command begins.
    assert process.returncode == (130 if module != "argparse" else -signal.SIGINT)


NAMELESS = """
import pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
from codec.commands import main as cli
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs another operating system: Windows has no pwd")
@pytest.mark.parametrize("command", ["train", "doctor"])
def test_a_user_without_name_home_and_utf_8_can_work(tmp_path, wavs, command):
    folder = shutil.copytree(wavs, tmp_path / "tön")
    (folder / "0.wav").rename(folder / "größe.wav")
    (folder / "kaputt-é.wav").write_bytes(b"nothing")
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")}
    environment = kept | {"LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "ignore"}
    options = ["experiment=tiny", "data=folder", f"data.root={folder}", "trainer.max_steps=1"]
    options += ["evaluate=0", "logger=none", "name=ü", "trainer.accelerator=cpu", "data.batch_size=2"]
    arguments = [str(folder)] if command == "doctor" else options
    process = subprocess.run(
        [sys.executable, "-c", NAMELESS + f"cli.{command}()", *arguments],
        capture_output=True, text=True, timeout=200, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == (1 if command == "doctor" else 0), process.stderr
    assert "Traceback" not in process.stderr and r"t\xf6n" in process.stdout
    assert not (tmp_path / "~").exists()
