"""Parts of a user's account that libraries require and containers may lack."""

from __future__ import annotations

import getpass
import os
import sys


def complete_environment() -> None:
    """Set `LOGNAME`, which torch's import requires, and `HOME`, to an absent folder, if they are missing."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = "nobody"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/nonexistent"


def escape_unprintable() -> None:
    """Print characters that stdout or stderr cannot encode as escapes, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # absent in tests and notebooks
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
