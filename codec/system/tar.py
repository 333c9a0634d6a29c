"""Headers of uncompressed tar archives, and the places of their files."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

from codec.system.member import Contents, Member

BLOCK = 512  # bytes of a header; contents are padded to a multiple
PADDING = 2**16  # bytes of the end mark that are read: writers pad with zeros to records of 10 KiB
LONGEST_NAME = 2**20  # bytes of a record with a long name
FILES, LINKS, FOLDER = b"0\0007", b"12", b"5"
OLD_FILE, SPARSE = b"\0", b"S"
NAME, LINK_NAME, RECORD, ALL_RECORDS = b"L", b"K", b"x", b"g"


class Header(NamedTuple):
    """Header of an entry: its kind, name, size in bytes and time of last change in ns."""

    kind: bytes
    name: bytes
    size: int
    mtime_ns: int


def parse_header(block: bytes) -> Header | None:
    """Parse a header of 512 bytes; None if it is none."""
    try:
        if len(block) < BLOCK or sum(block) - sum(block[148:156]) + 8 * 32 != number(block[148:156]):
            return None
        name = block[:100].partition(b"\0")[0]
        if block[257:263] == b"ustar\0" and block[345]:  # GNU tar keeps times there
            name = block[345:500].partition(b"\0")[0] + b"/" + name
        header = Header(block[156:157], name, number(block[124:136]), number(block[136:148]) * 10**9)
        return header if header.size >= 0 else None
    except ValueError:
        return None


def number(text: bytes) -> int:
    """Parse a number in octal digits, or in binary after a byte of 128 or 255; ValueError otherwise."""
    if text[0] in (0x80, 0xFF):
        return int.from_bytes(text[1:], "big", signed=text[0] == 0xFF)
    digits = text.strip(b" \0")
    if digits.translate(None, b"01234567"):
        raise ValueError("no octal digits")
    return int(digits or b"0", 8)


def parse_records(content: bytes) -> dict[bytes, bytes]:
    """Parse the `length key=value` lines of an extended header, as far as they are well-formed."""
    records = dict[bytes, bytes]()
    while match := re.match(rb"(\d{1,9}) ([^=]+)=", content):
        length = int(match[1])
        if not match.end() < length <= len(content):
            break
        records[match[2]] = content[match.end() : length - 1]
        content = content[length:]
    return records


def read_contents(file: IO[bytes] | io.FileIO, archive: str, size: int) -> Contents:
    """List an archive of `size` bytes: of entries with the same name the last, as unpacking would leave."""
    contents = Contents()
    try:
        for header, offset in entries(file, size):
            folders = [part for part in os.fsdecode(header.name).split("/") if part not in ("", ".")]
            if header.kind in FILES and ".." in folders:
                contents.others["path out of the archive"] += 1
            elif header.kind in FILES and folders:
                contents.members["/".join(folders)] = Member(archive, offset, header.size, header.mtime_ns)
            elif header.kind in LINKS:
                contents.others["link"] += 1
            elif header.kind != FOLDER:
                contents.others["special file"] += 1
    except ValueError as error:
        contents.damage = str(error)
    return contents


def check_end(rest: bytes, position: int) -> None:
    """ValueError if an entry is in the `rest` after the first block of the end mark, at `position`."""
    start = (len(rest) - len(rest.lstrip(b"\0"))) // BLOCK * BLOCK
    if parse_header(rest[start : start + BLOCK]):
        raise ValueError(
            f"damaged: entries follow the end mark at byte {position}, as of archives joined with cat: "
            "join them with tar -A"
        )


def skip_maps(file: IO[bytes] | io.FileIO, header: bytes) -> int:
    """Skip the blocks that continue the map of a sparse file after its header; returns their bytes."""
    size, extended = 0, header[482]
    while extended:
        block = file.read(BLOCK) or b""
        size += BLOCK
        extended = len(block) == BLOCK and block[504]
    return size


def final_header(header: Header, name: bytes, facts: Mapping[bytes, bytes]) -> Header:
    """Header with the long name and the extended `facts` put in, and with the kind that follows from them."""
    path = facts.get(b"path", b"").partition(b"\0")[0]
    header = header._replace(name=path or name or header.name)
    if facts.get(b"size", b"").isdigit():
        header = header._replace(size=int(facts[b"size"][:20]))
    if any(key.startswith(b"GNU.sparse") for key in facts):
        return header._replace(kind=SPARSE)
    # Archives from before POSIX mark a folder by its name alone.
    return header._replace(kind=FOLDER) if (header.kind, header.name[-1:]) == (OLD_FILE, b"/") else header


def entries(file: IO[bytes] | io.FileIO, size: int) -> Iterator[tuple[Header, int]]:
    """Yield each entry's header, with long names and sizes put in, and the offset of its content.

    ValueError for an entry that is damaged or exceeds the archive.
    """
    position, name, every, records = 0, b"", dict[bytes, bytes](), dict[bytes, bytes]()
    while position < size:
        file.seek(position)
        block = file.read(BLOCK) or b""
        if not block.strip(b"\0"):
            check_end(file.read(PADDING) or b"", position)
            return
        header, begin = parse_header(block), position + BLOCK
        if header is None:
            raise ValueError(f"damaged: no header of an entry at byte {position}")
        if header.kind not in (NAME, LINK_NAME, RECORD, ALL_RECORDS):
            begin += skip_maps(file, block) if header.kind == SPARSE else 0
            header = final_header(header, name, every | records)
        content = header.size if header.kind not in b"123456" else 0  # links and folders have none
        if begin + content > size:
            raise ValueError(f"truncated: the entry at byte {position} lacks {begin + content - size} bytes")
        position = begin + -(-content // BLOCK) * BLOCK
        if header.kind in (NAME, RECORD, ALL_RECORDS):
            if content > LONGEST_NAME:
                raise ValueError(f"damaged: a name of {content} bytes at byte {begin}")
            text = file.read(content) or b""
            name = text.partition(b"\0")[0] if header.kind == NAME else name
            records = parse_records(text) if header.kind == RECORD else records
            every |= parse_records(text) if header.kind == ALL_RECORDS else {}
        elif header.kind != LINK_NAME:
            yield header, begin
            name, records = b"", {}
