"""Commands codec-compress, codec-decompress and codec-fit-entropy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from codec.arguments import TABLES_FILE, parse
from codec.audio import read_blocks
from codec.audio_errors import check_wav_name
from codec.batching import encode_long, on_device
from codec.bitstream.compression import Compressed, compress, decompress
from codec.bitstream.entropy import EntropyTables, low_bits
from codec.bitstream.fitting import Fit, fit_tables
from codec.bitstream.tables import load_tables, save_tables
from codec.bitstream.writer import BitstreamReader, check_target
from codec.config import ConfigError
from codec.files import printable
from codec.index import scan, split
from codec.model import WEIGHTS_FILE, Codec, load
from codec.pretrained import find_model
from codec.stdio import INPUT, OUTPUT, is_pipe, spooled
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import META_FILE


def compress_main(argv: Sequence[str] | None = None) -> int:
    """Compress one recording; user errors are ConfigError, FileError or OSError."""
    options = parse("compress", argv)
    if options.beam < 1:
        raise ConfigError(f"--beam: expected 1 or more, got {options.beam}")
    check_target(options.output, options.force)
    codec = on_device(load(options.model), options.device)
    tables = chosen_tables(options)
    if tables is None:
        print("no entropy tables: codes are stored as they are (make tables with codec-fit-entropy)")
    done = compress(
        codec,
        options.recording,
        options.output,
        tables,
        options.num_quantizers,
        options.chunk_seconds,
        options.force,
        options.beam,
    )
    print(f"{OUTPUT if is_pipe(options.output) else printable(options.output)}: {in_words(done)}")
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
    codec = on_device(load(options.model), options.device)
    with spooled(options.compressed) as compressed:
        with BitstreamReader(compressed, options.salvage) as reader:
            needed = reader.header.tables_id
        lost = decompress(
            codec,
            compressed,
            options.output,
            chosen_tables(options) if needed else None,
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


def fit_main(argv: Sequence[str] | None = None) -> int:
    """Fit entropy tables."""
    options = parse("fit-entropy", argv)
    output = options.output or beside(options.model)
    check_target(output, options.force)
    print(f"the tables will be written to {printable(output)}")
    codec = on_device(load(options.model), options.device)
    frames = max(1, round(options.max_hours * 3600 * codec.frame_rate))
    sizes, sequences = examples(codec, options.folder, options.held_out)
    fit = fit_tables(sequences, codec.codec_id(), sizes, frames, str(next(codec.parameters()).device))
    save_tables(fit.tables, output)
    show(fit, codec)
    print(f"{printable(output)}: tables {fit.tables.tables_id}")
    return 0


def show(fit: Fit, codec: Codec) -> None:
    """Print the bitrates with tables and the savings, for the stages of the tables."""
    sizes = fit.tables.codebook_sizes
    raw, nominal = sum(map(low_bits, sizes)), codec.quantizer.bits_per_frame(len(sizes))
    if len(sizes) < codec.quantizer.num_quantizers:
        print(f"for the first {len(sizes)} of {codec.quantizer.num_quantizers} quantizers")
    for name, bits in (("static", fit.static_bits), ("with contexts", fit.bits)):
        rate = (sum(bits) + raw) * codec.frame_rate / 1000
        saved = 100 * (1 - (sum(bits) + raw) / nominal)
        print(f"{name:>13}: {rate:.3f} kbit/s, {saved:.1f} % saved on held-out pieces of them")


def examples(
    codec: Codec, folder: Path, held_out: float | None = None
) -> tuple[tuple[int, ...], Iterator[np.ndarray]]:
    """Codebook sizes, and codes `[K, F]` of tokens or of recordings, in a fixed random order.

    `held_out` is the share of recordings to leave out, by the split of training.
    """
    random = np.random.default_rng(0)
    if (folder / META_FILE).is_file():
        if held_out is not None:
            raise ConfigError("--held-out is for recordings, not for tokens: encode fewer of them")
        tokens = TokenDataset(folder)
        tokens.require_codec(codec, "encode the recordings again with this one")
        return tokens.codebook_sizes, (checked(tokens, int(i)) for i in random.permutation(len(tokens)))
    files = scan(folder).require_usable().usable
    files = files if held_out is None else split(files, held_out)[0]
    order = tqdm(random.permutation(len(files)), "encoding", unit="file", disable=None)
    paths = (os.path.join(folder, files[number].path) for number in order)
    return codec.quantizer.codebook_sizes, (encoded(codec, path) for path in paths)


def checked(tokens: TokenDataset, number: int) -> np.ndarray:
    """Read the codes of an utterance and verify their checksum."""
    tokens.verify(number)
    return tokens.codes(number).numpy()


def encoded(codec: Codec, path: str) -> np.ndarray:
    """Encode a recording."""
    blocks = map(torch.from_numpy, read_blocks(path, codec.sample_rate, codec.audio_channels))
    return torch.cat(list(encode_long(codec, blocks)), dim=1).numpy()


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
