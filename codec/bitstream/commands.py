"""codec-compress, codec-decompress, codec-truncate and codec-fit-entropy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from codec.audio import read_blocks
from codec.audio_errors import check_wav_name
from codec.batching import encode_long, on_device
from codec.bitstream.compression import Compressed, compress, decompress
from codec.bitstream.entropy import EntropyTables, low_bits
from codec.bitstream.fitting import Fit, fit_tables
from codec.bitstream.tables import TABLES_FILE, load_tables, save_tables
from codec.bitstream.writer import BitstreamReader, check_target, truncate
from codec.config import ConfigError
from codec.files import printable
from codec.index import scan, split
from codec.model import WEIGHTS_FILE, Codec, load
from codec.pretrained import find_model
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import META_FILE

COMPRESS = """Write a recording as a small .codec file.

The recording may be of any format, rate and length. What comes out holds the codes in chunks that decode
independently, every byte under a checksum; they take less with the entropy tables of codec-fit-entropy.

example: codec-compress runs/tiny in.wav -o out.codec --num-quantizers 4"""

DECOMPRESS = """Write a .codec file as a wav, 16 bits, of the recording's old length at the codec's rate.

It takes the codec and the entropy tables that the file was written with. Exit status: 0 all is there, 1 parts
were lost and are silent, which only --salvage allows, 2 nothing was written.

example: codec-decompress runs/tiny in.codec -o out.wav"""

TRUNCATE = """Copy a .codec file with fewer quantizers: smaller, less alike.

No model is needed, and nothing is coded again: the bytes are those of codec-compress --num-quantizers N.

example: codec-truncate in.codec -o out.codec --num-quantizers 2"""

FIT = """Fit the entropy tables with which a codec's .codec files get smaller.

They lie beside the model, where codec-compress and codec-decompress find them; files that were written with
tables need these very tables to be read. Tokens of fewer quantizers than the codec has give tables for these:
codes of the others are stored as they are.

example: codec-fit-entropy runs/tiny /path/to/wavs"""


def compress_main(argv: Sequence[str] | None = None) -> int:
    """Compress one recording; what a user can mend is a ConfigError, FileError or OSError."""
    parser = new_parser("codec-compress", COMPRESS, "the file to write, e.g. out.codec")
    parser.add_argument("recording", type=Path, help="audio file")
    parser.add_argument("--num-quantizers", type=int, help="stages to keep; default: all")
    parser.add_argument(
        "--beam", type=int, default=1, help="paths of the codebook search; default: %(default)s"
    )
    parser.add_argument(
        "--chunk-seconds",
        type=float,
        default=10.0,
        help="lost at once when damaged; shorter chunks take more bytes; default: %(default)s",
    )
    options = parser.parse_args(argv)
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
    print(f"{printable(options.output)}: {in_words(done)}")
    return 0


def in_words(done: Compressed) -> str:
    """What a file became, for people."""
    saved = 100 * (1 - done.bitrate / done.nominal)
    rest = done.bytes - sum(done.stage_bytes)
    ending = f"{saved:.1f} % saved" if saved >= 0 else f"and {rest} bytes of header and checksums"
    return (
        f"{done.seconds:.2f} s in {done.bytes} bytes, {done.bitrate / 1000:.3f} kbit/s; "
        f"nominal {done.nominal / 1000:.3f} kbit/s, {ending}"
    )


def decompress_main(argv: Sequence[str] | None = None) -> int:
    """Decompress one file; exit status 1 when parts of it are lost."""
    parser = new_parser("codec-decompress", DECOMPRESS, "the wav to write")
    parser.add_argument("compressed", type=Path, help=".codec file")
    parser.add_argument("--num-quantizers", type=int, help="first stages to use; default: all of the file's")
    parser.add_argument("--salvage", action="store_true", help="make damaged chunks silent, and go on")
    options = parser.parse_args(argv)
    check_wav_name(options.output)
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


def truncate_main(argv: Sequence[str] | None = None) -> int:
    """Cut a file to fewer quantizers."""
    parser = plain_parser("codec-truncate", TRUNCATE)
    parser.add_argument("compressed", type=Path, help=".codec file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--num-quantizers", type=int, required=True, help="first stages to keep")
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    options = parser.parse_args(argv)
    truncate(options.compressed, options.output, options.num_quantizers, options.force)
    print(f"{printable(options.output)}: {options.output.stat().st_size} bytes")
    return 0


def fit_main(argv: Sequence[str] | None = None) -> int:
    """Fit entropy tables."""
    parser = new_parser("codec-fit-entropy", FIT)
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
    output = options.output or beside(options.model)
    check_target(output, options.force)
    codec = on_device(load(options.model), options.device)
    frames = max(1, round(options.max_hours * 3600 * codec.frame_rate))
    sizes, sequences = examples(codec, options.folder, options.held_out)
    fit = fit_tables(sequences, codec.codec_id(), sizes, frames, str(next(codec.parameters()).device))
    save_tables(fit.tables, output)
    show(fit, codec)
    print(f"{printable(output)}: tables {fit.tables.tables_id}")
    return 0


def show(fit: Fit, codec: Codec) -> None:
    """Print what tables save, of the stages that they are for."""
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
    """Codebook sizes, and codes `[K, F]` of tokens or of recordings, in a random order, always the same.

    Of recordings without the share that training holds out, if one is given.
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
    """Codes of an utterance."""
    tokens.verify(number)
    return tokens.codes(number).numpy()


def encoded(codec: Codec, path: str) -> np.ndarray:
    """Codes of a recording."""
    blocks = map(torch.from_numpy, read_blocks(path, codec.sample_rate, codec.audio_channels))
    return torch.cat(list(encode_long(codec, blocks)), dim=1).numpy()


def new_parser(program: str, description: str, output: str = "") -> argparse.ArgumentParser:
    """A parser with what the commands share; with `output`, what is written, if they need the tables."""
    parser = plain_parser(program, description)
    parser.add_argument("model", type=Path, help="run folder, saved codec or checkpoint")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    if output:
        parser.add_argument("-o", "--output", type=Path, required=True, help=output)
        parser.add_argument(
            "--tables",
            type=Path,
            help=f"of codec-fit-entropy; default: {TABLES_FILE} beside the model, if it is there",
        )
    return parser


def plain_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser that keeps the lines of the description."""
    style = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=program, description=description, formatter_class=style)


def beside(model: Path) -> Path:
    """Where a model's tables lie: in the folder of its weights."""
    model = find_model(model)
    if model.is_file():
        return model.parent / TABLES_FILE
    return (model / "model" if (model / "model" / WEIGHTS_FILE).is_file() else model) / TABLES_FILE


def chosen_tables(options: argparse.Namespace) -> EntropyTables | None:
    """The tables that were named, or lie beside the model."""
    path = options.tables or beside(options.model)
    return load_tables(path) if options.tables or path.exists() else None
