"""`codec-report RUNS`: finished runs compared on one page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from codec.commands.parsers import parse
from codec.evaluation.report import report


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print its path."""
    options = parse("report", argv)
    output = options.output or options.folders[0] / "report"
    choices = {"clips": options.clips, "seconds": options.seconds, "evaluation": options.evaluation}
    command = shlex.join(["codec-report", *(sys.argv[1:] if argv is None else argv)])
    print(report(options.folders, output, **choices, command=command))
    return 0
