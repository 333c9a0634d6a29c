"""Read damaged and forged .codec files: python scripts/fuzz_bitstream.py [--inputs 1000000] [--seed 0].

Small files, coded and not, are mutated: bits, bytes and stretches changed, cut, repeated, added; chunks
moved, or taken from another file with the same header; random bytes; and fields changed with all checksums
made right again, as an attacker would. Strict reading has to end in BitstreamError or in the original codes
(forged files: in any codes of the right range), salvage in codes that were written or in a flagged chunk.
Prints the outcomes, the longest time and the most memory. Exit status 1 when anything else happened.
"""

import argparse
import re
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from bitstreams import header_of, random_codes, random_tables, written

from codec.bitstream.entropy_model import EntropyTables
from codec.bitstream.writer import BitstreamError, BitstreamReader

SIZES = (5, 40)


class Sample(NamedTuple):
    """A file, its codes, and another file with the same header."""

    data: bytes
    codes: np.ndarray
    tables: EntropyTables | None
    sibling: bytes
    sibling_codes: np.ndarray


def main() -> int:
    """Mutate, read, count."""
    parser = argparse.ArgumentParser(description="Read damaged and forged .codec files.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random, outcomes, slowest, began = np.random.default_rng(options.seed), Counter(), 0.0, time.time()
    samples = [sample(tables, frames) for tables in (None, random_tables(SIZES)) for frames in (1, 4, 11, 30)]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "mutated.codec"
        for number in range(options.inputs):
            chosen = samples[random.integers(len(samples))]
            kind = MUTATIONS[random.integers(len(MUTATIONS))]
            path.write_bytes(kind(chosen, random))
            for salvage in (False, True):
                start = time.perf_counter()
                found = outcome(path, chosen, kind is forged, salvage)
                slowest = max(slowest, time.perf_counter() - start)
                outcomes["salvage: " * salvage + "forged: " * (kind is forged) + found] += 1
            if (number + 1) % 100_000 == 0:
                print(f"{number + 1} inputs, {time.time() - began:.0f} s", flush=True)
    for found, count in sorted(outcomes.items()):
        print(f"{count:9} {found}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.inputs} inputs read twice; slowest {1000 * slowest:.0f} ms; at most {memory:.0f} MB in all"
    )
    return int(any("WRONG" in found for found in outcomes))


def sample(tables: EntropyTables | None, frames: int) -> Sample:
    """A file of chunks of four frames."""
    codes, others = (random_codes(SIZES, frames, seed) for seed in (1, 2))
    data, sibling = (written(each, SIZES, tables, chunk_frames=4) for each in (codes, others))
    return Sample(data, codes, tables, sibling, others)


def outcome(path: Path, original: Sample, free: bool, salvage: bool) -> str:
    """Outcome of reading a file; WRONG for a violation of the contract."""
    try:
        with BitstreamReader(path, salvage) as reader:
            if free and reader.header.codebook_sizes != SIZES:
                return "read, with another header"
            chunks = list(reader.chunks(original.tables))
            end = reader.end
    except BitstreamError as error:
        return re.sub(r"[-\d.]+|b'.*'|b\".*\"", "#", error.reason)
    except ValueError as error:
        return "refused tables" if free and "tables" in str(error) else f"WRONG {error!r}"
    except BaseException as error:
        return f"WRONG {error!r}"
    whole = [chunk for chunk in chunks if chunk.codes is not None]
    if free:
        good = all((c.codes >= 0).all() and (c.codes < np.array(SIZES)[:, None]).all() for c in whole)
        return "read" if good else "WRONG codes"
    if not salvage:
        data = path.read_bytes()
        if data in (original.data, original.sibling):
            return "not mutated" if data == original.data else "all of the other file"
        same = np.array_equal(np.concatenate([c.codes for c in whole], axis=1), original.codes)
        return (
            "identical codes from other bytes"
            if same and end.samples == original.codes.shape[1] * 320 - 7
            else "WRONG accepted"
        )
    for chunk in whole:
        here = slice(chunk.start, chunk.start + chunk.frames)
        if not any(np.array_equal(chunk.codes, c[:, here]) for c in (original.codes, original.sibling_codes)):
            return "WRONG chunk"
    return "whole" if len(whole) == len(chunks) else "flagged"


def flip(original: Sample, random: np.random.Generator) -> bytes:
    """Change one to eight bits."""
    data = bytearray(original.data)
    for place in random.integers(8 * len(data), size=random.integers(1, 9)):
        data[place // 8] ^= 1 << place % 8
    return bytes(data)


def overwrite(original: Sample, random: np.random.Generator) -> bytes:
    """Replace a stretch by random bytes, zeros or ones."""
    data, (a, b) = original.data, stretch(original.data, random)
    patch = [random.bytes(b - a), bytes(b - a), b"\xff" * (b - a)][random.integers(3)]
    return data[:a] + patch + data[b:]


def cut(original: Sample, random: np.random.Generator) -> bytes:
    """Leave a stretch out, or all behind it."""
    a, b = stretch(original.data, random)
    return original.data[:a] + original.data[b:] * int(random.integers(2))


def add(original: Sample, random: np.random.Generator) -> bytes:
    """Put in random bytes, or a stretch of the file again, anywhere or at the end."""
    (a, b), data = stretch(original.data, random), original.data
    place = len(data) if random.integers(4) == 0 else random.integers(len(data))
    return data[:place] + (random.bytes(b - a) if random.integers(2) else data[a:b]) + data[place:]


def splice(original: Sample, random: np.random.Generator) -> bytes:
    """Begin or end like the other file, or move a chunk."""
    data, other = original.data, original.sibling
    if random.integers(2):
        places = [found.start() for found in re.finditer(b"CHNK|END[.]", data)]
        a, b, c = sorted(random.choice(len(places), 3))
        a, b, c = places[a], places[b], places[c]
        return data[:a] + data[b:c] + data[a:b] + data[c:]
    place = random.integers(1, min(len(data), len(other)))
    return data[:place] + other[place:]


def noise(original: Sample, random: np.random.Generator) -> bytes:
    """Random bytes, behind as much of a file as makes them interesting."""
    kept = random.choice([0, 8, len(header_of(SIZES, original.tables, 4).pack())])
    return original.data[:kept] + random.bytes(random.integers(0, 300))


def forged(original: Sample, random: np.random.Generator) -> bytes:
    """Change a few bytes anywhere, or one field to an extreme, and make all checksums right."""
    data, head = bytearray(original.data), len(header_of(SIZES, original.tables, 4).pack())
    for _ in range(random.integers(1, 4)):
        place = random.integers(len(data) - 4)
        value = random.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, int(random.integers(2**32))])
        size = random.choice([1, 2, 4])
        data[place : place + size] = struct.pack("<Q", value)[:size]
    seal(data, 0, head - 4, 0)
    seed, digest, place = struct.unpack_from("<I", data, head - 4)[0], 0, head
    for found in list(re.finditer(b"CHNK", data)):
        place = found.start()
        if place + 24 > len(data):
            break
        sizes = [n & 2**15 - 1 for n in struct.unpack_from("<2H", data, place + 12)]
        crc = seal(data, place, place + 16, seed)
        if place + 24 + sum(sizes) <= len(data) - 32:
            crc = seal(data, place + 20, place + 20 + sum(sizes), crc)
            digest = crc32(struct.pack("<I", crc), digest)
    struct.pack_into("<I", data, len(data) - 8, digest)
    seal(data, len(data) - 32, len(data) - 4, seed)
    return bytes(data)


def seal(data: bytearray, begin: int, end: int, seed: int) -> int:
    """Write the checksum of a part behind it."""
    crc = crc32(data[begin:end], seed)
    struct.pack_into("<I", data, end, crc)
    return crc


def stretch(data: bytes, random: np.random.Generator) -> tuple[int, int]:
    """Begin and end of a part of up to 40 bytes."""
    begin = int(random.integers(len(data)))
    return begin, min(len(data), begin + int(random.integers(1, 41)))


MUTATIONS = (flip, overwrite, cut, add, splice, noise, forged)


if __name__ == "__main__":
    sys.exit(main())
