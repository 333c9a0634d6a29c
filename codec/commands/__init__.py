"""Commands, one file each, and the arguments of all of them."""

import sys
from types import TracebackType

previous = sys.excepthook


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line for Ctrl-C while a command is imported, before `report_errors`."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        previous(kind, error, trace)


sys.excepthook = report
