"""Entry points of the commands. Slow imports follow after the arguments are validated."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import itertools
import os
import sys
from pathlib import Path

from codec import __version__
from codec.commands.errors import report_errors
from codec.commands.parsers import parse
from codec.commands.train import start_training
from codec.config import trusting
from codec.pretrained import require_model
from codec.system.stdio import check_pipes, is_pipe


def train() -> None:
    """Train a codec: `codec-train data.root=/path/to/wavs`; options are Hydra overrides."""
    if "--version" in sys.argv[1:]:
        print(f"codec-train {__version__}")
        return
    # Spinning threads make a busy machine ten times slower and an idle one no faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(report_errors(start_training))


def plan() -> None:
    """Measure the time and memory that a training will take: `codec-plan data.root=/path/to/wavs`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `train`
    run_command("plan", "codec.commands.plan")


def evaluate() -> None:
    """Score codecs on recordings: `codec-evaluate runs/tiny data.root=FOLDER`."""
    # As in `train`; inherited by subprocesses.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run_command("evaluate", "codec.commands.evaluate")


def report() -> None:
    """Compare finished runs on one page: `codec-report runs/sweep`."""
    run_command("report", "codec.commands.report")


def doctor() -> None:
    """Check a folder of recordings for faults: `codec-doctor FOLDER`."""
    run_command("doctor", "codec.commands.doctor")


def export() -> None:
    """Export a codec for other software and verify it: `codec-export MODEL --to onnx -o DIR`."""
    run_command("export", "codec.commands.export")


def stream() -> None:
    """Stream audio through a codec: `codec-stream runs/tiny in.wav -o out.wav`."""
    run_command("stream", "codec.commands.stream")


def encode() -> None:
    """Encode recordings to a token dataset: `codec-encode MODEL FOLDER -o TOKENS`."""
    run_command("encode", "codec.commands.encode")


def features() -> None:
    """Compute a teacher's features of recordings: `codec-features TEACHER FOLDER -o FEATURES`."""
    run_command("features", "codec.commands.features")


def decode() -> None:
    """Decode a token dataset to wavs: `codec-decode MODEL TOKENS -o WAVS`."""
    run_command("decode", "codec.commands.decode")


def export_tokens() -> None:
    """Convert a token dataset for another library: `codec-export-tokens TOKENS --to hf -o FOLDER`."""
    run_command("export-tokens", "codec.commands.export_tokens")


def compress() -> None:
    """Compress a recording: `codec-compress MODEL in.wav -o out.codec`."""
    run_command("compress", "codec.commands.compress", "compress_main")


def decompress() -> None:
    """Decompress a file to a wav: `codec-decompress MODEL in.codec -o out.wav`."""
    run_command("decompress", "codec.commands.compress", "decompress_main")


def truncate() -> None:
    """Cut a compressed file to its first stages: `codec-truncate IN -o OUT --num-quantizers 2`."""
    run_command("truncate", "codec.commands.truncate")


def fit_entropy() -> None:
    """Fit entropy tables, for smaller compressed files: `codec-fit-entropy MODEL FOLDER`."""
    run_command("fit-entropy", "codec.commands.fit_entropy")


def run_command(command: str, module: str, function: str = "main") -> None:
    """Import a module and run its `function` on the arguments; also handles Ctrl-C during the import.

    The import, with torch, follows only after the arguments are validated and the inputs exist.
    """
    options = parse(command)

    def run() -> int:
        check_inputs(options)
        messages = sys.stderr if is_pipe(getattr(options, "output", None)) else sys.stdout
        with contextlib.redirect_stdout(messages), trusting(getattr(options, "trust", ())):
            return getattr(importlib.import_module(module), function)(sys.argv[1:])

    sys.exit(report_errors(run))


def check_inputs(options: argparse.Namespace) -> None:
    """Raise FileNotFoundError or DataError for a missing model, folder or file."""
    models: list[str | Path] = [options.model] if "model" in options else []
    inputs: list[str | Path] = []
    for name in ("folder", "inputs", "input", "recording", "compressed", "tokens"):
        paths = getattr(options, name, None) or []
        inputs += paths if isinstance(paths, list) else [paths]
    words: list[str] = getattr(options, "what", [])  # of codec-evaluate: models, and a folder
    if len(words) > 1:
        *named, folder = sorted(words, key=lambda word: word.startswith("data.root="))
        models += [word for word in named if not os.path.exists(word.removeprefix("hf:"))]
        inputs.append(folder.removeprefix("data.root="))
    check_pipes(inputs, getattr(options, "output", None))
    for model in models:
        require_model(model)
    for path in itertools.filterfalse(is_pipe, inputs):
        require_input(os.path.expanduser(path))


def require_input(path: str) -> None:
    """Raise DataError, as `scan` does, unless the file or folder exists."""
    from codec.data.index import EXTENSIONS, DataError
    from codec.data.roots import is_pattern, require_folder
    from codec.system.address import exists, is_address, without_secret

    without_secret(path)
    if exists(path) or is_pattern(path):
        return
    if not is_address(path) and os.path.splitext(path)[1].lower() in {*EXTENSIONS, ".codec", ".npy"}:
        raise DataError(f"{path}: no such file")
    require_folder(path)


COMMANDS = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(plan, train, evaluate, report, doctor, encode, decode, export_tokens, features),
        *(compress, decompress, truncate, fit_entropy, stream, export),
    )
}


def main() -> None:
    """Run `codec COMMAND ...` as `codec-COMMAND ...`."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        sys.argv = [f"codec-{command}", *arguments]
        if command == "train":  # Lightning starts the other processes of several as this module
            sys.modules["__main__"].__spec__ = importlib.util.find_spec("codec.commands.train_process")
        COMMANDS[command]()
    elif command in ("-h", "--help"):
        print("codec COMMAND ..., or codec-COMMAND ...; help: codec COMMAND --help\n")
        for name, function in COMMANDS.items():
            print(f"  {name:<14} {(function.__doc__ or '').replace('`', '')}")
        print('\nfor bash to complete commands: eval "$(codec --completion)"')
    elif command == "--version":
        print(f"codec {__version__}")
    elif command == "--completion":
        print(f"complete -o default -W '{' '.join(COMMANDS)}' codec")
    else:
        close = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        sys.exit(f"error: codec {command}: there is no such command; {hint}")
