"""What continuous integration asks for: every library is there, nothing is skipped, nothing warns."""

import os
import subprocess
import tomllib
import warnings
from pathlib import Path

import pytest
import torch  # noqa: F401  here, for pytester makes its runs forget what they import, and torch cannot start twice
from ci import OPTION
from packaging.requirements import Requirement

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parent.parent


def outcomes(pytester, *options: str) -> dict[str, int]:
    """What pytest counts, run with this project's settings on the files in `pytester`'s folder."""
    settings = ("-c", ROOT / "pyproject.toml", "--rootdir", pytester.path)
    with warnings.catch_warnings():  # with its own filters alone: with --ci those of this run make errors
        warnings.resetwarnings()
        return pytester.runpytest("-p", "ci", *settings, *options, pytester.path).parseoutcomes()


SKIPPED = """
import pytest

def test_whole(): pass
def test_called(): pytest.skip("no such library")
def test_imported(): pytest.importorskip("no_such_library_at_all")
@pytest.mark.skipif(True, reason="no such program")
def test_marked(): pass
@pytest.fixture
def library(): pytest.skip("no such library")
def test_fixture(library): pass
def test_of_a_gpu(): pytest.skip("needs a GPU")
@pytest.mark.skipif(True, reason="needs another operating system: Windows has no fcntl")
def test_of_a_system(): pass
@pytest.mark.xfail(strict=True, reason="known")
def test_expected(): raise ValueError
"""


def test_what_is_skipped_for_want_of_a_package_fails(pytester):
    pytester.makepyfile(SKIPPED)
    counts = {"passed": 1, "xfailed": 1}
    assert outcomes(pytester) == {**counts, "skipped": 6}
    # By a mark or a fixture: before the test itself, which is called an error.
    judged = {**counts, "skipped": 2, "failed": 2, "errors": 2}
    assert outcomes(pytester, OPTION) == judged


@pytest.mark.slow
def test_it_fails_in_the_workers_of_xdist_too(pytester, monkeypatch):
    monkeypatch.setattr(pytester, "_method", "subprocess")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makepyfile(SKIPPED)
    judged = {"passed": 1, "xfailed": 1, "skipped": 2, "failed": 2, "errors": 2}
    assert outcomes(pytester, OPTION, "-n1") == judged


def test_a_file_that_is_skipped_for_want_of_a_package_fails(pytester):
    pytester.makepyfile("import pytest; pytest.importorskip('no_such_library_at_all'); test_nothing = print")
    assert outcomes(pytester) == {"skipped": 1}
    assert outcomes(pytester, OPTION) == {"errors": 1}


WARNING = """
import os, warnings
from torch.utils.data import DataLoader

def test_warning(): warnings.warn("of a newer version")
def test_one_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert list(DataLoader([1, 2], num_workers=2)) == [1, 2]
"""


def test_warnings_fail_where_versions_are_locked_but_for_a_machine_of_one_core(pytester):
    pytester.makepyfile(WARNING)
    assert outcomes(pytester) == {"passed": 2, "warnings": 1}
    assert outcomes(pytester, OPTION) == {"passed": 1, "failed": 1}


def test_these_tests_have_the_option(request):
    assert request.config.pluginmanager.has_plugin("ci") and request.config.getoption(OPTION) in (True, False)


def test_oracles_are_all_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (ours,) = [one for one in map(Requirement, extras["oracles"]) if one.name == "neural-audio-codec"]
    assert ours.extras | {"oracles"} == extras.keys()


def test_ci_installs_the_oracles_and_allows_no_skips(tmp_path):
    for name in ("chromium", "make", "uv"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    words = subprocess.run(
        ["sh", ROOT / ".ci/run"], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "newest" in words
    planned = subprocess.run(
        ["make", "--dry-run", "--always-make", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert ".[oracles]" in planned
    assert any("pytest" in line and OPTION in line.split() for line in planned.splitlines())
