"""Forecasts of a training: from real measurements in new processes, and by arithmetic from made-up ones."""

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composed import tiny_run
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from codec.commands import plan as planning_command
from codec.commands.plan import plan
from codec.config import ConfigError
from codec.system.memory import available_memory, private_memory
from codec.training import planning
from codec.training import probe as probing
from codec.training.forecast import command, forecast, in_words, line, overrides
from codec.training.module import CodecTraining
from codec.training.planning import Part, Survey, parts_of
from codec.training.probe import Meter
from codec.training.stages import Stage

pytestmark = pytest.mark.filterwarnings("default")
GIB = 2**30


def python(code: str, *arguments: object) -> str:
    """Output of a program in a new process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout


def test_the_peak_is_of_this_process_and_not_of_its_parent():
    code = "from codec.system.memory import peak_memory as p; a = p(); b = b'1' * 2**28; print(a, p())"
    before, after = map(int, python(code).split())
    assert before < 2**27  # this process, its parent, has torch
    assert 2**28 <= after - before < 1.1 * 2**28


def test_memory_that_a_process_shares_with_none():
    waiting = "import sys; a = b'1' * 2**27; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", waiting], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout and child.stdout.readline() == b"ready\n"
        assert 2**27 < private_memory(child.pid) < 1.5 * 2**27
        child.communicate()


def machine(root: Path, files: dict[str, str]) -> int | None:
    """Available memory of a machine with these files."""
    for name, text in {"proc/meminfo": "MemFree: 1 kB\nMemAvailable: 8000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return available_memory(root)


def test_the_limits_of_containers_are_obeyed(tmp_path):
    assert machine(tmp_path / "none", {}) == 8000 * 1024
    v2 = {
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/memory.max": "5000000\n",
        "sys/fs/cgroup/outer/memory.current": "3000000\n",
        "sys/fs/cgroup/outer/memory.stat": "anon 1\ninactive_file 500000\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
        "sys/fs/cgroup/outer/inner/memory.current": "3000000\n",
    }
    assert machine(tmp_path / "v2", v2) == 2_500_000
    v1 = {
        "proc/self/cgroup": "5:devices:/\n4:memory:/job\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4000000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
    }
    assert machine(tmp_path / "v1", v1) == 3_000_000


def test_an_allocation_above_the_limit_fails_in_words_that_are_recognized():
    code = """
import torch
from codec.system.memory import refuse_above
torch.ones(2**20)
refuse_above(2**30)
try:
    torch.ones(2**29)
except RuntimeError as error:
    print(error)
