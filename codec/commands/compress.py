"""Commands codec-compress, codec-decompress and codec-fit-entropy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from codec.audio.errors import check_wav_name
from codec.bitstream.compress import Compressed, compress, decompress
from codec.bitstream.entropy_model import EntropyTables
from codec.bitstream.tables import load_tables
from codec.bitstream.writer import BitstreamReader, check_target
from codec.commands.descriptions import TABLES_FILE
from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.model.codec import WEIGHTS_FILE
from codec.model.inference import on_device
from codec.model.saving import load
from codec.pretrained import find_model
from codec.system.files import printable
from codec.system.stdio import INPUT, OUTPUT, is_pipe, spooled


def compress_main(argv: Sequence[str] | None = None) -> int:
    """Compress one recording; user errors are ConfigError, FileError or OSError."""
    options = parse("compress", argv)
    if options.beam < 1:
        raise ConfigError(f"--beam: expected 1 or more, got {options.beam}")
    check_target(options.output, options.force)
    codec = on_device(load(options.model, options.trust, options.condition), options.device)
    tables = chosen_tables(options)
    duration = compress(
        codec,
        options.recording,
        options.output,
        tables,
        options.num_quantizers,
        options.chunk_seconds,
        options.force,
        options.beam,
    )
    if tables is None:
        print("no entropy tables: codes are stored as they are (make tables with codec-fit-entropy)")
    print(f"{OUTPUT if is_pipe(options.output) else printable(options.output)}: {in_words(duration)}")
    return 0


def in_words(done: Compressed) -> str:
    """Format duration, size and bitrates of a compressed file as text."""
    saved = 100 * (1 - done.bitrate / done.nominal)
    rest = done.bytes - sum(done.stage_bytes)
    ending = f"{saved:.1f} % saved" if saved >= 0 else f"and {rest} bytes of header and checksums"
    return (
        f"{done.seconds:.2f} s in {done.bytes} bytes, {done.bitrate / 1000:.3f} kbit/s; "
        f"nominal {done.nominal / 1000:.3f} kbit/s, {ending}"
    )


def decompress_main(argv: Sequence[str] | None = None) -> int:
    """Decompress one file; exit status 1 if parts of it are lost."""
    options = parse("decompress", argv)
    check_wav_name(options.output)
    check_target(options.output, options.force)
    codec = on_device(load(options.model, options.trust), options.device)
    with spooled(options.compressed) as compressed:
        with BitstreamReader(compressed, options.salvage) as reader:
            tables_id = reader.header.tables_id
        lost = decompress(
            codec,
            compressed,
            options.output,
            chosen_tables(options) if tables_id else None,
            options.num_quantizers,
            options.salvage,
            options.force,
        )
    source = INPUT if is_pipe(options.compressed) else printable(options.compressed)
    for chunk in lost:
        begin, end = (n / codec.frame_rate for n in (chunk.start, chunk.start + chunk.frames))
        print(f"{source}: {begin:.2f} to {end:.2f} s are lost: {chunk.problem}")
    if not is_pipe(options.output):
        print(printable(options.output))
    return 1 if lost else 0


def beside(model: Path) -> Path:
    """Default path of a model's tables: in the folder of its weights."""
    model = find_model(model)
    if model.is_file():
        return model.parent / TABLES_FILE
    return (model / "model" if (model / "model" / WEIGHTS_FILE).is_file() else model) / TABLES_FILE


def chosen_tables(options: argparse.Namespace) -> EntropyTables | None:
    """Load the tables of `--tables`, or else those beside the model; None without any."""
    path = options.tables or beside(options.model)
    return load_tables(path) if options.tables or path.exists() else None
