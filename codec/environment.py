"""Parts of a user's account that libraries rely on and containers lack."""

from __future__ import annotations

import getpass
import os
import sys


def complete_environment() -> None:
    """Name a user without a name, as torch asks for it on import, and a home where nothing can be written."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = "nobody"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/nonexistent"


def escape_unprintable() -> None:
    """Let a terminal or file without UTF-8 show names as escapes, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test's or a notebook's may have none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
