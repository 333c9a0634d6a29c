"""Messages and exit statuses of commands, instead of tracebacks."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable

from codec.config import ConfigError
from codec.system.environment import escape_unprintable


def report_errors(command: Callable[[], int]) -> int:
    """Run a command; print user errors and return status 2 instead of a traceback."""
    try:
        logging.captureWarnings(True)
        escape_unprintable()
        from codec.data.index import DataError
        from codec.system.files import FileError

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
            print("error: a path or the content of a file is nested too deeply", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
