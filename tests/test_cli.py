"""The commands as a user types them."""

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from composed import config
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd

import codec
from codec.audio.writing import write_wav
from codec.commands.errors import report_errors
from codec.commands.main import COMMANDS, main
from codec.commands.parsers import PARSERS
from codec.commands.train import quoted
from codec.model.saving import build_codec


def run(command: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return programs.run([sys.executable, "-m", "codec", command, *arguments], cwd=folder)


@pytest.mark.parametrize(
    "path",
    [
        "/data/my wavs",
        "/data/it's",
        "/data/épée/日本",
        "/data/a,b",
        "/data/(x)",
        "/data/[x]",
        "/data/k=v",
        "/data/~old",
        "runs/epoch=0-step=8.ckpt",
        "/plain/path-1.0_x",
        "C:\\wavs\\mine",
        "/data/\\odd",
        '/data/"q"',
    ],
)
def test_any_path_survives_hydra_s_grammar(path):
    override = OverridesParser.create().parse_override(quoted(f"data.root={path}"))
    assert override.value() == path
    assert not override.is_sweep_override()
    for others in (["/c"], ["~/c", "/a#b&c", path]):
        if "," not in path:  # which begins the next item
            override = OverridesParser.create().parse_override(
                quoted(f"data.root=[{','.join([path, *others])}]")
            )
            assert override.value() == [path, *others]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("quantizer.num_quantizers=4", 4),
        ("autoencoder.strides=[2,4]", [2, 4]),
        ("data.root=[/a,/b]", ["/a", "/b"]),
        ("data.root=['/a, b',/c (d)]", ["/a, b", "/c (d)"]),
        ("training.stages=[{name:a,steps:9},{name:b}]", [{"name": "a", "steps": 9}, {"name": "b"}]),
        ("data.root=[]", []),
        ("resume=null", None),
        ("optimizer.generator.lr=3e-4", 3e-4),
        ("loss.weights={mel:1}", {"mel": 1}),
        ("quantizer=rvq", "rvq"),
        ("data.root='/quoted already'", "/quoted already"),
    ],
)
def test_values_that_are_no_paths_keep_their_meaning(argument, value):
    parsed = OverridesParser.create().parse_override(quoted(argument)).value()
    assert (str(parsed) if isinstance(value, str) else parsed) == value


def test_sweeps_stay_sweeps():
    parser = OverridesParser.create()
    assert parser.parse_override(quoted("quantizer=rvq,fsq")).is_sweep_override()
    assert parser.parse_override(quoted("seed=1,2,3")).is_sweep_override()
    assert parser.parse_override(quoted("data.root=[/a,/b],[/c]")).is_sweep_override()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.root=nowhere"], ["nowhere", "no such folder"]),
        (["data.root=empty"], ["empty"]),
        (["data.root=empty", "quantizer.num_quantisers=4"], ["num_quantisers"]),
        (["data.root=empty", "quantizer=rqv"], ["rqv", "rvq"]),
        (["data.root=empty", "autoencoder.strides=[2,x]"], ["autoencoder.strides: expected list of int"]),
        (["data.root=empty", "trainer.max_steps=1.5"], ["trainer.max_steps: expected int, got 1.5"]),
        ([], ["data.root"]),
    ],
)
def test_a_mistake_gives_a_message_and_no_traceback(tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    result = run("train", *arguments, folder=tmp_path)
    assert result.returncode not in (0, -11)
    for word in words:
        assert word in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "runs").glob("*")) and not list(tmp_path.rglob("*.log"))


@pytest.mark.slow
def test_help_begins_with_this_project(tmp_path):
    shown = run("train", "--help", folder=tmp_path).stdout
    assert shown.startswith("codec-train: ") and "codec-train data.root=/path/to/wavs " in shown


@pytest.mark.slow
def test_evaluate_takes_a_device_and_names_one_that_is_not_there(tmp_path, wavs):
    build_codec(config("experiment=tiny")["model"]).save(tmp_path / "model")
    for device, message in (("cuda:99", "error: --device cuda:99: "), ("gpu", "error: --device gpu: ")):
        refused = run("evaluate", "model", wavs.name, "--device", device, folder=tmp_path)
        assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr
    done = run("evaluate", "model", wavs.name, "--device", "cpu", "--max-files", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"model/evaluation-{wavs.name}/summary.json").is_file()


