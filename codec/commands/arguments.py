"""Command-line arguments that commands share."""

from __future__ import annotations

import argparse

from codec import __version__
from codec.commands import descriptions as about
from codec.commands.paths import local_path

MODEL = "run folder, saved codec or checkpoint"
BEAM = "paths of the codebook search; default: %(default)s, greedy"
DEVICE = "cpu, cuda, cuda:1, mps, ...; default: a GPU if there is one"
CONDITION = "condition of a codec with conditions, e.g. clean; default: its first"
STDIN, STDOUT = "- for standard input", "- for standard output"
TRUST = "package whose classes the model may name; registered packages and this one are trusted"


def new_parser(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Parser that keeps the line breaks of its description."""
    parser = argparse.ArgumentParser(
        prog=f"codec-{command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the options of a dataset's files, and of the processes and jobs that write them."""
    add = parser.add_argument
    add("--format", choices=("arrow", "npy"), default="arrow", help="default: %(default)s")
    add("--workers", type=int, default=2, help="reading processes; default: %(default)s")
    add("--shard-hours", type=float, default=1.0, help="audio that a kill loses; default: %(default)s")
    add("--num-shards", type=int, help="number of jobs; default: that of torchrun or Slurm")
    add("--shard-id", type=int, help="number of this job, from 0")
    add("--merge", action="store_true", help="only complete the dataset, as the last job does")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add `--trust PACKAGE`."""
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST)


def add_condition(parser: argparse.ArgumentParser) -> None:
    """Add `--condition NAME`."""
    parser.add_argument("--condition", metavar="NAME", help=CONDITION)


def model_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Parser with a model as its first argument, and `--device`."""
    parser = new_parser(command, description)
    parser.add_argument("model", type=local_path, help=MODEL)
    parser.add_argument("--device", help=DEVICE)
    add_trust(parser)
    return parser


def bitstream_parser(command: str, description: str, output: str = "") -> argparse.ArgumentParser:
    """Parser with the shared arguments of the `.codec` commands; `output` describes the written file."""
    parser = model_parser(command, description)
    add = parser.add_argument
    add("--force", action="store_true", help="replace an output that exists")
    if output:
        add("-o", "--output", type=local_path, required=True, help=output)
        text = f"of codec-fit-entropy; default: {about.TABLES_FILE} beside the model, if it is there"
        add("--tables", type=local_path, help=text)
    return parser
