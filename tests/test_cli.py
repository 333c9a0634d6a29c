"""The commands as a user types them."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from codec.cli import quoted

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
        check=False,
    )


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


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("quantizer.num_quantizers=4", 4),
        ("autoencoder.strides=[2,4]", [2, 4]),
        ("data.root=[/a,/b]", ["/a", "/b"]),
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
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.ckpt"))
