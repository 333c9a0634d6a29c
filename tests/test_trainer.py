"""Options of Lightning's trainer: each is obeyed, or refused with the one to use; who starts processes."""

import inspect
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning
import programs
import pytest
import torch
from composed import config, tiny_run
from test_training import command, last, run

from codec.config import ConfigError
from codec.data.loader import WorkerLoader, named_losses
from codec.training.signals import StopOnSignal
from codec.training.trainer import REFUSED, build_trainer, check_launch, launcher

pytestmark = pytest.mark.filterwarnings("default")
OBEYED = {
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "max_steps", "val_check_interval"),
    *("log_every_n_steps", "max_time", "callbacks", "enable_progress_bar", "limit_val_batches", "profiler"),
    *("deterministic", "benchmark", "inference_mode", "detect_anomaly", "sync_batchnorm"),
    *("enable_autolog_hparams", "model_registry"),
}


def test_every_option_of_lightning_is_obeyed_or_refused():
    assert set(inspect.signature(lightning.Trainer).parameters) == OBEYED | REFUSED.keys()
    assert not OBEYED & REFUSED.keys()


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("max_epochs=3", "trainer.max_steps"),
        ("num_sanity_val_steps=2", "trainer.val_check_interval"),
        ("gradient_clip_val=1", "optimizer.generator_clip"),
        ("min_steps=3", "trainer.max_steps"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(tmp_path, wavs, option, instead):
    name = option.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: cannot be set; use {instead}"):
        run(tmp_path, wavs, f"+trainer.{option}")
    assert not (tmp_path / "run").exists()


class Early(lightning.Callback):
    def on_train_batch_end(self, trainer, *arguments):
        trainer.should_stop = trainer.global_step == 3


def test_callbacks_are_obeyed_and_an_early_end_is_no_finished_run(tmp_path, wavs, capsys):
    options = ["trainer.max_steps=20", "+trainer.enable_progress_bar=false"]
    added = f"+trainer.callbacks=[{{_target_:{__name__}.Early}}]"
    assert run(tmp_path, wavs, *options, added)["global_step"] == 3
    assert "training was ended at step 3 of 20" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"trainer.callbacks: expected list of Callback"):
        run(tmp_path, wavs, *options, "+trainer.callbacks=[1]", "resume=auto")


def test_when_time_is_up_it_is_said_and_the_run_goes_on_with_more(tmp_path, wavs, capsys):
    step = run(tmp_path, wavs, "trainer.max_steps=100000", "+trainer.max_time={seconds:1}")["global_step"]
    said = capsys.readouterr().out
    assert f"ended at step {step} of 100000 by a callback or trainer.max_time={{'seconds': 1}}, " in said
    options = [f"trainer.max_steps={step + 2}", "+trainer.max_time={hours:1}", "resume=auto"]
    assert run(tmp_path, wavs, *options)["global_step"] == step + 2
    assert "was ended" not in capsys.readouterr().out


def test_a_resume_that_changes_the_learning_rate_says_so(tmp_path, wavs, capsys):
    options = ["optimizer=adamw_cosine", "optimizer.schedule.warmup_steps=2"]
    run(tmp_path, wavs, "trainer.max_steps=4", *options)
    assert "learning rate" not in capsys.readouterr().err
    run(tmp_path, wavs, "trainer.max_steps=8", "resume=auto", "optimizer.schedule.total_steps=4", *options)
    assert "learning rate" not in capsys.readouterr().err
    run(tmp_path, wavs, "trainer.max_steps=80", "resume=auto", *options)
    assert "the learning rate goes from 0.0003 to 0.00295, " in capsys.readouterr().err


