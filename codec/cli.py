"""The commands, one function each. Hydra and Lightning are imported only by those that train."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codec.config import CONFIG_DIR, ConfigError, in_quotes
from codec.environment import escape_unprintable

# What Hydra's grammar reads as it is; other values, most of them paths, have to be quoted.
PLAIN_VALUE = re.compile(r"""[\w\-+.,:/\[\]{}()'"$=*@ ]*""", re.ASCII)
PUNCTUATION = r"[,:=() {}\[\]*'\"]"
LIST_ITEM = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]+?)\s*(?:,|$)""")


def quoted(argument: str) -> str:
    """Quote what Hydra cannot read in `key=value` or `key=[value,value]`: paths and odd characters."""
    key, _, value = argument.partition("=")
    if argument.startswith("-"):
        return argument
    items = LIST_ITEM.findall(value[1:-1]) if value[:1] + value[-1:] == "[]" else []
    if items and not any(item[0] in "[{" for item in items):
        return f"{key}=[{','.join(map(quoted_value, items))}]"
    return f"{key}={quoted_value(value)}" if value else argument


def quoted_value(value: str) -> str:
    """Quote a value if Hydra cannot read it as it is, and it is no list, mapping or interpolation."""
    if value[0] in "'\"[{$":
        return value
    plain = PLAIN_VALUE.fullmatch(value)
    return value if plain and not (os.sep in value and re.search(PUNCTUATION, value)) else in_quotes(value)


def train() -> None:
    """Train a codec: `codec-train data.root=/path/to/wavs`, every option a Hydra override."""
    # Threads that spin while they wait make a busy machine ten times slower, a free one no faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(report_errors(start_training))


def start_training() -> int:
    """Let Hydra read the command line and train, once or for each run of a sweep; the exit status."""
    import hydra

    from codec.overrides import check_names

    sys.argv[1:] = map(quoted, sys.argv[1:])
    check_names(sys.argv[1:])
    if {"-m", "--multirun"} & set(sys.argv):
        from codec.ray_launcher import RayLauncher
        from codec.sweep import Sweep

        Sweep.install()
        RayLauncher.install()
        # First, because Hydra's parser reads no overrides on both sides of a flag.
        overrides = [argument for argument in sys.argv[1:] if argument not in ("-m", "--multirun")]
        named = any(argument.startswith("name=") for argument in overrides)
        sys.argv[1:] = ["-m", *overrides, *([] if named else ["name=sweep"])]
    status = 0

    def job(config: Any) -> None:
        nonlocal status
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from codec.run import train as run

        if HydraConfig.get().mode is RunMode.MULTIRUN:
            from codec.sweep import recorded

            recorded(Path(config.run_dir), lambda: run(config))
        else:
            status = report_errors(lambda: run(config))

    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")(job)()
    return status


def evaluate() -> None:
    """Code recordings with codecs and score the result: `codec-evaluate runs/tiny data.root=FOLDER`."""
    # As in `train`; also for the processes that it starts.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def run() -> int:
        from codec.evaluation.comparison import main

        return main(sys.argv[1:])

    sys.exit(report_errors(run))


def report() -> None:
    """Compare finished runs on one page: `codec-report runs/sweep`."""
    parser = argparse.ArgumentParser(prog="codec-report", description=report.__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="runs, or folders of runs")
    parser.add_argument("-o", "--output", type=Path, help="where to write; default FOLDER/report")
    parser.add_argument("--clips", type=int, default=3, help="files to listen to; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each clip; default: %(default)s")
    parser.add_argument(
        "--evaluation",
        default="evaluation",
        help="folder in each run, as codec-evaluate writes; default: %(default)s",
    )
    options = parser.parse_args()
    output = options.output or options.folders[0] / "report"

    def run() -> int:
        from codec.evaluation.report import report as write

        print(
            write(
                options.folders,
                output,
                clips=options.clips,
                seconds=options.seconds,
                evaluation=options.evaluation,
            )
        )
        return 0

    sys.exit(report_errors(run))


def doctor() -> None:
    """Say what is wrong with a folder of recordings: `codec-doctor FOLDER`."""
    run_command("codec.doctor")


def export() -> None:
    """Write a codec for other software, verified there: `codec-export MODEL --to onnx -o DIR`."""
    run_command("codec.export.export")


def stream() -> None:
    """Hear a codec at work: `codec-stream runs/tiny in.wav -o out.wav`."""
    run_command("codec.live")


def encode() -> None:
    """Encode recordings to a token dataset: `codec-encode MODEL FOLDER -o TOKENS`."""
    run_command("codec.tokens.encoding")


def decode() -> None:
    """Turn a token dataset into wavs: `codec-decode MODEL TOKENS -o WAVS`."""
    run_command("codec.decoding")


def export_tokens() -> None:
    """Write a token dataset as another library reads it: `codec-export-tokens TOKENS --to hf -o FOLDER`."""
    run_command("codec.tokens.exports")


def compress() -> None:
    """Write a recording as a small file: `codec-compress MODEL in.wav -o out.codec`."""
    run_command("codec.bitstream.commands", "compress_main")


def decompress() -> None:
    """Write a compressed file as a wav: `codec-decompress MODEL in.codec -o out.wav`."""
    run_command("codec.bitstream.commands", "decompress_main")


def truncate() -> None:
    """Cut a compressed file to its first stages: `codec-truncate IN -o OUT --num-quantizers 2`."""
    run_command("codec.bitstream.commands", "truncate_main")


def fit_entropy() -> None:
    """Fit the tables that make compressed files smaller: `codec-fit-entropy MODEL FOLDER`."""
    run_command("codec.bitstream.commands", "fit_main")


def run_command(module: str, function: str = "main") -> None:
    """Run what a module makes of the arguments; Ctrl-C while it is imported is an interruption, too."""
    sys.exit(report_errors(lambda: getattr(importlib.import_module(module), function)(sys.argv[1:])))


def report_errors(command: Callable[[], int]) -> int:
    """Run a command; what a user can mend becomes a message and status 2, not a traceback."""
    try:
        logging.captureWarnings(True)
        escape_unprintable()
        from codec.files import FileError
        from codec.inventory import DataError

        try:
            return command()
        except (ConfigError, DataError, FileError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except RecursionError:  # Python's own walk over folders and their parents
            print("error: a path, or what a file describes, is nested too deeply", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
