import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from composed import config, tiny_run
from lightning import seed_everything
from omegaconf import OmegaConf
from safetensors import SafetensorError

import codec
from codec.config import ConfigError, build
from codec.data.index import DataError
from codec.evaluation.records import Summary
from codec.losses.objective import Objective
from codec.quantizers.residual import Residual
from codec.training.build import build_parts
from codec.training.checkpoints import AtomicCheckpoints
from codec.training.module import CodecTraining
from codec.training.run import train

pytestmark = pytest.mark.filterwarnings("default")


def run(folder: Path, wavs: Path, *overrides: str) -> dict:
    """Train and return the last checkpoint."""
    assert train(OmegaConf.create(tiny_run(folder, wavs, *overrides))) == 0
    return last(folder)


def last(folder: Path) -> dict:
    return torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)


def assert_same(one: dict, other: dict) -> None:
    assert one["global_step"] == other["global_step"]
    assert one["AudioDataModule"] == other["AudioDataModule"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    for mine, theirs in zip(one["optimizer_states"], other["optimizer_states"], strict=True):
        for key, state in mine["state"].items():
            assert all(torch.equal(state[name], theirs["state"][key][name]) for name in state)


def test_one_batch_is_one_step_with_both_players_training(tmp_path, wavs):
    checkpoint = run(tmp_path, wavs, "trainer.max_steps=4")
    assert checkpoint["global_step"] == 4
    assert checkpoint["AudioDataModule"] == {"seen": 16}
    generator, discriminator = checkpoint["optimizer_states"]
    assert {float(state["step"]) for state in generator["state"].values()} == {4}
    assert {float(state["step"]) for state in discriminator["state"].values()} == {2}
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert rows[0]["train/discriminator"] == "" and float(rows[1]["train/discriminator"]) > 0
    assert float(rows[1]["codebook/usage_1"]) > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(tmp_path, wavs, workers):
    options = [f"data.num_workers={workers}", "quantizer.dropout=1.0"]
    whole = run(tmp_path / "whole", wavs, "trainer.max_steps=8", *options)
    run(tmp_path / "parts", wavs, "trainer.max_steps=4", *options)
    parts = run(tmp_path / "parts", wavs, "trainer.max_steps=8", "resume=auto", *options)
    assert_same(whole, parts)
    with (tmp_path / "parts/run/metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6", "8"]


def discriminator_steps(checkpoint: dict) -> int:
    (steps,) = {int(state["step"]) for state in checkpoint["optimizer_states"][1]["state"].values()}
    return steps


def test_a_discriminator_that_skips_steps_skips_the_same_ones_after_a_resume(tmp_path, wavs):
    options = ["training.adversarial_from=0", "optimizer.discriminator_update_probability=0.5"]
    whole = run(tmp_path / "whole", wavs, "trainer.max_steps=12", *options)
    first = run(tmp_path / "parts", wavs, "trainer.max_steps=6", *options)
    parts = run(tmp_path / "parts", wavs, "trainer.max_steps=12", "resume=auto", *options)
    assert_same(whole, parts)
    assert 0 < discriminator_steps(first) < discriminator_steps(whole) < 11


def test_the_discriminator_learns_in_its_share_of_the_steps():
    node = config("experiment=encodec_24khz")["optimizer"]
    learns = [build(node).updates_discriminator(seed) for seed in range(3000)]
    assert abs(sum(learns) / 3000 - 2 / 3) < 0.03
    assert all(build(config()["optimizer"]).updates_discriminator(seed) for seed in range(100))


def test_validation_is_logged_at_the_step_that_its_samples_are_named_after(tmp_path, wavs):
    run(tmp_path, wavs, "trainer.max_steps=6", "trainer.val_check_interval=3")
    with (tmp_path / "run/metrics.csv").open() as file:
        scored = [row["step"] for row in csv.DictReader(file) if row.get("valid/mel")]
    assert scored == ["3", "6"]
    names = {path.name for path in (tmp_path / "run/samples").glob("clip-0-*")}
    assert {"clip-0-original.wav", "clip-0-step-0000003.wav", "clip-0-step-0000006.png"} <= names


def test_a_run_folder_loads_while_it_trains_and_when_it_is_done(tmp_path, wavs):
    run(tmp_path, wavs, "trainer.max_steps=2")
    finished = codec.load(tmp_path / "run").state_dict()
    shutil.rmtree(tmp_path / "run/model")
    training = codec.load(tmp_path / "run").state_dict()
    assert all(torch.equal(value, training[name]) for name, value in finished.items())
    assert (tmp_path / "run/data.txt").read_text().startswith(str(wavs))


def contents_of_tensorboard(folder: Path, event_accumulator) -> list[str]:
    tags = event_accumulator.EventAccumulator(str(folder / "run")).Reload().Tags()
    assert "valid/mel" in tags["scalars"]
    return [*tags["audio"], *tags["images"]]


def contents_of_wandb(folder: Path, wandb) -> list[str]:
    assert wandb.run is None, "the next run of a sweep would go on in this one"
    run, again = sorted((folder / "run/wandb").glob("offline-run-*"))
    assert run.name.rpartition("-")[2] == again.name.rpartition("-")[2], "a resumed run is the same run"
    assert b"valid/mel" in next(run.glob("*.wandb")).read_bytes()
    return [str(path.relative_to(run / "files")) for path in run.rglob("media/*/clip 0/*")]


def contents_of_mlflow(folder: Path, mlflow) -> list[str]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/run/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("codec").experiment_id])
    assert run.info.status == "FINISHED" and "valid/mel" in run.data.metrics
    return [artifact.path for artifact in client.list_artifacts(run.info.run_id, "samples")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logger", "library", "contents", "expected"),
    [
        (
            "tensorboard", "tensorboard.backend.event_processing.event_accumulator", contents_of_tensorboard,
            ["clip 0/original", "clip 0/reconstruction", "clip 0"],
        ),
        (
            "wandb", "wandb", contents_of_wandb,
            [r"media/audio/clip 0/audio_\d+_.*wav"] * 2 + [r"media/images/clip 0/spectrograms_\d+_.*png"],
        ),
        (
            "mlflow", "mlflow", contents_of_mlflow,
            ["samples/clip-0-" + end for end in ("original.wav", "step-0000002.wav", "step-0000002.png")],
        ),
    ],
)  # fmt: skip
def test_every_logger_gets_numbers_audio_and_pictures(
    tmp_path, wavs, monkeypatch, logger, library, contents, expected
):
    module = pytest.importorskip(library, reason=f'needs pip install "neural-audio-codec[{logger}]"')
    monkeypatch.chdir(tmp_path)
    options = ["logger.offline=true"] if logger == "wandb" else []
    options += ["trainer.val_check_interval=2", f"logger={logger}"]
    run(tmp_path, wavs, "trainer.max_steps=2", *options)
    run(tmp_path, wavs, "trainer.max_steps=4", "resume=auto", *options)
    found = contents(tmp_path, module)
    assert all(any(re.fullmatch(name, one) for one in found) for name in expected), found
    assert len(found) >= len(expected)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "cache"}


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_what_a_logger_needs_is_named_when_it_is_not_installed(tmp_path, wavs, monkeypatch, logger):
    available = f"lightning.pytorch.loggers.{logger}._{logger.upper()}_AVAILABLE"
    monkeypatch.setattr(available, "")  # as if it were not installed: Lightning's reason, and false
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    (library,) = project["optional-dependencies"][logger]
    with pytest.raises(ConfigError, match=f'pip install "{library}"'):
        run(tmp_path, wavs, "trainer.max_steps=1", f"logger={logger}")


