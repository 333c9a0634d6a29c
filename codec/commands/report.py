"""`codec-report RUNS`: finished runs compared on one page; `codec-report CSVS`: a listening test."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.evaluation.listening_results import report_listening
from codec.evaluation.report import report


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print its path, or print the tables of a listening test."""
    options = parse("report", argv)
    answers = [path for path in options.folders if path.suffix.lower() == ".csv" and not path.is_dir()]
    if answers:
        if len(answers) < len(options.folders):
            raise ConfigError("name runs, or CSVs of a listening test, not both")
        print(report_listening(answers, options.output), end="")
        return 0
    output = options.output or options.folders[0] / "report"
    choices = {"clips": options.clips, "seconds": options.seconds, "evaluation": options.evaluation}
    command = shlex.join(["codec-report", *(sys.argv[1:] if argv is None else argv)])
    print(report(options.folders, output, **choices, command=command))
    return 0
