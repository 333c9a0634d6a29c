"""What the folders and files promise: who imports whom, how long things get, which names stay."""

import ast
import graphlib
import tomllib
from pathlib import Path

import numpy as np
import pytest

import codec

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "codec"
FILE_LINES, FUNCTION_LINES = 300, 60  # at most
USUAL_FILE_LINES, USUAL_FUNCTION_LINES = 250, 35  # 95 % have no more

# An import goes down this list, never up. Names on one line do not know each other; `losses`, `tokens`, …
# are folders, whose files may.
LAYERS = """
    __main__
    codec commands
    testing
    sweep
    training
    evaluation
    tokens
    bitstream
    export
    huggingface
    model
    data losses pretrained
    autoencoders discriminators metrics quantizers
    codebooks
    layers
    audio
    system
    config
"""
ROWS = {name: row for row, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()}

# What is slow to import, or may have to be replaced one day, is known to few.
CONFINED = {
    "lightning": {"training", "data.module"},
    "hydra": {"training.finetuning", "training.trainer", "training.overrides", "commands.train", "sweep"},
    "omegaconf": {"training", "sweep"},
    "matplotlib": {"evaluation.pictures"},
    "torchaudio": set(),  # has no releases after 2.11, and fits one torch only
    "soundfile": {"audio.reading", "audio.writing"},
    "soxr": {"audio.conversion", "audio.reading"},
    "pyarrow": {"tokens", "system.arrow"},
    "fsspec": {"system.address"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
MODULES = pytest.mark.parametrize("module", TREES)


def imports(module: str) -> set[str]:
    """Every module that a module imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}, line {node.lineno}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names} - {"codec.__version__"}
            inner = names & TREES.keys()
            found |= inner or ({node.module} if names else set())
    return found


def own_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "codec"}


def block(module: str) -> str:
    """The name in `ls codec/` that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def test_every_file_and_folder_has_a_layer():
    assert ROWS.keys() == {block(module) for module in TREES}


@MODULES
def test_imports_go_down(module):
    here = block(module)
    upward = {name for name in own_imports(module) if block(name) != here and ROWS[block(name)] <= ROWS[here]}
    assert not upward, f"{module} imports {upward}, not below it"


def test_no_import_cycles():
    graph = {module: own_imports(module) for module in TREES if module != "codec"}
    tuple(graphlib.TopologicalSorter(graph).static_order())


@MODULES
def test_heavy_or_replaceable_libraries_are_known_to_few(module):
    for library in {name.split(".")[0] for name in imports(module)} & CONFINED.keys():
        allowed = {block(module), module.removeprefix("codec.")} & CONFINED[library]
        assert allowed, f"{module} imports {library}"


@MODULES
def test_files_and_functions_are_short_enough_to_read(module):
    lines = len(FILES[module].read_text().splitlines())
    assert lines <= FILE_LINES, f"{FILES[module]} has {lines} lines: split it"
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{module}.{node.name} has {length} lines: split it"


def test_most_files_and_functions_are_short():
    files = [len(path.read_text().splitlines()) for path in FILES.values()]
    functions = [
        (node.end_lineno or 0) - node.lineno + 1
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert np.percentile(files, 95) <= USUAL_FILE_LINES
    assert np.percentile(functions, 95) <= USUAL_FUNCTION_LINES


def test_the_package_has_few_entries():
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "configs"}
    assert len(entries) <= 26, sorted(entries)


def test_a_config_group_of_parts_has_a_room_of_its_name():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
    plural = {group + ("es" if group == "loss" else "s") for group in groups}
    assert plural & rooms == {"autoencoders", "quantizers", "discriminators", "losses"}


def test_public_names():
    assert set(codec.__all__) == {"Codec", "build_codec", "load"}
    assert {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} == {
        *("autoencoder", "quantizer", "discriminator", "loss", "optimizer"),
        *("data", "trainer", "logger", "sweep", "search", "experiment", "conditioning"),
        "teacher",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"codec": "codec.commands.main:main"} | {
        f"codec-{name}": f"codec.commands.main:{name.replace('-', '_')}"
        for name in (
            *(
                "train",
                "plan",
                "evaluate",
                "report",
                "doctor",
                "stream",
                "export",
                "encode",
                "decode",
                "export-tokens",
                "features",
            ),
            *("compress", "decompress", "truncate", "fit-entropy"),
        )
    }
    assert project["version"] == codec.__version__


def callers(*names: str) -> set[str]:
    """Functions of the package that call one of these, a method or a function, as `file.function`."""
    found = set()
    for module, tree in TREES.items():
        for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if any(f".{called}".endswith(f".{name}") for name in names):
                    found.add(f"{module.removeprefix('codec.')}.{function.name}")
    return found


def test_one_function_is_the_only_way_from_a_file_to_a_model():
    # Configs that the user wrote may name any class. A file's are built by `assemble`, or by nobody.
    assert callers("build_codec") == {
        "model.saving.assemble",  # from files, through the allow-list
        "model.saving.build_empty",
        "training.build.build_parts",  # from the config that Hydra composed
        "export.graphs.without_normalization",  # again, a codec that was built
    }
    assert callers("build") == {
        *("config.build", "model.saving.build_codec"),
        *("config.complete", "training.build.build_parts", "training.trainer.build_trainer"),
        *("sweep.bitrate.measure", "sweep.bitrate.bitrate_of", "sweep.sweeper.search"),
        *("training.loggers.build_logger", "training.stages.settle"),
        "training.finetuning.adopt",  # a conditioning, from the composed config
    }
    assert callers("assemble") == {"model.saving.load", "huggingface.convert.load"}
    assert callers("read_directory", "read_checkpoint") == {"model.saving.load"}
    assert callers("open_checkpoint") == {
        "model.saving.read_checkpoint",
        *(f"training.resume.{name}" for name in ("checkpoint_step", "check_same_model")),  # compare
        *(f"training.resume.{name}" for name in ("check_same_parts", "check_same_stages")),
        "training.inheritance.inherit_discriminator",
    }


def test_files_are_read_where_their_bounds_are():
    assert callers("torch.load") == {"model.saving.open_checkpoint", "training.checkpoints.load_checkpoint"}
    assert callers("load_file") == {"model.untrusted.read_weights"}
    assert callers("safe_open") == {"model.untrusted.read_weights", "bitstream.tables.load_tables"}
    assert callers("yaml.load", "safe_load", "unsafe_load", "full_load") == {"model.untrusted.read_yaml"}
    assert callers("pickle.load", "pickle.loads") == {"testing.check_source"}  # of its own pickle