def mel_by_step(folder: Path) -> dict[int, float]:
    with (folder / "run/metrics.csv").open() as file:
        return {int(row["step"]): float(row["valid/mel"]) for row in csv.DictReader(file) if row["valid/mel"]}


@pytest.mark.slow
def test_on_real_speech_validation_improves_before_and_after_the_adversary_joins(tmp_path, real_speech):
    options = [
        "optimizer=adamw_cosine",
        "optimizer.generator.lr=0.0015",
        "optimizer.schedule.warmup_steps=20",
    ]
    sizes = ["autoencoder=tiny", "autoencoder.encoder_channels=8", "autoencoder.decoder_channels=8"]
    lengths = ["trainer.max_steps=300", "trainer.val_check_interval=75", "training.adversarial_from=200"]
    run(tmp_path, real_speech, "data.segment_seconds=0.25", *options, *sizes, *lengths)
    scores = mel_by_step(tmp_path)
    assert scores[150] < scores[75]  # rounding, which differs between machines, moves each by some percent
    assert scores[300] < 0.9 * scores[150]


def test_the_balancer_s_averages_are_resumed_too(tmp_path, wavs):
    options = ["loss=encodec", "trainer.max_steps=8"]
    whole = run(tmp_path / "whole", wavs, *options)
    run(tmp_path / "parts", wavs, *options, "trainer.max_steps=4")
    assert_same(whole, run(tmp_path / "parts", wavs, *options, "resume=auto"))


