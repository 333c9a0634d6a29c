"""`codec-fit-entropy MODEL FOLDER`: entropy tables, for smaller compressed files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from codec.audio.reading import read_blocks
from codec.bitstream.entropy_model import low_bits
from codec.bitstream.fit import Fit, fit_tables
from codec.bitstream.tables import save_tables
from codec.bitstream.writer import check_target
from codec.commands.compress import beside
from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.data.index import Excerpt
from codec.data.scan import scan
from codec.data.split import split
from codec.model.codec import Codec
from codec.model.inference import encode_long, on_device
from codec.model.saving import load
from codec.system.files import printable
from codec.system.progress import progress_bar
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import META_FILE


def main(argv: Sequence[str] | None = None) -> int:
    """Fit entropy tables."""
    options = parse("fit-entropy", argv)
    output = options.output or beside(options.model)
    check_target(output, options.force)
    codec = on_device(load(options.model, options.trust, options.condition), options.device)
    codec.quantizer.require_codes("fit tables to")
    frames = max(1, round(options.max_hours * 3600 * codec.frame_rate))
    sizes, sequences = examples(codec, options.folder, options.held_out)
    print(f"the tables will be written to {printable(output)}")
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
    codec: Codec, folder: str | Path, held_out: float | None = None
) -> tuple[tuple[int, ...], Iterator[np.ndarray]]:
    """Codebook sizes, and codes `[K, F]` of tokens or of recordings, in a fixed random order.

    `held_out` is the share of recordings to leave out, by the split of training.
    """
    random = np.random.default_rng(0)
    if (Path(folder) / META_FILE).is_file():
        if held_out is not None:
            raise ConfigError("--held-out is for recordings, not for tokens: encode fewer of them")
        tokens = TokenDataset(folder)
        tokens.require_codec(codec, "encode the recordings again with this one")
        return tokens.codebook_sizes, (checked(tokens, int(i)) for i in random.permutation(len(tokens)))
    index = scan(folder).require_usable()
    files = index.usable if held_out is None else split(index.usable, held_out)[0]
    order = progress_bar(random.permutation(len(files)), "encoding", unit="file")
    paths = (files[number].located(index.root) for number in order)
    return codec.quantizer.codebook_sizes, (encoded(codec, path) for path in paths)


def checked(tokens: TokenDataset, number: int) -> np.ndarray:
    """Read the codes of an utterance and verify their checksum."""
    tokens.verify(number)
    return tokens.codes(number).numpy()


def encoded(codec: Codec, path: str | Excerpt) -> np.ndarray:
    """Encode a recording, or a part of one."""
    span = path.span if isinstance(path, Excerpt) else None
    blocks = map(torch.from_numpy, read_blocks(path, codec.sample_rate, codec.audio_channels, span=span))
    return torch.cat(list(encode_long(codec, blocks)), dim=1).numpy()
