"""Names of recordings for training and encoding: folders, archives, lists, patterns in braces, addresses."""

from __future__ import annotations

import difflib
import os
import re

from codec.data.index import DataError
from codec.data.lists import LISTS, expand
from codec.system import address, archive
from codec.system.address import absolute, is_address, why
from codec.system.files import printable

NO_WILDCARDS = "* and ? are not expanded, name the folder of the files, or a range as shards-{000..009}.tar"
PACKED = re.compile(r"\.(tar\.(gz|bz2?|xz|zst|lz[4o]?|lzma|br|z|7z|zip)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
TOOLS = {"gz": "gzip", "bz": "bzip2", "xz": "xz", "zst": "zstd"}  # by a part of the suffix


def require_source(name: str | os.PathLike[str]) -> str:
    """Absolute path of a folder, archive, list or pattern in braces; `DataError` for anything else."""
    path = absolute(os.path.expanduser(name))
    if is_pattern(path):
        return path
    if not address.is_file(path):
        return require_folder(path)
    if packed := PACKED.search(path):
        tool = next((tool for key, tool in TOOLS.items() if key in packed[0].lower()), None)
        remedy = f"`{tool} -dk {printable(os.path.basename(path))}`" if tool else "its tool"
        raise DataError(
            f"{printable(path)} is compressed, and crops are read from the middle: decompress it with "
            f"{remedy} and name the .tar"
        )
    if not is_source(path):
        raise DataError(
            f"{printable(path)} is a file: name the folder that holds the audio files, a .tar, or a list "
            f"({', '.join(LISTS)})"
        )
    return path


def is_source(path: str | os.PathLike[str]) -> bool:
    """True for a file that is named as an archive or a list."""
    text = os.fspath(path)
    named = PACKED.search(text) or os.path.splitext(text)[1].lower() in (archive.TAR, archive.ARROW, *LISTS)
    return bool(named) and address.is_file(text)


def is_archive(path: str) -> bool:
    """True for a file that is named as an uncompressed tar or an Arrow file."""
    return path.lower().endswith((archive.TAR, archive.ARROW)) and address.is_file(path)


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """True for a path with a range or words in braces, as `shards-{000..009}.tar`, that does not exist."""
    text = os.fspath(path)
    return "{" in text and not address.exists(text) and next(expand(text), text) != text


def require_folder(root: str | os.PathLike[str]) -> str:
    """Absolute path or address of a folder; `DataError` if it is missing or not readable."""
    folder = absolute(os.path.expanduser(root))
    try:
        if is_address(folder):
            address.state(folder)
        else:
            os.scandir(folder).close()
    except FileNotFoundError as error:
        parent, name = os.path.split(folder)
        if re.search(r"[*?]", folder):
            raise DataError(f"no file is named {printable(folder)}: {NO_WILDCARDS}") from error
        close = difflib.get_close_matches(name, os.listdir(parent) if os.path.isdir(parent) else [], n=1)
        reason = f" ({error.__cause__})" if error.__cause__ else ""  # as of a server that is not reached
        hint = f"; did you mean {printable(os.path.join(parent, close[0]))}?" if close else reason
        raise DataError(f"no such folder: {printable(folder)}{hint}") from error
    except OSError as error:
        raise DataError(f"cannot read the folder {printable(folder)}: {why(error)}") from error
    return folder
