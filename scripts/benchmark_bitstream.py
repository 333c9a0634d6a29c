"""Bits that entropy coding saves, and its speed: python scripts/benchmark_bitstream.py MODEL TRAIN TEST.

Tables are fitted to the codes of the folder TRAIN, or taken from --tables, and measured on those of TEST,
where nothing was fitted. The entropy of a code given the one before it in its stage is shown three ways:
counted on TEST itself, which is too low (most pairs are rare, and seem certain); with Miller and Madow's
correction; and as the cross-entropy of TRAIN's counts, interpolated after Witten and Bell, on TEST: an upper
bound.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from codec.bitstream.compress import make_header
from codec.bitstream.entropy_model import EntropyTables, low_bits
from codec.bitstream.fit import fit_static, fit_tables
from codec.bitstream.tables import load_tables
from codec.bitstream.writer import BitstreamWriter
from codec.commands.fit_entropy import examples
from codec.model.codec import Codec
from codec.model.saving import load


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Bits that entropy coding saves, and its speed.")
    parser.add_argument("model", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--tables", type=Path, help="of codec-fit-entropy MODEL TRAIN; default: fitted here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = load(options.model)
    train, test = (list(examples(codec, folder)) for folder in (options.train, options.test))
    sizes = codec.quantizer.codebook_sizes
    tables = (
        load_tables(options.tables) if options.tables else fit_tables(train, codec.codec_id(), sizes).tables
    )
    symbols = np.concatenate([tables.symbols(codes) for codes in train], axis=1)
    static = tuple(
        fit_static([row], len(stage.bias)) for row, stage in zip(symbols, tables.stages, strict=True)
    )
    show_bits(codec, tables, EntropyTables(tables.codec_id, sizes, static), train, test)
    show_files(codec, tables, test)
    show_speed(codec, tables, np.concatenate(test, axis=1)[:, : round(60 * codec.frame_rate)])


def show_bits(
    codec: Codec,
    tables: EntropyTables,
    static: EntropyTables,
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
) -> None:
    """Bits per code by stage, and kbit/s in all."""
    frames = sum(codes.shape[1] for codes in test)
    columns = {
        "nominal": np.log2(tables.codebook_sizes),
        "static": sum(np.array(static.bits(codes)) for codes in test) / frames,
        "contexts": sum(np.array(tables.bits(codes)) for codes in test) / frames,
        **order_one(tables, train, test),
    }
    print(f"{'bits per code':14}" + "".join(f"{name:>14}" for name in columns))
    for stage in range(len(tables.codebook_sizes)):
        line(f"stage {stage}", [column[stage] for column in columns.values()])
    rates = [sum(column) * codec.frame_rate / 1000 for column in columns.values()]
    line("kbit/s", rates)
    line("saved, %", [100 * (1 - rate / rates[0]) for rate in rates])


def order_one(
    tables: EntropyTables, train: Sequence[np.ndarray], test: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Estimates of the entropy of a symbol given the one before it, by stage."""
    plain, corrected, attained = [], [], []
    for stage, size in enumerate(tables.codebook_sizes):
        width = len(tables.stages[stage].bias)
        seen, new = (
            sum(pair_counts(tables.symbols(codes)[stage], width) for codes in part) for part in (train, test)
        )
        total, before = new.sum(), new.sum(axis=1)
        entropy = (xlog2(before) - xlog2(new)) / total
        bias = (np.count_nonzero(new) - np.count_nonzero(before)) / (2 * total * np.log(2))
        follows, kinds = seen.sum(axis=1, keepdims=True), np.count_nonzero(seen, axis=1)[:, None]
        single = (seen.sum(axis=0) + 0.5) / (seen.sum() + 0.5 * width)
        model = (seen + kinds * single) / np.maximum(follows + kinds, 1)
        model = np.where(follows > 0, model, single)
        cost = -(new * np.log2(model)).sum() / total
        for column, bits in ((plain, entropy), (corrected, entropy + bias), (attained, cost)):
            column.append(bits + low_bits(size))
    names = "pairs, counted", "pairs, M.-M.", "pairs, W.-B."
    return dict(zip(names, map(np.array, (plain, corrected, attained)), strict=True))


