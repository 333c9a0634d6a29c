"""What a kill, a divergence or vanishing data leave behind, and that the next start makes it whole."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from composed import tiny_run
from omegaconf import OmegaConf
from test_training import last, run

from codec.checkpoints import AtomicCheckpoints
from codec.config import ConfigError
from codec.losses.objective import Objective
from codec.metrics import SCORES
from codec.run import train

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
    place = "codec.telemetry.Telemetry.on_train_batch_end"
    killed_at(monkeypatch, place, 5, tmp_path, wavs, *options)
    assert trained(tmp_path) == [1, 2, 3, 4] and not (tmp_path / "run/checkpoints/last.ckpt").exists()
    run(tmp_path, wavs, *options, "resume=auto")
    assert trained(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("steps", "step"), [(8, 4), (4, 4)])
@pytest.mark.parametrize("place", ["codec.telemetry.Samples.on_validation_batch_end",
                                   "codec.checkpoints.LastCheckpoint.on_validation_end"])  # fmt: skip
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

    def broken(self, estimate, target, draws):
        calls.append(1)
        losses = real(self, estimate, target, draws)
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
    real, calls = SCORES["mel"], []

    def mel(estimate, audio, rate):
        calls.append(1)
        return real(estimate, audio, rate) * (float("nan") if len(calls) == 1 else 1)

    monkeypatch.setitem(SCORES, "mel", mel)
    best = tmp_path / "run/checkpoints/best.ckpt"
    run(tmp_path, wavs, "trainer.max_steps=2", "trainer.val_check_interval=2", "data.validation.clips=1")
    assert len(calls) == 1 and not best.exists()
    run(tmp_path, wavs, "trainer.max_steps=4", "trainer.val_check_interval=2", "resume=auto")
    assert torch.load(best, weights_only=True)["global_step"] == 4


def test_a_run_folder_that_moved_keeps_its_best_checkpoint(tmp_path, wavs, monkeypatch):
    options = ["trainer.val_check_interval=2", "data.validation.clips=1"]
    run(tmp_path / "old", wavs, "trainer.max_steps=2", *options)
    real = SCORES["mel"]
    monkeypatch.setitem(SCORES, "mel", lambda *arguments: real(*arguments) + 100)
    shutil.move(tmp_path / "old", tmp_path / "new")
    run(tmp_path / "new", wavs, "trainer.max_steps=4", *options, "resume=auto")
    folder = tmp_path / "new/run/checkpoints"
    assert torch.load(folder / "best.ckpt", weights_only=True)["global_step"] == 2
    assert str(tmp_path / "old").encode() not in (folder / "last.ckpt").read_bytes()
