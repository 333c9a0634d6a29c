"""Entry points of the commands. Slow imports follow after the arguments are validated."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import itertools
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codec import __version__
from codec.arguments import parse
from codec.config import CONFIG_DIR, ConfigError, in_quotes
from codec.environment import escape_unprintable
from codec.pretrained import require_model
from codec.stdio import check_pipes, is_pipe

# Values that Hydra's grammar accepts unquoted; others, mostly paths, need quotes.
PLAIN_VALUE = re.compile(r"""[\w\-+.,:/\[\]{}()'"$=*@ ]*""", re.ASCII)
PUNCTUATION = r"[,:=() {}\[\]*'\"]"
LIST_ITEM = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]+?)\s*(?:,|$)""")


def quoted(argument: str) -> str:
    """Quote values that Hydra cannot parse in `key=value` or `key=[value,value]`, such as paths."""
    key, _, value = argument.partition("=")
    if argument.startswith("-"):
        return argument
    items = LIST_ITEM.findall(value[1:-1]) if value[:1] + value[-1:] == "[]" else []
    if items and not any(item[0] in "[{" for item in items):
        return f"{key}=[{','.join(map(quoted_value, items))}]"
    return f"{key}={quoted_value(value)}" if value else argument


def quoted_value(value: str) -> str:
    """Quote a value if Hydra cannot parse it and it is no list, mapping or interpolation."""
    if value[0] in "'\"[{$":
        return value
    plain = PLAIN_VALUE.fullmatch(value)
    return value if plain and not (os.sep in value and re.search(PUNCTUATION, value)) else in_quotes(value)


def train() -> None:
    """Train a codec: `codec-train data.root=/path/to/wavs`; options are Hydra overrides."""
    if "--version" in sys.argv[1:]:
        print(f"codec-train {__version__}")
        return
    # Spinning threads make a busy machine ten times slower and an idle one no faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(report_errors(start_training))


def start_training() -> int:
    """Parse the command line with Hydra; train once or for each run of a sweep; returns the exit status."""
    import hydra

    from codec.overrides import check_names

    sys.argv[1:] = map(quoted, sys.argv[1:])
    check_names(sys.argv[1:])
    if {"-m", "--multirun"} & set(sys.argv):
        from codec.ray_launcher import RayLauncher
        from codec.sweep import Sweep

        Sweep.install()
        RayLauncher.install()
        # Flags first: Hydra's parser rejects overrides on both sides of a flag.
        overrides = [argument for argument in sys.argv[1:] if argument not in ("-m", "--multirun")]
        named = any(argument.startswith("name=") for argument in overrides)
        sys.argv[1:] = ["-m", *overrides, *([] if named else ["name=sweep"])]
    status = 0

    def job(config: Any) -> None:
        nonlocal status
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        def run() -> int:
            check_roots(config)
            from codec.run import train as run

            return run(config)

        if HydraConfig.get().mode is RunMode.MULTIRUN:
            from codec.sweep import recorded

            recorded(Path(config.run_dir), run)
        else:
            status = report_errors(run)

    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")(job)()
    return status


def check_roots(config: Any) -> None:
    """Raise DataError for a missing data folder, before Lightning is imported."""
    data: Any = config.get("data") or {}
    root = data.root if "root" in data else None  # `in` is false for a missing value
    if isinstance(root, str) and data.get("generate") is None:
        from codec.index import require_folder

        require_folder(root)


def evaluate() -> None:
    """Score codecs on recordings: `codec-evaluate runs/tiny data.root=FOLDER`."""
    # As in `train`; inherited by subprocesses.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run_command("evaluate", "codec.evaluation.comparison")


def report() -> None:
    """Compare finished runs on one page: `codec-report runs/sweep`."""
    options = parse("report")

    def run() -> int:
        from codec.evaluation.report import report as write

        output = options.output or options.folders[0] / "report"
        choices = {"clips": options.clips, "seconds": options.seconds, "evaluation": options.evaluation}
        command = shlex.join(["codec-report", *sys.argv[1:]])
        print(write(options.folders, output, **choices, command=command))
        return 0

    sys.exit(report_errors(run))


def doctor() -> None:
    """Check a folder of recordings for faults: `codec-doctor FOLDER`."""
    run_command("doctor", "codec.doctor")


def export() -> None:
    """Export a codec for other software and verify it: `codec-export MODEL --to onnx -o DIR`."""
    run_command("export", "codec.export.export")


def stream() -> None:
    """Stream audio through a codec: `codec-stream runs/tiny in.wav -o out.wav`."""
    run_command("stream", "codec.live")


def encode() -> None:
    """Encode recordings to a token dataset: `codec-encode MODEL FOLDER -o TOKENS`."""
    run_command("encode", "codec.tokens.encoding")


def decode() -> None:
    """Decode a token dataset to wavs: `codec-decode MODEL TOKENS -o WAVS`."""
    run_command("decode", "codec.decoding")


def export_tokens() -> None:
    """Convert a token dataset for another library: `codec-export-tokens TOKENS --to hf -o FOLDER`."""
    run_command("export-tokens", "codec.tokens.exports")


def compress() -> None:
    """Compress a recording: `codec-compress MODEL in.wav -o out.codec`."""
    run_command("compress", "codec.bitstream.commands", "compress_main")


def decompress() -> None:
    """Decompress a file to a wav: `codec-decompress MODEL in.codec -o out.wav`."""
    run_command("decompress", "codec.bitstream.commands", "decompress_main")


def truncate() -> None:
    """Cut a compressed file to its first stages: `codec-truncate IN -o OUT --num-quantizers 2`."""
    run_command("truncate", "codec.bitstream.cutting")


def fit_entropy() -> None:
    """Fit entropy tables, for smaller compressed files: `codec-fit-entropy MODEL FOLDER`."""
    run_command("fit-entropy", "codec.bitstream.commands", "fit_main")


def run_command(command: str, module: str, function: str = "main") -> None:
    """Import a module and run its `function` on the arguments; also handles Ctrl-C during the import.

    The import, with torch, follows only after the arguments are validated and the inputs exist.
    """
    options = parse(command)

    def run() -> int:
        check_inputs(options)
        messages = sys.stderr if is_pipe(getattr(options, "output", None)) else sys.stdout
        with contextlib.redirect_stdout(messages):
            return getattr(importlib.import_module(module), function)(sys.argv[1:])

    sys.exit(report_errors(run))


def check_inputs(options: argparse.Namespace) -> None:
    """Raise FileNotFoundError or DataError for a missing model, folder or file."""
    models: list[str | Path] = [options.model] if "model" in options else []
    inputs: list[str | Path] = []
    for name in ("folder", "inputs", "input", "recording", "compressed", "tokens"):
        given = getattr(options, name, None) or []
        inputs += given if isinstance(given, list) else [given]
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
    if os.path.lexists(path):
        return
    from codec.index import require_folder
    from codec.inventory import EXTENSIONS, DataError

    if os.path.splitext(path)[1].lower() in {*EXTENSIONS, ".codec", ".npy"}:
        raise DataError(f"{path}: no such file")
    require_folder(path)


def report_errors(command: Callable[[], int]) -> int:
    """Run a command; print user errors and return status 2 instead of a traceback."""
    try:
        logging.captureWarnings(True)
        escape_unprintable()
        from codec.files import FileError
        from codec.inventory import DataError

        try:
            status = command()
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # from `head`, for example; prevents another flush at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except (ConfigError, DataError, FileError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except RecursionError:  # from Python's recursive walk over folders and their parents
            print("error: a path, or what a file describes, is nested too deeply", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


COMMANDS = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(train, evaluate, report, doctor, encode, decode, export_tokens),
        *(compress, decompress, truncate, fit_entropy, stream, export),
    )
}


def main() -> None:
    """Run `codec COMMAND ...` as `codec-COMMAND ...`."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        sys.argv = [f"codec-{command}", *arguments]
        COMMANDS[command]()
    elif command in ("-h", "--help"):
        print("codec COMMAND ..., or codec-COMMAND ...; codec COMMAND --help says more\n")
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