def test_a_taken_run_folder_is_not_overwritten(tmp_path, wavs):
    run(tmp_path, wavs, "trainer.max_steps=2")
    with pytest.raises(ConfigError, match="holds a run already: go on with resume=auto"):
        run(tmp_path, wavs, "trainer.max_steps=4")
    with pytest.raises(ConfigError, match=r"quantizer.num_quantizers 2 → 3"):
        run(tmp_path, wavs, "trainer.max_steps=4", "resume=auto", "quantizer.num_quantizers=3")
    differ = r"another discriminator or loss.* \(discriminator\.\S+, .* differ\)"
    with pytest.raises(ConfigError, match=differ):
        run(tmp_path, wavs, "trainer.max_steps=4", "resume=auto", "discriminator.channels=3")


def test_checkpoint_and_saved_model_are_the_same_averaged_codec(tmp_path, wavs):
    checkpoint = run(tmp_path, wavs, "trainer.max_steps=6", "training.average_decay=0.9")
    audio = torch.randn(1, 1, 3000)
    one, other = codec.load(tmp_path / "run/model"), codec.load(tmp_path / "run/checkpoints/last.ckpt")
    assert torch.equal(one.encode(audio), other.encode(audio))
    state = checkpoint["state_dict"]
    name = "autoencoder.encoder.0.conv.weight"
    assert not torch.equal(state[f"codec.{name}"], state[f"average.{name}"])
    assert torch.equal(one.state_dict()[name], state[f"average.{name}"])


def test_a_step_that_is_not_finite_is_skipped_counted_and_named(tmp_path, wavs, monkeypatch, caplog):
    real, calls = Objective.reconstruction_losses, []

    def broken(self, outputs, parts):
        calls.append(1)
        losses = real(self, outputs, parts)
        return {name: loss * float("nan") for name, loss in losses.items()} if len(calls) == 3 else losses

    monkeypatch.setattr(Objective, "reconstruction_losses", broken)
    state = run(tmp_path, wavs, "trainer.max_steps=5")["state_dict"]
    assert int(state["skipped"]) == 1
    assert all(torch.isfinite(value).all() for value in state.values())
    assert "skipped, mel, waveform not finite (1 in a row)" in caplog.text
    assert str(wavs) in caplog.text


def test_training_stops_after_too_many_bad_steps(tmp_path, wavs, monkeypatch):
    def broken(self, outputs, parts):
        total = outputs.estimate.sum()
        return {"mel": total * float("inf"), "waveform": total}

    monkeypatch.setattr(Objective, "reconstruction_losses", broken)
    with pytest.raises(ConfigError, match="3 steps in a row were not finite"):
        run(tmp_path, wavs, "trainer.max_steps=9", "training.max_skipped=3")


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(tmp_path, wavs, monkeypatch, caplog):
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    def no_room(*arguments) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("codec.training.checkpoints.os.fsync", full)
    monkeypatch.setattr("codec.training.samples.write_wav", no_room)
    monkeypatch.setattr("codec.training.metrics_csv.MetricsCSV.rewrite", no_room)
    checkpoint = run(tmp_path, wavs, "trainer.max_steps=6", "trainer.val_check_interval=3")
    assert checkpoint["global_step"] == 6
    assert ".ckpt NOT saved: no space left on the disk of" in caplog.text
    assert "samples of step 3 are missing" in caplog.text and "metrics.csv: " in caplog.text
    assert not list((tmp_path / "run/checkpoints").glob(".*"))