TORCHRUN = {"RANK": "0", "GROUP_RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}


def test_torchrun_without_ddp_is_refused_before_anything_is_written(tmp_path, wavs, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    refusal = r"torchrun has started 2 processes.* add trainer=ddp trainer.devices=2 trainer.num_nodes=1"
    with pytest.raises(ConfigError, match=refusal):
        run(tmp_path, wavs)
    assert not (tmp_path / "run").exists()
    check_launch(config("trainer=ddp")["trainer"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_launch(config()["trainer"])


def test_a_job_of_slurm_without_srun_trains_as_on_any_machine(tmp_path, wavs, monkeypatch):
    assert not launcher()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert run(tmp_path, wavs, "trainer.max_steps=1")["global_step"] == 1
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(ConfigError, match=r"trainer: .*--ntasks-per-node=4"):
        run(tmp_path, wavs, "trainer.max_steps=2", "resume=auto")


def test_several_devices_alone_choose_what_trainer_ddp_says(tmp_path, wavs):
    made = {}
    for name, options in {"auto": [], "ddp": ["trainer=ddp"], "one": ["trainer.devices=1"]}.items():
        node = tiny_run(
            tmp_path, wavs, *options[:1], *(options[1:] or ["trainer.devices=2"][: name != "one"])
        )
        made[name] = build_trainer(node, tmp_path / "run", StopOnSignal(tmp_path), None).strategy
    kinds = {name: type(strategy).__name__ for name, strategy in made.items()}
    assert kinds == {"auto": "DDPStrategy", "ddp": "DDPStrategy", "one": "SingleDeviceStrategy"}
    assert made["auto"]._ddp_kwargs == made["ddp"]._ddp_kwargs == {"find_unused_parameters": True}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGHUP")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_saves_and_nohup_trains_on(tmp_path, wavs, ignored):
    outer, inner = pty.openpty()
    *python, code = command(tmp_path, wavs, "trainer.max_steps=100000", "data.num_workers=1")
    code = (
        f"import signal; signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'}); {code}"
    )
    with subprocess.Popen(
        [*python, code], stdin=inner, stdout=inner, stderr=inner, start_new_session=True
    ) as process:
        os.close(inner)

        def watch(seconds: float, step: int) -> None:
            """Read what is printed until a checkpoint of a step is there."""
            deadline, saved = time.monotonic() + seconds, tmp_path / "run/checkpoints/last.ckpt"
            while time.monotonic() < deadline and not (
                saved.exists() and last(tmp_path)["global_step"] >= step
            ):
                if select.select([outer], [], [], 0.1)[0]:
                    os.read(outer, 1 << 16)

        watch(200, 2)
        if ignored:
            process.send_signal(signal.SIGHUP)
            after = last(tmp_path)["global_step"] + 4
            watch(60, after)
            assert last(tmp_path)["global_step"] >= after
            process.kill()
        else:
            os.close(outer)
            time.sleep(0.5)  # writes fail already
            process.send_signal(signal.SIGHUP)
            assert process.wait(100) == 128 + signal.SIGHUP
            assert (tmp_path / "run/model/model.safetensors").is_file()


class Numbers(torch.utils.data.Dataset):
    """Batches of which one may be the worker's last, or never come."""

    def __init__(self, last: str = ""):
        self.last = last

    def __len__(self) -> int:
        return 4

    def __getitem__(self, n: int) -> torch.Tensor:
        if n == 2 and self.last == "sleep":
            time.sleep(120)
        elif n == 2 and self.last:
            os.kill(os.getpid(), getattr(signal, self.last))
        return torch.full((3,), n)


def test_batches_need_no_shared_memory():
    batches = list(WorkerLoader(Numbers(), batch_size=None, num_workers=1))
    assert [int(batch[0]) for batch in batches] == [0, 1, 2, 3]
    assert not any(batch.is_shared() for batch in batches)
    batches[0] += 1


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize(
    ("number", "said"),
    [("SIGKILL", "Killed.*is the memory full"), ("SIGBUS", "shared memory is too small: .*--shm-size")],
)
def test_a_loading_process_that_died_is_named(number, said):
    with pytest.raises(ChildProcessError, match=f"a loading process is lost .*{said}"), named_losses():
        list(WorkerLoader(Numbers(number), batch_size=None, num_workers=1))


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_a_loading_process_that_hangs_is_waited_for_with_a_limit(monkeypatch):
    monkeypatch.setattr("codec.data.loader.LIMIT", 2)
    loader = WorkerLoader(Numbers("sleep"), batch_size=None, num_workers=1)
    with (
        pytest.raises(ChildProcessError, match=r"lost \(DataLoader timed out after 2 seconds"),
        named_losses(),
    ):
        list(loader)


ORPHANING = """
import time, torch
from codec.data.loader import WorkerLoader
class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, n):
        return torch.zeros(1 << 20)
batches = iter(WorkerLoader(Large(), batch_size=None, num_workers=2))
next(batches)
print(*[worker.pid for worker in batches._workers], flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_processes_end_with_a_killed_program():
    """Their pipes are full of batches that nobody fetches any more."""
    with subprocess.Popen([sys.executable, "-c", ORPHANING], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        workers = [Path("/proc", number) for number in program.stdout.readline().split()]
        time.sleep(1)
        program.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [worker.name for worker in workers if worker.exists()]
    for number in left:
        os.kill(int(number), signal.SIGKILL)
    assert not left


HANGING = """
import os, signal, threading
from codec.data.crops import Crops
from torch.utils.data import get_worker_info
real = Crops.__getitems__
def hang(self, numbers):
    if min(numbers) >= 12 and get_worker_info():
        threading.Timer(1, os.kill, (os.getppid(), signal.SIGTERM)).start()
        import time; time.sleep(600)
    return real(self, numbers)
Crops.__getitems__ = hang
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_a_signal_is_answered_while_data_do_not_come(tmp_path, wavs):
    options = ["trainer.max_steps=100", "data.num_workers=1", "checkpoint.save_every=100"]
    *python, code = command(tmp_path, wavs, *options)
    process = programs.run([*python, HANGING + code], timeout=200)
    assert process.returncode == 143, process.stderr
    # One batch is fetched ahead.
    assert last(tmp_path)["global_step"] == 2 and "stopped by SIGTERM at step 2" in process.stdout
