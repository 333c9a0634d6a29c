"""`codec-doctor FOLDER …`: report on folders of audio, with the faults of unusable files."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from codec.commands.parsers import parse
from codec.data.index import DataError, Index
from codec.data.scan import scan
from codec.data.source import OUTPUT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0: all files are usable, 1: some are not, 2: none is, of any folder."""
    options = parse("doctor", argv)
    status, reports = 0, list[dict[str, Any]]()
    for folder in options.folders:
        try:
            index = scan(folder, check_content=not options.no_content, require_usable=False)
            if options.json:
                reports.append(as_json(index))
            else:
                write(index.report())
            index.require_usable()
        except DataError as error:
            print(f"codec-doctor: {error}", file=sys.stderr)
            status = 2
        else:
            status = max(status, any(file.problem != OUTPUT for file in index.problems))
    if reports:
        write(json.dumps(reports if len(options.folders) > 1 else reports[0], indent=1) + "\n")
    return status


def as_json(index: Index) -> dict[str, Any]:
    """Describe the whole index; bytes of names that are not UTF-8 become lone surrogates."""
    seconds = sum(file.seconds for file in index.usable)
    report = {
        "root": index.root,
        "usable": len(index.usable),
        "hours": seconds / 3600,
        "ignored": index.ignored,
    }
    return {**report, "files": [asdict(file) for file in index.files]}


def write(text: str) -> None:
    """Print to standard output of any encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


if __name__ == "__main__":
    sys.exit(main())
