"""codec-compress, codec-decompress, codec-truncate and codec-fit-entropy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from codec.audio import read_blocks
from codec.audio_errors import AudioError
from codec.batching import on_device
from codec.bitstream.compression import compress, decompress, encode_blocks
from codec.bitstream.entropy import EntropyTables, TablesError, low_bits
from codec.bitstream.fitting import fit_tables
from codec.bitstream.tables import TABLES_FILE, load_tables, save_tables
from codec.bitstream.writer import BitstreamError, BitstreamReader, check_target, truncate
from codec.config import ConfigError
from codec.files import printable
from codec.index import scan, split
from codec.model import WEIGHTS_FILE, Codec, load
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import META_FILE


def compress_main(argv: Sequence[str] | None = None) -> int:
    """Compress one recording; exit status 2 when it cannot be."""
    parser = new_parser("codec-compress", "Write a recording as a small .codec file.")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--num-quantizers", type=int, help="stages to keep; default: all")
    parser.add_argument("--chunk-seconds", type=float, default=10.0, help="lost at once when damaged")
    options = parser.parse_args(argv)

    def run() -> int:
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
        )
        print(
            f"{printable(options.output)}: {done.seconds:.2f} s in {done.bytes} bytes, "
            f"{done.bitrate / 1000:.3f} kbit/s; nominal {done.nominal / 1000:.3f} kbit/s, "
            f"{100 * (1 - done.bitrate / done.nominal):.1f} % saved"
        )
        return 0

    return reported("codec-compress", run)


def decompress_main(argv: Sequence[str] | None = None) -> int:
    """Decompress one file; exit status 1 when parts of it are lost, 2 when it cannot be done."""
    parser = new_parser("codec-decompress", "Write a .codec file as a wav.")
    parser.add_argument("compressed", type=Path)
    parser.add_argument("--num-quantizers", type=int, help="stages to use; default: all")
    parser.add_argument("--salvage", action="store_true", help="make damaged chunks silent, and go on")
    options = parser.parse_args(argv)

    def run() -> int:
        check_target(options.output, options.force)
        codec = on_device(load(options.model), options.device)
        with BitstreamReader(options.compressed, options.salvage) as reader:
            needed = reader.header.tables_id
        lost = decompress(
            codec,
            options.compressed,
            options.output,
            chosen_tables(options) if needed else None,
            options.num_quantizers,
            options.salvage,
            options.force,
        )
        for chunk in lost:
            begin, end = (n / codec.frame_rate for n in (chunk.start, chunk.start + chunk.frames))
            print(f"{printable(options.compressed)}: {begin:.2f} to {end:.2f} s are lost: {chunk.problem}")
        print(printable(options.output))
        return 1 if lost else 0

    return reported("codec-decompress", run)


def truncate_main(argv: Sequence[str] | None = None) -> int:
    """Cut a file to fewer quantizers; exit status 2 when it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="codec-truncate",
        description="Copy a .codec file with fewer quantizers: no model is needed, nothing is coded again.",
    )
    parser.add_argument("compressed", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--num-quantizers", type=int, required=True, help="stages to keep")
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    options = parser.parse_args(argv)

    def run() -> int:
        truncate(options.compressed, options.output, options.num_quantizers, options.force)
        return 0

    return reported("codec-truncate", run)


def fit_main(argv: Sequence[str] | None = None) -> int:
    """Fit entropy tables; exit status 2 when it cannot be done."""
    parser = new_parser("codec-fit-entropy", "Fit entropy tables to a codec's codes.", output=False)
    parser.add_argument("folder", type=Path, help="recordings, or tokens of codec-encode, like those to come")
    parser.add_argument("-o", "--output", type=Path, help=f"default: {TABLES_FILE} beside the model")
    parser.add_argument("--max-hours", type=float, default=5.0, help="used at most; default: %(default)s")
    parser.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="of recordings: leave out those that codec-evaluate --held-out SHARE takes",
    )
    options = parser.parse_args(argv)

    def run() -> int:
        output = options.output or beside(options.model)
        check_target(output, options.force)
        codec = on_device(load(options.model), options.device)
        frames = max(1, round(options.max_hours * 3600 * codec.frame_rate))
        sizes = codec.quantizer.codebook_sizes
        device = next(codec.parameters()).device
        fit = fit_tables(
            examples(codec, options.folder, options.held_out), codec.codec_id(), sizes, frames, str(device)
        )
        save_tables(fit.tables, output)
        nominal = codec.quantizer.bits_per_frame()
        raw = sum(map(low_bits, sizes))
        for name, bits in (("static", fit.static_bits), ("with contexts", fit.bits)):
            rate = (sum(bits) + raw) * codec.frame_rate / 1000
            saved = 100 * (1 - (sum(bits) + raw) / nominal)
            print(f"{name:>13}: {rate:.3f} kbit/s, {saved:.1f} % saved on held-out pieces of them")
        print(f"{printable(output)}: tables {fit.tables.tables_id}")
        return 0

    return reported("codec-fit-entropy", run)


def examples(codec: Codec, folder: Path, held_out: float | None = None) -> Iterator[np.ndarray]:
    """Codes `[K, F]` of a token dataset or of recordings, in a random order that is always the same.

    Of recordings without the share that training holds out, if one is given.
    """
    if (folder / META_FILE).is_file():
        if held_out is not None:
            raise ConfigError("--held-out is for recordings, not for tokens: encode fewer of them")
        tokens = TokenDataset(folder)
        tokens.require_codec(codec)
        for number in np.random.default_rng(0).permutation(len(tokens)):
            tokens.verify(int(number))
            yield tokens[number].numpy()
        return
    files = scan(folder).require_usable().usable
    files = files if held_out is None else split(files, held_out)[0]
    stream = codec.streaming()
    order = np.random.default_rng(0).permutation(len(files))
    for number in tqdm(order, "encoding", unit="file", disable=None):
        path = os.path.join(folder, files[number].path)
        blocks = read_blocks(path, codec.sample_rate, codec.audio_channels)
        yield np.concatenate(list(encode_blocks(stream, blocks)), axis=1)


def new_parser(program: str, description: str, output: bool = True) -> argparse.ArgumentParser:
    """A parser with what the commands share."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("model", type=Path, help="run folder, saved codec or checkpoint")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    if output:
        parser.add_argument("-o", "--output", type=Path, required=True)
        parser.add_argument("--tables", type=Path, help=f"default: {TABLES_FILE} beside the model")
    return parser


def beside(model: Path) -> Path:
    """Where a model's tables lie: in the folder of its weights."""
    if model.is_file():
        return model.parent / TABLES_FILE
    return (model / "model" if (model / "model" / WEIGHTS_FILE).is_file() else model) / TABLES_FILE


def chosen_tables(options: argparse.Namespace) -> EntropyTables | None:
    """The tables that were named, or lie beside the model."""
    path = options.tables or beside(options.model)
    return load_tables(path) if options.tables or path.exists() else None


def reported(program: str, run: Callable[[], int]) -> int:
    """Run a command; what a user can mend becomes a message and status 2."""
    try:
        return run()
    except (AudioError, BitstreamError, TablesError, ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
