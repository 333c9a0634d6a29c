"""What is installed: the wheel, the commands from any folder, and what an import costs."""

import ast
import importlib
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from codec.pretrained import pretrained_names

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
SOURCES = sorted((ROOT / "codec").rglob("*.py"))
OPTIONAL = {
    "litdata": "oracles",
    "optuna": "sweep",
    "pyarrow": "tokens",
    "ray": "ray",
    "torch_pesq": "perceptual",
    "transformers": "export",
}
SLOW_TO_IMPORT = ("torch", "lightning", "hydra", "omegaconf", "matplotlib")


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """Output of a command that knows nothing of this checkout but its own interpreter."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    ran = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == status, f"{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_imports(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(module)


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("codec", SLOW_TO_IMPORT),
        ("codec.model.codec", SLOW_TO_IMPORT[1:]),
        (
            "codec.commands.main, codec.config, codec.commands.doctor, codec.data.scan, codec.audio.reading, "
            "codec.audio.synthetic",
            SLOW_TO_IMPORT,
        ),
    ],
)
def test_an_import_brings_only_what_it_needs(modules, absent, tmp_path):
    script = f"import sys, {modules}; print(*set({absent}) & sys.modules.keys())"
    assert run(sys.executable, "-c", script, cwd=tmp_path).split() == []


def test_every_imported_library_is_a_declared_dependency():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    for path in SOURCES:
        for name in imported(ast.parse(path.read_text())) - sys.stdlib_module_names - {"codec"}:
            if name in OPTIONAL:  # imported where it is used, and asked for in words when it is missing
                extra = PROJECT["optional-dependencies"][OPTIONAL[name]]
                assert canonicalize_name(name) in {
                    canonicalize_name(Requirement(line).name) for line in extra
                }
                continue
            assert declared & {canonicalize_name(p) for p in providers[name]}, f"{path.name} imports {name}"


def imported(tree: ast.Module) -> set[str]:
    """Names of the top-level packages that a module imports."""
    nodes = list(ast.walk(tree))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0]
        for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    }


PRETRAINED_FILES = ("README.md", "config.yaml", "entropy.safetensors", "model.safetensors")
SCRIPTS = [path for path in sorted((ROOT / "scripts").glob("*.py")) if "__main__" in path.read_text()]


HELP = """
import contextlib, io, runpy, sys
for script in sys.argv[1:]:
    sys.argv, sys.path[0] = [script, "--help"], script.rpartition("/")[0]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            assert not ended.code, script
    assert shown.getvalue().strip(), script
"""


def test_scripts_run_from_any_folder(tmp_path):
    for script in SCRIPTS:
        assert f"python scripts/{script.name}" in (ast.get_docstring(ast.parse(script.read_text())) or "")
    run(sys.executable, "-c", HELP, *SCRIPTS, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_every_yaml(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    inside = {name for name in names if ".dist-info/" not in name}
    assert "codec/configs/train.yaml" in inside
    assert inside == sources | {f"codec/{name}" for name in CONFIGS} | {
        *(
            "codec/py.typed",
            *(f"codec/evaluation/{n}" for n in ("listening.html", "page.css", "report.html")),
        ),
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "codec").glob("*/README.md")),
        *(f"codec/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("README.md")),
        *(f"codec/pretrained/{name}/{file}" for name in pretrained_names() for file in PRETRAINED_FILES),
    }


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a new environment with the wheel in it and this environment's libraries behind it."""
    pytest.importorskip("pip", reason="needs pip to install the wheel")
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    scheme = {"base": str(folder), "platbase": str(folder)}
    scripts, libraries = (Path(sysconfig.get_path(name, "venv", scheme)) for name in ("scripts", "purelib"))
    # A path in a .pth file is searched last, and the .pth files there (the editable install) are not read.
    here = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (libraries / "behind.pth").write_text("\n".join(sorted(here)))
    # What another project may leave beside an installed package is not our config folder.
    (libraries / "configs").mkdir()
    (libraries / "configs" / "train.yaml").write_text("decoy: true\n")
    python = scripts / Path(sys.executable).name
    options = ("--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    return scripts


@pytest.mark.slow
def test_the_installed_commands_work_in_any_folder(installed, tmp_path):
    python = installed / Path(sys.executable).name
    found = run(
        python, "-c", "import codec, codec.config as c; print(codec.__file__, c.CONFIG_DIR)", cwd=tmp_path
    )
    assert all(Path(path).is_relative_to(installed.parent) for path in found.split()) and "decoy" not in found
    choices = ("experiment=tiny", "data.root=wavs", "quantizer.num_quantizers=3")
    printed = run(installed / "codec-train", *choices, "--cfg", "job", "--resolve", cwd=tmp_path)
    assert "_target_: codec.Codec" in printed and "num_quantizers: 3" in printed
    assert "codec-evaluate" in run(installed / "codec-evaluate", "--help", cwd=tmp_path)
    (tmp_path / "wavs").mkdir()
    soundfile.write(tmp_path / "wavs" / "tone.wav", np.sin(np.arange(32000) / 9) / 2, 16000)
    assert "1 usable" in run(installed / "codec-doctor", "wavs", cwd=tmp_path)
    (tmp_path / "wavs" / "broken.wav").write_bytes(b"no audio")
    assert "broken.wav" in run(installed / "codec-doctor", "wavs", cwd=tmp_path, status=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wavs"]