SMALL = [
    "experiment=tiny", "data=folder", "data.num_workers=1", "data.batch_size=4", "data.segment_seconds=0.1",
    "autoencoder.encoder_channels=2", "autoencoder.decoder_channels=2", "autoencoder.latent_dim=8",
    "quantizer.num_quantizers=2", "quantizer.codebook.codebook_size=16", "trainer.accelerator=cpu",
    "trainer.max_steps=4", "trainer.val_check_interval=4", "trainer.log_every_n_steps=2", "evaluate=1",
]  # fmt: skip


@pytest.fixture
def wavs(tmp_path) -> Path:
    """Recordings in a folder with everything in its name that a command line can trip over."""
    folder = tmp_path / "mes épées = it's, 日本"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        write_wav(folder / f"{number}.wav", 0.3 * random.standard_normal((1, 16_000), np.float32), 16_000)
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The installed command, in a folder of the user's."""
    installed = Path(sys.executable).with_name("codec-train")
    program = [str(installed)] if installed.is_file() else ["-m", "codec", "train"]
    return programs.run([sys.executable, *program, *SMALL, *arguments], cwd=folder)


@pytest.mark.slow
def test_two_processes_train_through_the_command(tmp_path, wavs):
    options = ["trainer=ddp", "trainer.devices=2", f"data.root={wavs.name}", "name=zwei läufe"]
    result = command(tmp_path, *options)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {wavs.name, "runs"}
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "zwei läufe" and (folder / "evaluation/summary.json").is_file()
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4 and checkpoint["AudioDataModule"] == {"seen": 16}
    with (folder / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert steps == ["2", "4", "4"]
    assert result.stdout.count("starts, to step 4") == 1
    assert "Initializing distributed" not in result.stdout + result.stderr
    assert not list(tmp_path.rglob("*.log"))
    assert codec.load(folder).sample_rate == 16_000
    again = command(tmp_path, *options, "resume=auto", "trainer.max_steps=6")
    assert again.returncode == 0, again.stderr
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.slow
def test_a_sweep_of_several_processes_is_refused_before_it_starts_any(tmp_path, wavs):
    sweep = ["quantizer.dropout=0.5,1.0", "name=two", f"data.root={wavs}", "-m"]
    refused = command(tmp_path, "trainer=ddp", "trainer.devices=2", *sweep)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "would run the whole sweep. Give one command a run instead" in refused.stderr
    assert not list(tmp_path.rglob("*.ckpt"))
    assert command(tmp_path, "trainer.max_steps=1", *sweep).returncode == 0
    runs = {path.name for path in (tmp_path / "runs/two").iterdir()}
    assert runs >= {"quantizer.dropout=0.5", "quantizer.dropout=1.0"}


def test_deep_nesting_is_reported_as_an_error(capsys, tmp_path):
    deep = tmp_path / ("a/" * 1500)
    assert report_errors(lambda: deep.mkdir(parents=True) or 0) == 2
    assert capsys.readouterr().err == "error: a path or the content of a file is nested too deeply\n"


DOWNLOAD = "`hf download facebook/encodec_24khz --local-dir encodec_24khz`"


def python(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


SLOW = {"torch", "lightning", "hydra", "numpy", "soundfile"}
STARTED = f"""
import sys
from codec.commands.main import main
try:
    main()
finally:
    print(sorted({SLOW} & set(sys.modules)))
"""


@pytest.mark.parametrize("command", [*(name for name in COMMANDS if name != "train"), ""])
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_slow(command, argument):
    done = python("-c", STARTED, *filter(None, [command, argument]))
    assert done.returncode == 0 and done.stdout.endswith("\n[]\n"), done.stderr
    name = f"codec-{command}" if command else "codec"
    expected = f"{name} {codec.__version__}\n" if argument == "--version" else name
    assert expected in done.stdout


def test_the_version_of_training_is_ours():
    done = python("-c", STARTED, "train", "--version")
    assert done.stdout == f"codec-train {codec.__version__}\n[]\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "encode facebook/encodec_24khz . -o t",
            DOWNLOAD,
        ),
        (
            "evaluate hf:facebook/encodec_24khz .",
            DOWNLOAD,
        ),
        ("encode nowhere . -o t", "nowhere: no such model directory or checkpoint"),
        ("encode {model} nowhere -o t", "no such folder: "),
        ("encode {model} nowhere.wav -o t", "nowhere.wav: no such file"),
        ("compress {model} nowhere.wav -o t", "nowhere.wav: no such file"),
        ("evaluate {model} data.root=nowhere", "no such folder: "),
        ("decode {model} nowhere -o t", "no such folder: "),
        ("train data.root=nowhere", "error: data.root: no such folder: "),
        ("train data.root=[{model},nowhere]", "no such folder: "),
        (
            "train data.root={model} data.degradation.noise.root=nowhere",
            "error: data.degradation.noise.root: no such folder: ",
        ),
        ("train data.root={model} resume=nowhere.ckpt", "resume: there is no checkpoint nowhere.ckpt"),
        ("train data.root={model} weights=nowhere", "nowhere: no such model directory or checkpoint"),
        ("plan data.root=nowhere --json", "no such folder: "),
    ],
)
def test_what_is_not_there_is_missed_before_torch_is_imported(tmp_path, arguments, words):
    done = python("-c", STARTED, *arguments.format(model=tmp_path).split())
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert not {"torch", "lightning"} & set(re.findall(r"\w+", done.stdout))