def test_a_full_disk_at_the_end_is_told_and_the_same_command_exports_later(
    tmp_path, wavs, monkeypatch, capsys
):
    real = codec.model.codec.save_file

    def full(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("codec.model.codec.save_file", full)
    with pytest.raises(OSError, match=r"run/model: the codec is NOT saved: .*No space left") as caught:
        run(tmp_path, wavs, "trainer.max_steps=4")
    assert f"checkpoints in {tmp_path}/run/checkpoints are whole: free some space" in str(caught.value)
    assert not list((tmp_path / "run/model").iterdir())
    monkeypatch.setattr("codec.model.codec.save_file", real)
    run(tmp_path, wavs, "trainer.max_steps=4", "resume=auto")
    finished = codec.load(tmp_path / "run/model").state_dict()
    # A longer run has a model already, when its own cannot be saved.
    monkeypatch.setattr("codec.model.codec.save_file", full)
    with pytest.raises(OSError, match="NOT saved"):
        run(tmp_path, wavs, "trainer.max_steps=6", "resume=auto")
    assert all(
        torch.equal(value, finished[name])
        for name, value in codec.load(tmp_path / "run/model").state_dict().items()
    )
    monkeypatch.setattr("codec.model.codec.save_file", real)
    run(tmp_path, wavs, "trainer.max_steps=6", "resume=auto")
    assert "nothing to do" not in capsys.readouterr().out
    longer = codec.load(tmp_path / "run/model")
    state = last(tmp_path)["state_dict"]
    assert all(torch.equal(v, state[f"average.{name}"]) for name, v in longer.state_dict().items())
    run(tmp_path, wavs, "trainer.max_steps=6", "resume=auto")
    assert "nothing to do" in capsys.readouterr().out


def test_evaluation_runs_where_the_training_ran(tmp_path, wavs, monkeypatch):
    devices: list[str] = []

    def evaluated(model: torch.nn.Module, files: list, output: Path, metrics: object) -> Summary:
        devices.append(next(model.parameters()).device.type)
        return Summary(files=1, rate_distortion=[{"kbit/s": 1.0, "si_sdr": 0.0, "mel": 0.0, "stft": 0.0}])

    monkeypatch.setattr("codec.training.finish.evaluate", evaluated)
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    run(tmp_path, wavs, "trainer.max_steps=1", "evaluate=1", f"trainer.accelerator={accelerator}")
    assert devices == [accelerator]


def test_a_damaged_checkpoint_is_named(tmp_path, wavs):
    run(tmp_path, wavs, "trainer.max_steps=2")
    path = tmp_path / "run/checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"last\.ckpt: not a checkpoint of codec-train, or damaged"):
        run(tmp_path, wavs, "trainer.max_steps=4", "resume=auto")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=mel", "discriminator=encodec"], "this loss has no part for a discriminator"),
        (["loss=dac", "discriminator=none"], "this loss needs a discriminator"),
        (["trainer.precision=bf16-true"], "trainer.precision: expected one of 32-true, bf16-mixed"),
        (["+trainer.gradient_clip_val=1.0"], "gradient_clip_val"),
        (["resume=true"], "resume: expected auto, a checkpoint's path or null, got True"),
        (["evaluate=many"], "evaluate: expected a number of files, got 'many'"),
        (["checkpoint.save_every=0"], "save_every and keep_every must be at least 1 step"),
        (
            ["autoencoder.strides=[8,8,8,8]"],
            "autoencoder.strides: a frame of 4096 samples is longer than the crops",
        ),
        (["+quantizer.loss_weights.codebook=1"], "quantizer.loss_weights must name the quantizer's losses"),
        (["quantizer.loss_weights.commitment=-1"], "quantizer.loss_weights must be at least 0, got"),
        (["+loss.weights.mell=1"], "weights.mell: nothing produces this loss; did you mean mel?"),
        (["training.average_decay=1.5"], r"average_decay in \[0, 1\)"),
        (["data.batch_size=0"], "batch_size must be positive"),
        (["data.weights=[1,2]"], "weights must be one positive number a root"),
        (["trainer.max_steps=oops"], "trainer.max_steps: expected int, got 'oops'"),
        (["trainer.max_steps=0"], "trainer.max_steps: expected a number of steps above 0, got 0"),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval: expected a number of steps"),
        (["trainer.val_check_interval=0.5"], "trainer.val_check_interval: expected .*, got 0.5"),
        (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps: expected a number of steps"),
        (["seed=-1"], "seed: expected a whole number from 0 to 4294967295, got -1"),
        (["seed=4294967296"], "seed: expected a whole number from 0"),
        (
            ["training.freeze=[quantiser]"],
            "'quantiser'; did you mean quantizer.* autoencoder.decoder",
        ),
        (
            ["training.freeze=[quantizer.codebooks.9]"],
            "no part 'quantizer.codebooks.9'; did you mean",
        ),
        (["optimizer.discriminator_update_probability=0"], "above 0 and at most 1.*discriminator=none"),
        (["training.freeze=[autoencoder]"], "leaves nothing that gradients train"),
        (["resume=nowhere.ckpt"], "resume: there is no checkpoint nowhere.ckpt"),
    ],
)
def test_impossible_options_are_refused_before_training(tmp_path, wavs, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, wavs, "trainer.max_steps=1", *overrides)
    assert not (tmp_path / "run/checkpoints").exists()