"""
    assert probing.out_of_memory(RuntimeError(python(code)))
    assert not probing.out_of_memory(RuntimeError("a bug"))


@pytest.mark.parametrize(
    "words", ["could not execute a primitive", "could not create a primitive", "std::bad_alloc"]
)
def test_libraries_below_torch_have_other_words_for_too_little_memory(words):
    assert probing.out_of_memory(RuntimeError(words))


def test_parts_are_stages_or_the_steps_before_and_with_the_adversary():
    def module(joins: int, *stages: Stage, has_discriminator: bool = True) -> Any:
        listed = list(stages) or [Stage("", 9)]
        return SimpleNamespace(stages=listed, adversarial_from=joins, has_discriminator=has_discriminator)

    assert parts_of(module(0), 100) == [Part("training", 0, 100)]
    assert parts_of(module(100), 100) == [Part("training", 0, 100)]
    assert parts_of(module(30, has_discriminator=False), 100) == [Part("training", 0, 100)]
    assert [part[1:] for part in parts_of(module(30), 100)] == [(0, 30), (30, 70)]
    assert [part[1:] for part in parts_of(module(30), -1)] == [(0, 30), (30, None)]
    staged = parts_of(module(0, Stage("a", 5), Stage("b", 7), Stage("c", 2)), 14)
    assert [part[1:] for part in staged] == [(0, 5), (5, 7), (12, 2)]
    assert staged[1].name == "stage 2/3 b"


def test_a_step_costs_the_mean_over_updates_of_the_discriminator():
    meter = Meter(0, None, 1.0)
    meter.times, meter.share = [(1.0, False), (4.0, True), (2.0, True)], 0.75
    assert meter.step_seconds() == 0.75 * 3 + 0.25 * 1
    meter.times = [(1.0, False), (4.0, False)]
    assert meter.step_seconds() == 2.5


LIMIT = 1000.0
CONFIG: dict[str, Any] = {
    "data": {"batch_size": 16, "segment_seconds": 0.5, "num_workers": 1},
    "trainer": {"precision": "32-true", "max_steps": 1000, "val_check_interval": 100},
    "training": {"compile": False, "accumulate": 1, "checkpoint_activations": False},
    "checkpoint": {"save_every": 50, "keep_every": 500},
    "run_dir": "no/such/folder",
}
PARTS = [Part("without adversary", 0, 400), Part("with adversary", 400, 600)]


class Machine:
    """Stands for a probe: memory and seconds are lines through the batch size; what was asked is kept.

    Checkpointing halves the memory of a crop and takes 1.4 times as long, accumulation `slower` times.
    """

    def __init__(self, slope: float = 10.0, bf16: float = 0.5, starting: float = 1000.0, slower: float = 2.0):
        self.slope, self.bf16, self.starting, self.slower = slope, bf16, starting, slower
        self.asked: list[tuple[int, int]] = []
        self.refuses = False  # as for batch normalization

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        config, start = request["config"], request["start"]
        size = config["data"]["batch_size"]
        self.asked.append((start, size))
        parts, recomputed = (config["training"][name] for name in ("accumulate", "checkpoint_activations"))
        if self.refuses and (parts > 1 or recomputed):
            raise ConfigError("its statistics mix the examples of a batch")
        peak = 100 + self.slope * size / parts * (0.5 if recomputed else 1) + (50 if start else 0)
        if peak > LIMIT:
            return {"fits": False, "limit": LIMIT}
        half, compiled = config["trainer"]["precision"] == "bf16-mixed", config["training"]["compile"]
        seconds = (0.1 if start else 0.05) * size / 16 * (self.bf16 if half else 1) * (0.8 if compiled else 1)
        seconds *= (self.slower if parts > 1 else 1) * (1.4 if recomputed else 1)
        found = {"seconds": seconds, "peak": peak, "limit": LIMIT, "loading": 0.04, "validation": 3.0}
        starting = self.starting if compiled else 1.0
        return {"fits": True, **found, "saving": 0.5, "checkpoint": GIB, "starting": starting}


def surveyed(monkeypatch, given: Machine, **data: Any) -> Survey:
    monkeypatch.setattr(planning, "probe", given)
    config = CONFIG | {"data": CONFIG["data"] | data}
    survey = Survey(config, PARTS)
    list(survey.run())
    return survey


@pytest.mark.parametrize(("slope", "batch"), [(10.0, 16), (10.0, 64), (10.0, 80), (20.0, 1000), (450.0, 8)])
def test_the_largest_batch_is_found_by_trying(monkeypatch, slope, batch):
    given = Machine(slope)
    given.refuses = True
    survey = surveyed(monkeypatch, given, batch_size=batch)
    fits = int((LIMIT - 150) // slope)
    with_reserve = int((planning.RESERVE * LIMIT - 150) // slope)
    most = survey.largest()
    assert most is None or with_reserve <= most <= fits
    assert (most is None) == (slope == 450.0)  # too few sizes fit for a line
    base = survey.base(PARTS[1])
    assert base and base.batch_size == max(batch // 2**n for n in range(12) if batch // 2**n <= fits)
    assert {part for part, size in given.asked if size == base.batch_size} == {0, 400}


def test_memory_that_a_single_crop_exceeds_is_an_error(monkeypatch):
    with pytest.raises(ConfigError, match="batch_size=1 does not fit"):
        surveyed(monkeypatch, Machine(slope=2000))


def test_a_failure_of_a_batch_size_that_is_only_tried_ends_no_survey(monkeypatch):
    given = Machine()

    def fails(request: dict[str, Any]) -> dict[str, Any]:
        if request["config"]["data"]["batch_size"] in failing:
            raise ConfigError("a kernel takes no such batch")
        return given(request)

    monkeypatch.setattr(planning, "probe", fails)
    for failing, most in (((8,), 75), ((32,), 31), ((8, 32), None)):
        survey = Survey(CONFIG, PARTS)
        rows = list(survey.run())
        assert [row.result.get("error") for row in rows if row.batch_size in failing] == [
            "a kernel takes no such batch" for _ in failing
        ]
        assert survey.largest() == most and survey.best()
        forecast(survey, 800.0, 0)
    failing = (16,)
    with pytest.raises(ConfigError, match="no such batch"):
        list(Survey(CONFIG, PARTS).run())


def test_options_are_recommended_where_they_save_time(monkeypatch):
    cheap = surveyed(monkeypatch, Machine(starting=3.0))
    assert cheap.best() == {"trainer_precision": "bf16-mixed", "training_compile": True}
    dear = surveyed(monkeypatch, Machine(starting=7.5))  # of 600 steps of 50 ms, compilation saves 6 s
    assert dear.best() == {"trainer_precision": "bf16-mixed"}
    slow = surveyed(monkeypatch, Machine(bf16=3.0))
    assert slow.best() == {}
    given = ["data.root=/a b", "trainer.precision=32-true"]
    assert command(cheap, given, 1) == (
        "codec-train 'data.root=/a b' trainer.precision=bf16-mixed training.compile=true"
    )


@pytest.mark.parametrize(
    ("batch", "slower", "remedy"),
    [
        (120, 2.0, "training.checkpoint_activations=true"),  # of 85 crops that fit
        (120, 1.2, "training.accumulate=2"),
        (200, 1.2, "training.accumulate=4"),  # of 100 crops checkpointing stores too much
    ],
)
def test_the_fastest_option_by_which_the_batch_fits_is_recommended(monkeypatch, batch, slower, remedy):
    given = Machine(slower=slower, bf16=3.0)
    survey = surveyed(monkeypatch, given, batch_size=batch)
    assert min(size for _, size in given.asked) == batch // 2  # for the line of memory, not to train with
    figures = forecast(survey, 800.0, 0)
    assert figures["remedy"] == remedy and f"batch size fits: {remedy}\n" in in_words(figures, 1)
    expected = f"codec-train data.batch_size={batch} {remedy}"
    assert command(survey, [f"data.batch_size={batch}"], 1) == expected
    factor = slower if "accumulate" in remedy else 1.4
    assert figures["seconds_of_steps"] == pytest.approx((400 * 0.05 + 600 * 0.1) * batch / 16 * factor)
    assert figures["pass_steps"] == pytest.approx(800 / (batch * 0.5))
    faster = surveyed(monkeypatch, Machine(slower=slower, starting=0.0), batch_size=batch)
    expected = f"codec-train {remedy} trainer.precision=bf16-mixed training.compile=true"
    assert command(faster, [], 1) == expected
    assert forecast(faster, 800.0, 0)["speedup"] == pytest.approx(1 / (0.5 * 0.8))


def test_checkpointing_and_accumulation_together_fit_where_neither_does(monkeypatch):
    survey = surveyed(monkeypatch, Machine(slope=1000.0, bf16=3.0), batch_size=6)
    both = "training.checkpoint_activations=true training.accumulate=6"
    assert command(survey, [], 1) == f"codec-train {both}"
    tried = [" ".join(overrides(row.options)) for row in survey.rows if row.batch_size == 6]
    single = [f"training.accumulate={parts}" for parts in (2, 3, 6)]
    checkpointed = [f"training.checkpoint_activations=true {one}" for one in single]
    assert list(dict.fromkeys(tried))[:8] == [
        "",
        "training.checkpoint_activations=true",
        *single,
        *checkpointed,
    ]


def test_a_smaller_batch_is_the_last_resort(monkeypatch):
    given = Machine()
    given.refuses = True  # each once, not for each number of parts
    survey = surveyed(monkeypatch, given, batch_size=200)
    words = "statistics mix"
    refused = [row for row in survey.rows if words in row.result.get("error", "")]
    assert [row.options for row in refused] == [
        {"training_checkpoint_activations": True},
        {"training_accumulate": 2},
        {"training_checkpoint_activations": True, "training_accumulate": 2},
    ]
    assert f"data.batch_size={survey.largest()}" in command(survey, ["data.batch_size=200"], 1).split()


def test_checkpointing_is_measured_once_where_the_batch_fits(monkeypatch):
    requests: list[dict[str, Any]] = []
    given = Machine(slope=30.0)
    monkeypatch.setattr(planning, "probe", lambda request: requests.append(request) or given(request))
    survey = Survey(CONFIG, PARTS)
    list(survey.run())
    (request,) = [one for one in requests if one["config"]["training"]["checkpoint_activations"]]
    assert request["start"] == 400 and request["seconds"] == 0  # of the part with most memory, in few steps
    figures = forecast(survey, 800.0, 0)
    assert figures["checkpointing"] == {"more_memory": -0.5 * 30 * 16, "time": pytest.approx(1.4)}
    assert "checkpoint_activations=true: -0.00 GiB, 1.40 times the time" in in_words(figures, 1)
    assert "checkpoint" not in command(survey, [], 1) and figures["remedy"] == ""
    own = CONFIG | {"training": CONFIG["training"] | {"checkpoint_activations": True}}
    survey = Survey(own, PARTS)
    list(survey.run())
    assert not any("training_checkpoint_activations" in row.options for row in survey.rows)


def test_times_and_sizes_of_the_whole_run(monkeypatch):
    found = forecast(surveyed(monkeypatch, Machine(bf16=3.0)), data_seconds=800.0, model_bytes=GIB)
    assert found["seconds_of_steps"] == pytest.approx(400 * 0.05 + 600 * 0.1)
    assert found["seconds_of_validations"] == 10 * 3.0 and found["seconds_of_checkpoints"] == 20 * 0.5
    assert found["disk"] == (2 + 2 + 1) * GIB
    assert found["pass_steps"] == 100 and found["pass_seconds"] == pytest.approx(100 * 0.08)
    assert found["loading_workers"] == 1  # 1.25 times 40 ms for steps of 50 ms
    assert found["options"]["trainer.precision=bf16-mixed"]["speed"] == pytest.approx(1 / 3)
    words = in_words(found, 1)
    assert "1000 steps: 02:00, 00:40 of them validations" in words and "5.00 GiB, " in words
    loading = surveyed(monkeypatch, Machine(bf16=0.1, starting=0.0))
    assert forecast(loading, 800.0, 0)["loading_workers"] == 13  # steps of 4 ms
    waiting = surveyed(monkeypatch, Machine(bf16=3.0))
    waiting.rows = [row._replace(result=row.result | {"loading": 0.2}) for row in waiting.rows]
    assert forecast(waiting, 800.0, 0)["seconds_of_steps"] == pytest.approx(1000 * 0.2)


def test_the_hours_of_a_run_are_its_steps_over_the_printed_speed(monkeypatch):
    monkeypatch.setattr(planning, "probe", Machine(bf16=3.0))
    steps = (160_000, 240_000)
    config = CONFIG | {"trainer": CONFIG["trainer"] | {"max_steps": sum(steps)}}
    survey = Survey(config, [Part("without", 0, steps[0]), Part("with", steps[0], steps[1])])
    rows = list(survey.run())[:2]
    speeds = [float(line(row, config).split()[2]) for row in rows]
    words = in_words(forecast(survey, 800.0, 0), 1)
    total, others = re.findall(r"(\d+):(\d\d):(\d\d)", words.splitlines()[0])
    seconds = [sum(60**n * int(one) for n, one in enumerate(reversed(clock))) for clock in (total, others)]
    assert seconds[0] - seconds[1] == sum(n / speed for n, speed in zip(steps, speeds, strict=True))
    assert words.startswith("400000 steps: 13:20:00, 4:26:40 of them")  # 4000 x 3 s and 8000 x 0.5 s


def test_a_process_that_the_system_kills_had_too_little_memory(monkeypatch):
    monkeypatch.setattr(planning, "CHILD", ("-c", "import os; os.kill(os.getpid(), 9)"))
    assert planning.probe({}) == {"fits": False, "killed": True}
    monkeypatch.setattr(planning, "CHILD", ("-c", "raise ValueError('a bug')"))
    with pytest.raises(ConfigError, match="ended with 1: ValueError: a bug"):
        planning.probe({})


def test_a_gpu_without_memory_is_no_error(tmp_path, wavs, monkeypatch):
    seen = []

    def fail(module, *arguments):
        seen.append((module.global_step, module.place))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(CodecTraining, "training_step", fail)
    monkeypatch.setattr(probing, "refuse_above", lambda limit: None)
    request = {"config": tiny_run(tmp_path, wavs), "start": 7, "steps": 9, "seconds": 0.1}
    assert not probing.measure(request | {"folder": tmp_path})["fits"]
    assert seen == [(7, 7)]  # in the part that is measured, not at the start of the run


def test_a_part_of_one_step_is_timed_with_the_options_of_its_stage(tmp_path, wavs, monkeypatch):
    def fail(module, *arguments):
        (meter,) = [one for one in module.trainer.callbacks if isinstance(one, Meter)]
        meters.append(meter)
        outputs = {"step": SimpleNamespace(losses={})}
        meter.on_train_batch_end(module.trainer, module, outputs, None, 0)
        raise torch.OutOfMemoryError("CUDA out of memory")

    meters: list[Meter] = []
    monkeypatch.setattr(CodecTraining, "training_step", fail)
    monkeypatch.setattr(probing, "refuse_above", lambda limit: None)
    stages = "[{name: a, steps: 4, bottleneck: none}, {name: b, steps: 1, adversarial: true}]"
    options = [f"training.stages={stages}", "trainer.max_steps=null", "training.adversarial_from=0"]
    options += ["optimizer.discriminator_update_probability=0.25", "trainer.val_check_interval=1"]
    config = tiny_run(tmp_path, wavs, *options)
    probing.measure({"config": config, "start": 4, "steps": 1, "seconds": 0.1, "folder": tmp_path})
    assert meters[0].share == 0.25 and len(meters[0].times) == 1
    wall, cpu = meters[0].step_seconds()
    assert cpu > 0 and 0 < wall < 60


TERMINATING = "import os, signal, time; open(%r, 'w').write(str(os.getpid())); "
TERMINATING += "os.kill(os.getppid(), signal.SIGTERM); time.sleep(100)"


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_a_survey_that_is_terminated_leaves_nothing(tmp_path, monkeypatch):
    temporary, number = tmp_path / "temporary", tmp_path / "number"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(planning, "CHILD", ("-c", TERMINATING % str(number)))
    with pytest.raises(SystemExit) as caught, planning_command.exiting_on_signals():
        planning.probe({})
    assert caught.value.code == 143
    assert not list(temporary.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


def test_a_measurement_ends_if_its_parent_ended_during_its_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "CHILD", ("-c", "import sys; sys.exit(sys.argv[1])"))
    with pytest.raises(ConfigError, match=rf"ended with 1: {os.getpid()}$"):
        planning.probe({})
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(probing, "measure", lambda request: {"ended": ended.wait(5)})
    monkeypatch.setattr(sys, "argv", ["probe", str(os.getpid())])  # which is not the parent of this process
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"folder": str(tmp_path)})))
    probing.main()
    assert json.loads((tmp_path / probing.RESULT).read_text()) == {"ended": True}


def test_the_recommended_command_has_the_folder_of_own_options(tmp_path, monkeypatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(
        planning_command, "start_training", lambda task: seen.append(task.keywords["given"]) or 0
    )
    monkeypatch.setattr(sys, "argv", ["codec-plan"])
    assert planning_command.main(["data.root=/a", "--config-dir", str(tmp_path), "data.batch_size=4"]) == 0
    assert planning_command.main(["data.root=/a", "--trust", "one", "--trust", "two"]) == 0
    assert seen[1] == ["data.root=/a", "trust=[one,two]"]
    recommended = shlex.split(command(surveyed(monkeypatch, Machine()), seen[0], 1))
    assert recommended[:3] == ["codec-train", "--config-dir", str(tmp_path)]
    assert recommended[3:5] == ["data.root=/a", "data.batch_size=4"]
    arguments = get_args_parser().parse_args(recommended[1:])
    assert arguments.config_dir == str(tmp_path) and arguments.overrides == recommended[3:]


def test_ctrl_c_prints_the_finished_measurements(tmp_path, wavs, monkeypatch, capsys):
    given = Machine()

    def interrupted(request):
        if len(given.asked) == 3:
            raise KeyboardInterrupt
        return given(request)

    monkeypatch.setattr(planning, "probe", interrupted)
    composed = OmegaConf.create(tiny_run(tmp_path, wavs, "trainer.max_steps=10", "data.batch_size=16"))
    with (tmp_path / "plan.json").open("w") as output:
        assert plan(composed, ["experiment=tiny"], output) == 130
    printed = capsys.readouterr().out
    assert "10 steps: 00:" in printed and "with adversary" in printed
    found = json.loads((tmp_path / "plan.json").read_text())
    assert not found["complete"] and len(found["measurements"]) == 3
    assert not (tmp_path / "run").exists()


def test_several_devices_are_refused(tmp_path, wavs):
    with pytest.raises(ConfigError, match="measures one device"):
        plan(OmegaConf.create(tiny_run(tmp_path, wavs, "trainer.devices=2")), [])


TRAIN = """
import json, sys, time
from omegaconf import OmegaConf
from codec.training.run import train
from codec.training.telemetry import Telemetry
report, ends = Telemetry.on_train_batch_end, []
Telemetry.on_train_batch_end = lambda *given: (report(*given), ends.append(time.process_time()))
train(OmegaConf.create(json.loads(sys.argv[1])))
print(json.dumps(ends))
"""


@pytest.mark.slow
def test_a_training_takes_what_was_measured(tmp_path, wavs, monkeypatch):
    """CPU time, which other load does not stretch, is compared; no bound is absolute."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for each other take CPU time
    options = ["data.batch_size=24", "data.segment_seconds=0.25", "training.adversarial_from=4"]
    options += ["trainer.max_steps=12", "trainer.val_check_interval=10", "trainer.log_every_n_steps=2"]
    options += ["checkpoint.save_every=10"]
    config = tiny_run(tmp_path, wavs, *options)
    survey = Survey(config, [Part("with adversary", 4, 8)], seconds=0.1)
    more, less = (survey.measure(survey.parts[0], size).result for size in (96, 24))
    assert more["peak"] > 1.05 * less["peak"] > 0  # a process after a larger one starts from nothing
    assert less["measured_steps"] >= 2 and less["checkpoint"] > 10_000
    assert less["validation"] > 0 and less["saving"] > 0 and less["loading"] > 0
    assert not (tmp_path / "run").exists()
    ends = json.loads(python(TRAIN, json.dumps(config)).splitlines()[-1])
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/discriminator")]
    assert less["peak"] / GIB == pytest.approx(
        max(float(row["speed/peak_memory_gib"]) for row in rows), rel=0.15
    )
    real = (ends[9] - ends[6]) / 3  # after three steps with the adversary, before the validation
    assert real / 1.5 < less["cpu_seconds"] < 1.5 * real
    assert less["cpu_seconds"] <= 1.1 * less["seconds"]
    assert all(float(row["speed/data_wait"]) <= 1 for row in rows)  # a validation is no waiting time
    assert float(rows[-1]["speed/audio_hours"]) == pytest.approx(12 * 24 * 0.25 / 3600, rel=1e-3)