@pytest.mark.parametrize("started", [None, "codec.__main__"])
def test_the_other_processes_of_a_training_are_started_as_trainings(monkeypatch, started):
    spec = importlib.util.find_spec(started) if started else None
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setitem(COMMANDS, "train", lambda: None)
    monkeypatch.setattr(sys, "argv", ["codec", "train", "--version"])
    main()
    _, *arguments = _basic_subprocess_cmd()
    assert python(*arguments).stdout == f"codec-train {codec.__version__}\n"


def test_a_file_is_cut_to_fewer_stages_without_torch(tmp_path):
    (tmp_path / "a.codec").write_bytes(b"no such file")
    done = python("-c", STARTED, "truncate", str(tmp_path / "a.codec"), "-o", "b", "--num-quantizers", "1")
    assert done.returncode == 2 and "a.codec" in done.stderr and "torch" not in done.stdout


def test_commands_are_listed_in_words_and_a_typo_is_mended():
    listed = python("-m", "codec", "--help").stdout
    for name, function in COMMANDS.items():
        assert f"  {name:<14} {(function.__doc__ or '').replace('`', '')}\n" in listed
    assert python("-m", "codec").stdout == listed
    done = python("-m", "codec", "comprss")
    assert done.returncode == 1 and done.stderr == (
        "error: codec comprss: there is no such command; did you mean compress?\n"
    )
    assert f"-W '{' '.join(COMMANDS)}' codec" in python("-m", "codec", "--completion").stdout


def test_what_the_parsers_say_is_what_the_modules_have():
    from codec.export.formats import FORMATS
    from codec.metrics.process import TIMEOUT
    from codec.tokens.exports import EXPORTS
    from codec.tokens.files import LAYOUTS
    from codec.tokens.sources import Settings

    def action(command: str, name: str):
        return next(action for action in PARSERS[command]()._actions if action.dest == name)

    defaults = Settings()
    for name in ("batch_seconds", "shard_hours", "workers", "beam", "downmix", "num_quantizers"):
        assert action("encode", name).default == getattr(defaults, name)
    assert (
        action("encode", "format").choices == LAYOUTS
        and action("encode", "format").default == defaults.layout
    )
    assert set(action("export", "to").choices) == set(FORMATS)
    assert set(action("export-tokens", "to").choices) == set(EXPORTS)
    assert action("evaluate", "metric_timeout").default == TIMEOUT
