"""`codec-doctor FOLDER`: report on a folder of audio, with the faults of unusable files."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from codec.commands.parsers import parse
from codec.data.index import DataError, Index
from codec.data.scan import scan
from codec.data.source import OUTPUT


def examine(folder: str, check_content: bool = True) -> Index:
    """Index a folder, print its report and return it. Raises `DataError` if nothing is readable."""
    index = scan(folder, check_content=check_content, require_usable=False)
    write(index.report())
    return index


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0: all files are usable, 1: some are not, 2: none is."""
    options = parse("doctor", argv)
    try:
        if options.json:
            index = scan(options.folder, check_content=not options.no_content, require_usable=False)
            write(as_json(index))
        else:
            index = examine(options.folder, check_content=not options.no_content)
        index.require_usable()
    except DataError as error:
        print(f"codec-doctor: {error}", file=sys.stderr)
        return 2
    return 1 if any(file.problem != OUTPUT for file in index.problems) else 0


def as_json(index: Index) -> str:
    """Convert the whole index to JSON; bytes of names that are not UTF-8 become lone surrogates `\\udc..`."""
    seconds = sum(file.seconds for file in index.usable)
    report = {
        "root": index.root,
        "usable": len(index.usable),
        "hours": seconds / 3600,
        "ignored": index.ignored,
    }
    return json.dumps({**report, "files": [asdict(file) for file in index.files]}, indent=1) + "\n"


def write(text: str) -> None:
    """Print to standard output of any encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


if __name__ == "__main__":
    sys.exit(main())