def test_crops_longer_than_every_file_are_refused_and_leave_no_run_folder(tmp_path, wavs):
    with pytest.raises(DataError, match=r"lower data.segment_seconds, the longest file has 1.000 s"):
        run(tmp_path, wavs, "data.segment_seconds=100", f"run_dir={tmp_path}/new/run")
    assert not (tmp_path / "new").exists()


def test_few_held_out_files_are_mentioned(tmp_path, wavs, caplog):
    run(tmp_path, wavs, "trainer.max_steps=1")
    assert "held out for validation: 1 file only" in caplog.text
    caplog.clear()
    run(tmp_path / "more", wavs, "trainer.max_steps=1", "data.validation.fraction=0.9")
    assert "held out for validation" not in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_vanish_while_it_trains_are_told_in_one_line(tmp_path, wavs, monkeypatch, workers):
    copy = shutil.copytree(wavs, tmp_path / "copy")
    monkeypatch.setattr("codec.data.crops.PAUSES", ())
    monkeypatch.setattr(CodecTraining, "on_train_start", lambda self: shutil.rmtree(copy))
    with pytest.raises(DataError) as caught:
        run(tmp_path, copy, "trainer.max_steps=100", f"data.num_workers={workers}")
    assert re.match(r"crop \d+: 50 draws met files that are not readable any more: ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_the_end_names_what_was_made_and_what_fits_next(tmp_path, wavs, capsys):
    run(tmp_path, wavs, "trainer.max_steps=2")
    plain = capsys.readouterr().out
    assert f"model: {tmp_path}/run/model" in plain and f"codec-evaluate {tmp_path}/run " in plain
    assert not re.search("evaluation$|samples$|tensorboard|your own recordings", plain, re.MULTILINE)
    options = ["data=synthetic", "trainer.val_check_interval=1", "evaluate=1", "logger=tensorboard"]
    run(tmp_path / "full", wavs, *options, f"data.root={wavs}", "data.num_workers=0", "trainer.max_steps=1")
    full = capsys.readouterr().out
    assert "1 file at " in full and "tensorboard --logdir" in full and "your own recordings" in full
    assert re.search("evaluation$", full, re.MULTILINE) and re.search("samples$", full, re.MULTILINE)


def test_fewer_steps_than_are_done_already_are_nothing_to_do(tmp_path, wavs, capsys):
    run(tmp_path, wavs, "trainer.max_steps=4")
    shutil.rmtree(tmp_path / "run/model")
    before = (tmp_path / "run/metrics.csv").read_text()
    capsys.readouterr()
    assert run(tmp_path, wavs, "trainer.max_steps=2", "resume=auto")["global_step"] == 4
    said = capsys.readouterr().out
    assert "is at step 4 of 2 already; nothing to do" in said and "resumes" not in said
    assert "model: " not in said and (tmp_path / "run/metrics.csv").read_text() == before


HOLDER = """
import os, sys
from pathlib import Path
from codec.system.files import only_writer
with only_writer(Path(sys.argv[1])):
    if not os.fork():  # a loading process, which outlives its parent for a while
        import time
        time.sleep(600)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs another operating system: Windows has no fcntl")
def test_a_run_folder_has_one_process_that_writes_until_it_is_killed(tmp_path, wavs):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout and process.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"/run: process {process.pid} on .* is writing here"):
            run(tmp_path, wavs, "trainer.max_steps=1")
        process.kill()
        process.wait()
        assert run(tmp_path, wavs, "trainer.max_steps=1")["global_step"] == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs another operating system: one with /dev/full"
)
def test_a_full_disk_is_named_also_where_torch_hides_it(tmp_path, monkeypatch, caplog):
    path, real = tmp_path / "last.ckpt", Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: real(Path("/dev/full"), mode))
    for intact in (False, True):
        AtomicCheckpoints().save_checkpoint({"weights": torch.zeros(100_000)}, path)
        assert f"last.ckpt NOT saved: no space left on the disk of {tmp_path}" in caplog.text
        assert ("The previous checkpoint is intact" in caplog.text) is intact
        path.touch()


def distance(one: dict, other: dict) -> float:
    """How far apart two trainings ended, over all weights that learn. Of one weight alone little can be said:
    Adam makes a whole step of a gradient that is nothing but rounding."""
    names = [name for name in one["state_dict"] if name.startswith(("codec.autoencoder", "discriminator"))]
    square = sum((one["state_dict"][name] - other["state_dict"][name]).square().sum() for name in names)
    return float(square**0.5)


COMPILE = """
from functools import partialmethod
from torch import nn
nn.Module.compile = partialmethod(nn.Module.compile, backend={!r})
"""


def command(folder: Path, wavs: Path, *overrides: str, backend: str = "inductor") -> list[str]:
    """The same run as a command, for processes that are to be killed; aot_eager compiles no machine code."""
    config = folder / "config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(tiny_run(folder, wavs, *overrides)), config)
    code = COMPILE.format(backend) if backend != "inductor" else ""
    code += "import sys; from omegaconf import OmegaConf; from codec.training.run import train; "
    return [sys.executable, "-c", code + f"sys.exit(train(OmegaConf.load({str(config)!r})))"]


def started(arguments: list[str], folder: Path, steps: int) -> programs.Program:
    """Start a training and wait until it has saved a checkpoint at `steps` or later."""
    process = programs.Program(arguments)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "run/checkpoints/last.ckpt").exists() and last(folder)["global_step"] >= steps:
            return process
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["SIGTERM", "SIGINT", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("SIGHUP", "SIGUSR1"))],
)
def test_a_signal_saves_and_exits_and_the_run_goes_on(tmp_path, wavs, name):
    number = getattr(signal, name)
    options = ["trainer.max_steps=100000", "data.num_workers=1"]
    process = started(command(tmp_path, wavs, *options), tmp_path, 2)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    stopped = last(tmp_path)["global_step"]
    assert name == "SIGHUP" or f"stopped by {name} at step {stopped}" in out
    assert "Traceback" not in error
    resumed = run(tmp_path, wavs, f"trainer.max_steps={stopped + 2}", "resume=auto", "data.num_workers=1")
    assert resumed["global_step"] == stopped + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "name", "status"),
    [
        ("codec.data.loader.prepare_worker", "SIGTERM", 143),
        pytest.param("codec.data.loader.prepare_worker", "SIGINT", 130, marks=pytest.mark.exhaustive),
        pytest.param(
            *("codec.data.module.AudioDataModule.train_dataloader", "SIGTERM", 143),
            marks=pytest.mark.exhaustive,
        ),
        ("codec.data.module.AudioDataModule.train_dataloader", "SIGINT", 130),
    ],
)
def test_a_signal_to_all_processes_while_workers_start_saves_and_exits_too(
    tmp_path, wavs, moment, name, status
):
    *python, code = command(tmp_path, wavs, "trainer.max_steps=100000", "data.num_workers=2")
    place, function = moment.rpartition(".")[::2]
    signaled = f"""
import os, signal
from codec.config import locate
import codec.data.module, codec.data.loader
place = locate({place!r}) if {place!r}.endswith("DataModule") else codec.data.loader
real = place.{function}
def signaled(*arguments):
    if arguments[1:] != (1,):  # one of the workers is enough: a second Ctrl-C means at once
        os.killpg(0, signal.{name})
    return real(*arguments)
place.{function} = signaled
"""
    process = programs.run([*python, signaled + code], timeout=120, start_new_session=True)
    assert process.returncode == status, process.stderr
    assert f"stopped by {name} at step 1;" in process.stdout
    assert "Traceback" not in process.stderr and last(tmp_path)["global_step"] == 1
    assert run(tmp_path, wavs, "trainer.max_steps=2", "resume=auto")["global_step"] == 2


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_is_an_interruption(tmp_path, wavs):
    code = "import codec.data.module as data, os, signal; "
    code += "data.has_audio = lambda root: os.kill(os.getpid(), signal.SIGINT); "
    *python, training = command(tmp_path, wavs, "data=synthetic", f"data.root={wavs}")
    code += f"import sys\ntry:\n    {training}\nexcept KeyboardInterrupt:\n    sys.exit(130)"
    process = programs.run([*python, code], timeout=120)
    assert process.returncode == 130, process.stderr


@pytest.mark.slow
def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path, wavs):
    random = np.random.default_rng(0)
    reached = 0
    for _ in range(3):
        options = ["trainer.max_steps=100000", "resume=auto", "checkpoint.save_every=1"]
        process = started(command(tmp_path, wavs, *options), tmp_path, reached + 3)
        time.sleep(float(random.uniform(0, 0.2)))
        process.kill()
        process.communicate()
        reached = last(tmp_path)["global_step"]
    final = run(tmp_path, wavs, f"trainer.max_steps={reached + 2}", "resume=auto", "checkpoint.save_every=1")
    assert final["AudioDataModule"]["seen"] == 4 * (reached + 2)
    whole = run(tmp_path / "whole", wavs, f"trainer.max_steps={reached + 2}", "checkpoint.save_every=1")
    assert_same(whole, final)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "warmup"),
    [
        ("tiny", 1000),
        pytest.param("tiny", 0, marks=pytest.mark.exhaustive),
        ("encodec", 0),
    ],
)
def test_two_processes_train_as_one(tmp_path, wavs, loss, warmup):
    options = ["trainer.max_steps=6", "quantizer.codebook.dead_threshold=0.9", f"loss={loss}"]
    options.append(f"optimizer.schedule.warmup_steps={warmup}")
    # All processes have to skip the same of the discriminator's steps.
    options.append(f"optimizer.discriminator_update_probability={0.5 if loss == 'encodec' else 1.0}")
    start = run(tmp_path / "start", wavs, *options, "trainer.max_steps=1", "optimizer.generator.lr=1e-9")
    one = run(tmp_path / "one", wavs, *options)
    folder = tmp_path / "two"
    arguments = command(folder, wavs, *options, "trainer=ddp", "trainer.devices=2")
    script = folder / "train.py"
    script.write_text(arguments[-1])
    result = programs.run([sys.executable, str(script)])
    assert result.returncode == 0, result.stderr
    two = last(folder)
    assert one["AudioDataModule"] == two["AudioDataModule"] and one["global_step"] == two["global_step"]
    assert distance(one, two) < 0.02 * distance(one, start)
    # Not the discriminator: with one thread the gradients of some of its biases are nothing but rounding.
    codec = {name: value for name, value in one["state_dict"].items() if not name.startswith("discriminator")}
    for name, value in codec.items() if warmup else []:
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=1e-5, msg=name)
    with (folder / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert sum(float(row["codebook/replaced_1"]) for row in rows) > 0
    with (tmp_path / "one/run/metrics.csv").open() as file:
        whole = list(csv.DictReader(file))
    for row, expected in zip(rows, whole, strict=True) if warmup else []:
        assert row.keys() == expected.keys()
        for name in (name for name in row if name.startswith(("train/", "codebook/")) and expected[name]):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=5e-3, abs=1e-4), name


def test_codebooks_start_once_from_as_many_training_latents_as_they_want(tmp_path, wavs, monkeypatch):
    # Of one batch, here 52 latents, the last stages would have nothing left to start from.
    pools, original = [], Residual.initialise

    def initialise(quantizer: Residual, pool: torch.Tensor) -> None:
        pools.append((quantizer.pool_size(), pool, quantizer.training))
        original(quantizer, pool)

    monkeypatch.setattr(Residual, "initialise", initialise)
    run(tmp_path, wavs, "trainer.max_steps=2", "trainer.val_check_interval=1")
    run(tmp_path, wavs, "trainer.max_steps=4", "resume=auto")
    ((wanted, pool, training),) = pools
    assert training and wanted == 16 * 16 and len(pool) >= wanted
    assert len(pool.unique(dim=0)) > 0.9 * wanted  # other crops, not one again and again


def changed(checkpoint: dict, start: dict) -> set[str]:
    """Which parts of the codec two states differ in."""
    return {
        name.removeprefix("codec.").split(".")[0 if "quantizer" in name else 1]
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("codec.") and not torch.equal(value, start["state_dict"][name])
    }


@pytest.mark.parametrize(
    ("freeze", "learning"),
    [
        ("[]", {"encoder", "decoder", "quantizer"}),
        ("[quantizer]", {"encoder", "decoder"}),
        ("[autoencoder.encoder,quantizer]", {"decoder"}),
        ("[autoencoder.decoder]", {"encoder", "quantizer"}),
    ],
)
def test_frozen_parts_stay_as_they_are(tmp_path, wavs, freeze, learning):
    options = ["trainer.max_steps=4", "training.revive_every=1", "quantizer.codebook.dead_threshold=0.9"]
    # Weights before the first step follow from the seed alone.
    first = config_before_training(tmp_path / "first", wavs)
    trained = run(tmp_path, wavs, *options, f"training.freeze={freeze}")
    assert changed(trained, first) == learning
    if "quantizer" not in learning:
        assert not trained["state_dict"]["codec.quantizer.codebooks.0.initialised"]
    # What was frozen may learn in the next run, and the other way round.
    run(tmp_path, wavs, *options, "trainer.max_steps=5", "training.freeze=[]", "resume=auto")


def config_before_training(folder: Path, wavs: Path) -> dict:
    """State of a run's modules before its first step."""
    config = tiny_run(folder, wavs)
    seed_everything(config["seed"], workers=False, verbose=False)
    return {"state_dict": build_parts(config)[1].state_dict()}


def test_frozen_factorized_codebooks_get_no_gradient(tmp_path, wavs):
    options = ["trainer.max_steps=3", "training.freeze=[quantizer]"]
    config = tiny_run(tmp_path, wavs, *options, swap_quantizer="factorized_rvq")
    seed_everything(config["seed"], workers=False, verbose=False)
    first = {"state_dict": build_parts(config)[1].state_dict()}
    assert train(OmegaConf.create(config)) == 0
    assert changed(last(tmp_path), first) == {"encoder", "decoder"}


def test_bfloat16_trains_with_float32_codebooks_and_weights(tmp_path, wavs):
    state = run(tmp_path, wavs, "trainer.max_steps=4", "trainer.precision=bf16-mixed")["state_dict"]
    assert all(value.dtype != torch.bfloat16 and torch.isfinite(value).all() for value in state.values())
    assert int(state["skipped"]) == 0


@pytest.mark.parametrize("quantizer", ["fsq", "none", "factorized_rvq"])
@pytest.mark.parametrize("options", [["loss=mel", "discriminator=none"], ["loss=dac", "discriminator=tiny"]])
def test_any_quantizer_trains_with_any_adversary(tmp_path, wavs, quantizer, options):
    config = tiny_run(tmp_path, wavs, "trainer.max_steps=3", *options, swap_quantizer=quantizer)
    assert train(OmegaConf.create(config)) == 0
    assert last(tmp_path)["global_step"] == 3


def test_a_grid_with_more_codes_than_memory_is_trained_and_evaluated(tmp_path, wavs):
    options = ["trainer.max_steps=2", "quantizer.codebook.levels=[32,32,32,32,32,32,32,32]", "evaluate=2"]
    assert train(OmegaConf.create(tiny_run(tmp_path, wavs, *options, swap_quantizer="fsq"))) == 0
    summary = json.loads((tmp_path / "run/evaluation/summary.json").read_text())
    assert 0 < summary["codebook_entropy"][0] < 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.exhaustive)])
def test_compiling_changes_neither_names_nor_results(tmp_path, wavs, backend):
    options = ["trainer.max_steps=3", "optimizer.schedule.warmup_steps=0"]
    eager = run(tmp_path / "eager", wavs, *options)
    # In a process of its own: the compiler minds which modules other tests have imported.
    arguments = command(tmp_path / "compiled", wavs, *options, "training.compile=true", backend=backend)
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    compiled = last(tmp_path / "compiled")
    assert eager["state_dict"].keys() == compiled["state_dict"].keys()
    start = run(tmp_path / "start", wavs, *options, "trainer.max_steps=1", "optimizer.generator.lr=1e-9")
    assert distance(eager, compiled) < 0.01 * distance(eager, start)
