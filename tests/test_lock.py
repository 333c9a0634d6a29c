"""constraints.txt: every extra, and all together, can be installed with it on every supported Python."""

import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OLDEST, AFTER = re.findall(
    r"[(]3, (\d+)[)] <= sys.version_info < [(]3, (\d+)[)]", (ROOT / "Makefile").read_text()
)[0]
PYTHONS = [f"3.{OLDEST}", f"3.{int(AFTER) - 1}"]
BUILT_HERE = ("antlr4-python3-runtime", "libsvm-official", "pesq")  # which have no wheels at all
INSTALLED = {canonicalize_name(found.name): found for found in distributions()}


def locked(python: str | None = None) -> dict[str, set[str]]:
    """Versions by name, several where platforms or Pythons differ; or those for one Python here."""
    versions: dict[str, set[str]] = {}
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    for line in LOCK.read_text().splitlines():
        pin, _, marker = line.partition(" ; ")
        if not (python and marker) or Marker(marker).evaluate(environment):
            name, version = pin.split("==")
            versions.setdefault(canonicalize_name(name), set()).add(version)
    return versions


def declared(*extras: str) -> list[str]:
    """Requirements of the package and of some of its extras."""
    lines = [line for extra in extras for line in EXTRAS[extra]]
    return PROJECT["dependencies"] + [line for line in lines if not line.startswith(PROJECT["name"])]


def test_the_lock_holds_nothing_but_public_versions():
    # A host, a path or a local build (1.0+cpu) would work on the machine that wrote it and nowhere else.
    for line in LOCK.read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9]+(\.[0-9a-z]+)*( ; [a-zA-Z0-9_ .<>=!'()-]+)?", line), line


def test_the_lock_agrees_with_the_declared_dependencies():
    for requirement in map(Requirement, declared(*EXTRAS)):
        pinned = locked().get(canonicalize_name(requirement.name), set())
        assert pinned, f"{requirement.name} is not in constraints.txt: make lock"
        assert all(requirement.specifier.contains(Version(version)) for version in pinned), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_every_locked_version_allows_the_python_that_it_is_locked_for(python):
    # uv, which makes the lock, does not mind upper bounds, and pip does.
    checked = 0
    for name, versions in locked(python).items():
        found = INSTALLED.get(name)
        if found and {found.version} == versions:
            allowed = SpecifierSet(found.metadata["Requires-Python"] or "")
            assert allowed.contains(f"{python}.99"), f"{name} {found.version} is for Python {allowed}"
            checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    "extra",
    [name if name == "oracles" else pytest.param(name, marks=pytest.mark.exhaustive) for name in EXTRAS],
)
def test_pip_finds_what_is_installed_to_be_what_an_extra_needs_under_the_lock(extra):
    absent = {canonicalize_name(Requirement(line).name) for line in declared(extra)} - INSTALLED.keys()
    if absent:
        pytest.skip(f"needs {', '.join(absent)}: pip install -e '.[{extra}]'")
    options = ("--dry-run", "--no-index", "--quiet", "-c", LOCK)
    ran = pip(*options, *declared(extra))
    assert ran.returncode == 0, ran.stderr
    assert "Would install" not in ran.stdout


def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("python", sorted({*PYTHONS} - {sysconfig.get_python_version()}))
def test_all_together_has_wheels_for_another_python(python, tmp_path):
    if "uv" not in INSTALLED:
        pytest.skip("needs uv: pip install uv")
    built = [option for name in BUILT_HERE for option in ("--no-binary", name)]
    command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--only-binary=:all:", *built]
    command += ["--python-version", python, "--target", tmp_path / "there", "-c", LOCK, *declared(*EXTRAS)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if "error sending request" in ran.stderr or "Failed to fetch" in ran.stderr:
        pytest.skip("needs a package registry that can be reached")
    assert ran.returncode == 0, ran.stderr
    planned = dict(re.findall(r"^ \+ (\S+)==(\S+)$", ran.stderr + ran.stdout, re.MULTILINE))
    pins = locked(python)
    assert planned and all(version in pins.get(name, ()) for name, version in planned.items())