def pair_counts(symbols: np.ndarray, width: int) -> np.ndarray:
    """Counts `[V, V]` of each pair of successive symbols."""
    pairs = symbols[:-1].astype(np.int64) * width + symbols[1:]
    return np.bincount(pairs, minlength=width * width).reshape(width, width).astype(float)


def xlog2(counts: np.ndarray) -> float:
    """Sum of n log2 n."""
    counts = counts[counts > 0]
    return float((counts * np.log2(counts)).sum())


def show_files(codec: Codec, tables: EntropyTables, test: Sequence[np.ndarray]) -> None:
    """kbit/s of whole files: of each recording, and of all of them one after the other."""
    nominal = codec.bitrate() / 1000
    for name, parts in (("each file", test), ("one long file", [np.concatenate(test, axis=1)])):
        seconds = sum(codes.shape[1] for codes in parts) / codec.frame_rate
        sizes = [sum(file_bytes(codec, used, codes) for codes in parts) for used in (None, tables)]
        raw, coded = (8 * size / seconds / 1000 for size in sizes)
        share = 100 * (1 - coded / nominal)
        print(f"{name}: {raw:.3f} kbit/s as they are, {coded:.3f} coded, {share:.1f} % below {nominal:.3f}")


def file_bytes(codec: Codec, tables: EntropyTables | None, codes: np.ndarray) -> int:
    """Size of a `.codec` file."""
    file = io.BytesIO()
    writer = BitstreamWriter(file, make_header(codec, tables, None, 10.0), tables)
    writer.write(codes)
    writer.finish(codes.shape[1] * codec.hop_length)
    return len(file.getvalue())


def show_speed(codec: Codec, tables: EntropyTables, codes: np.ndarray) -> None:
    """Codes per second, of ours and of constriction's range coder with the same frequencies."""
    stages = range(len(codes))
    coded, encoding = timed(lambda: [tables.encode(codes[: stage + 1]) for stage in stages])
    decoded, decoding = timed(lambda: [tables.decode(coded[stage], codes[:stage]) for stage in stages])
    assert np.array_equal(np.array(decoded), codes)
    speed("tables, ours", codec, codes, encoding, decoding, sum(map(len, coded)))
    try:
        import constriction
    except ImportError:
        print("constriction is not installed")
        return
    model, symbols = constriction.stream.model.Categorical(perfect=False), tables.symbols(codes)
    weights = []
    for stage in stages:
        used = tables.stages[stage]
        cumulative = used.cumulative(used.logits(used.rows(symbols[: stage + 1], used.contexts)))
        found = np.diff(cumulative, axis=1, prepend=0).astype(np.float64)
        weights.append(found / found.sum(axis=1, keepdims=True))
    values = [np.ascontiguousarray(row, np.int32) for row in symbols]

    def encode() -> list[np.ndarray]:
        coders = [constriction.stream.queue.RangeEncoder() for _ in stages]
        for coder, row, probabilities in zip(coders, values, weights, strict=True):
            coder.encode(row, model, probabilities)
        return [coder.get_compressed() for coder in coders]

    theirs, encoding = timed(encode)
    decoders = [constriction.stream.queue.RangeDecoder(data) for data in theirs]
    _, decoding = timed(
        lambda: [one.decode(model, table) for one, table in zip(decoders, weights, strict=True)]
    )
    speed("constriction, given the frequencies", codec, codes, encoding, decoding, 4 * sum(map(len, theirs)))


def timed(work: Callable[[], list]) -> tuple[list, float]:
    """Result of a function, and its processor time in seconds on one thread."""
    began = time.process_time()
    return work(), time.process_time() - began


def speed(name: str, codec: Codec, codes: np.ndarray, encoding: float, decoding: float, size: int) -> None:
    """One line of the coders' table."""
    seconds = codes.shape[1] / codec.frame_rate
    rates = [
        f"{codes.size / t / 1000:.0f} k codes/s ({seconds / t:.0f}x real time)" for t in (encoding, decoding)
    ]
    print(f"{name}: encodes {rates[0]}, decodes {rates[1]}, {size} bytes")


def line(name: str, values: Sequence[float]) -> None:
    """One row of numbers."""
    print(f"{name:14}" + "".join(f"{value:14.3f}" for value in values))


if __name__ == "__main__":
    main()
