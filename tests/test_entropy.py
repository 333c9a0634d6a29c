"""The range coder and the integer tables: exact, as small as the model allows, and the same everywhere."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from bitstreams import CODEC_ID, random_codes, random_tables
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from codec.bitstream.entropy_model import (
    POWERS,
    EntropyTables,
    StageTables,
    alphabet,
    low_bits,
    place_contexts,
)
from codec.bitstream.fit import fit_tables
from codec.bitstream.range_coder import (
    CorruptError,
    RangeDecoder,
    add_carry,
    encode_intervals,
    pack_bits,
    unpack_bits,
)
from codec.bitstream.tables import (
    LARGEST_BIAS,
    LARGEST_RANK,
    MOST_CONTEXTS,
    TablesError,
    load_tables,
    save_tables,
)

SIZES = st.lists(st.sampled_from([2, 3, 5, 16, 100, 1000, 4097, 2**18]), min_size=1, max_size=3).map(tuple)


def through(tables: EntropyTables, codes: np.ndarray) -> np.ndarray:
    """Codes `[K, F]` coded and decoded, stage after stage."""
    found = np.zeros_like(codes)
    for stage in range(len(codes)):
        data = tables.encode(codes[: stage + 1])
        found[stage] = tables.decode(data, found[:stage])
    return found


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 140), st.integers(0, 9))
def test_codes_of_every_size_come_back(sizes, frames, seed):
    codes = np.random.default_rng(seed).integers(0, np.array(sizes)[:, None], (len(sizes), frames))
    assert (through(random_tables(sizes, seed), codes) == codes).all()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_range_coder_returns_any_symbols_of_any_frequencies(data):
    frequencies = data.draw(st.lists(st.integers(1, 2**20), min_size=1, max_size=9))
    cumulative = np.cumsum(frequencies)
    symbols = data.draw(st.lists(st.integers(0, len(frequencies) - 1), max_size=200))
    starts = [int(cumulative[s]) - frequencies[s] for s in symbols]
    total = int(cumulative[-1])
    coded = encode_intervals(starts, [frequencies[s] for s in symbols], [total] * len(symbols))
    ideal = sum(math.log2(total / frequencies[s]) for s in symbols)
    assert 8 * len(coded) <= ideal * (1 + 1e-4) + 9
    decoder = RangeDecoder(coded)
    assert [decoder.symbol(cumulative) for _ in symbols] == symbols


def test_carries_run_through_all_that_was_written():
    written = bytearray(b"\x01\xff\xff")
    add_carry(written)
    assert written == b"\x02\0\0"
    # The middle of three narrows to 1/2, 0.0111... or 0.1000... in binary: whether it carries is seen late.
    thirds = np.array([1, 2, 3])
    for last in (0, 1, 2):
        symbols = [1] * 500 + [last]
        decoder = RangeDecoder(encode_intervals(symbols, [1] * 501, [3] * 501))
        assert [decoder.symbol(thirds) for _ in symbols] == symbols


@settings(deadline=None)
@given(st.integers(0, 24), st.data())
def test_bits_side_by_side_come_back(bits, data):
    values = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40)), np.int64)
    packed = pack_bits(values, bits)
    assert len(packed) == math.ceil(len(values) * bits / 8)
    text = "".join(f"{value:0{bits}b}" for value in values) if bits else ""
    assert packed == bytes(int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8))
    assert (unpack_bits(packed, bits, len(values)) == values).all()


def test_bits_of_other_lengths_or_with_set_padding_are_refused():
    with pytest.raises(CorruptError, match="do not hold"):
        unpack_bits(b"\0\0", 3, 2)
    with pytest.raises(CorruptError, match="behind the last"):
        unpack_bits(b"\1", 3, 2)


def ideal_bits(tables: StageTables, symbols: np.ndarray) -> float:
    """What the last row costs, by the formula in floats: an oracle that shares no code with the tables."""
    stage, bits = len(symbols) - 1, 0.0
    embeddings, output = tables.embeddings.astype(float), tables.output.astype(float)
    for frame, symbol in enumerate(symbols[-1]):
        hidden = np.zeros(len(output))
        for source, shift, first, missing in tables.contexts:
            assert source <= stage
            hidden += embeddings[first + symbols[source, frame + shift] if frame + shift >= 0 else missing]
        logits = (tables.bias + hidden @ output) / 1024
        weights = np.maximum(np.exp2(logits - logits.max()), 2.0**-16)
        bits -= math.log2(weights[symbol] / weights.sum())
    return bits


@pytest.mark.parametrize("sizes", [(256, 256, 100), (1000,), (3, 5000)])
def test_sizes_are_within_a_percent_of_the_ideal(sizes):
    tables, codes = random_tables(sizes), random_codes(sizes, 400)
    symbols = codes >> np.array([[low_bits(size)] for size in sizes])
    assert symbols.max(axis=1).tolist() <= [alphabet(size) - 1 for size in sizes]
    for stage, size in enumerate(sizes):
        ideal = ideal_bits(tables.stages[stage], symbols[: stage + 1]) + 400 * low_bits(size)
        coded = 8 * len(tables.encode(codes[: stage + 1]))
        assert ideal * 0.99 - 8 <= coded <= ideal * 1.01 + 24
        assert tables.bits(codes)[stage] == pytest.approx(ideal, rel=0.01)


def test_sizes_are_those_of_constriction():
    constriction = pytest.importorskip("constriction", reason="the other range coder is not installed")
    random = np.random.default_rng(0)
    weights = random.integers(1, 2**16, 256)
    symbols = random.choice(256, 5000, p=weights / weights.sum()).astype(np.int32)
    cumulative = np.cumsum(weights)
    ours = encode_intervals(
        *((cumulative - weights)[symbols].tolist(), weights[symbols].tolist(), [int(cumulative[-1])] * 5000)
    )
    model = constriction.stream.model.Categorical(weights / weights.sum(), perfect=False)
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, model)
    theirs = 4 * len(encoder.get_compressed())
    assert abs(len(ours) - theirs) <= 0.001 * theirs + 8


def test_the_powers_are_those_of_two():
    assert len(POWERS) == 4096 and POWERS[0] == 65536 and POWERS.min() == 1
    exact = np.exp2(16 - np.arange(4096) / 256)
    assert ((exact - 1 < POWERS) & (exact + 1e-6 >= POWERS)).all()


def test_extreme_tables_do_not_overflow():
    """The largest sums that a file of tables may lead to stay below 2^31."""
    assert 2 * (MOST_CONTEXTS * 128 * 128 * LARGEST_RANK + LARGEST_BIAS) < 2**31


def test_bytes_that_no_encoder_writes_end_in_an_error_or_in_codes():
    tables, random = random_tables((5, 1000)), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        try:
            codes = tables.decode(random.bytes(random.integers(0, 20)), np.zeros((1, 30), np.int64))
        except CorruptError:
            refused += 1
        else:
            assert codes.min() >= 0 and codes.max() < 1000
    width_that_no_symbol_holds = b"\xff" * 8
    with pytest.raises(CorruptError, match="no encoder"):
        RangeDecoder(width_that_no_symbol_holds).symbol(np.array([1, 3]))


def test_tables_come_back_from_their_file(tmp_path):
    tables = random_tables((16, 5000))
    save_tables(tables, tmp_path / "a.safetensors")
    again = load_tables(tmp_path / "a.safetensors")
    assert again.tables_id == tables.tables_id and again.codec_id == CODEC_ID
    codes = random_codes((16, 5000), 50)
    assert again.encode(codes) == tables.encode(codes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_ids_tell_tables_apart():
    tables = random_tables((16, 100))
    first = tables.stages[0]
    bias = first.bias.copy()
    bias[3] += 1
    changed = replace(tables, stages=(replace(first, bias=bias), *tables.stages[1:]))
    other = replace(tables, codec_id=64 * "1")
    assert len({tables.tables_id, changed.tables_id, other.tables_id}) == 3


@pytest.mark.parametrize(
    ("metadata", "arrays"),
    [
        ({"format": "other"}, {}),
        ({"codebook_sizes": "[16]"}, {}),
        ({"codebook_sizes": "[16, 0]"}, {}),
        ({"codebook_sizes": "[16, 1e9]"}, {}),
        ({"codebook_sizes": "[16, 101]"}, {}),
        ({"codebook_sizes": 9999 * "["}, {}),
        ({"codebook_sizes": "{}"}, {}),
        ({"contexts": "[[], [[0, 0], [2, -1]]]"}, {}),
        ({"contexts": "[[[0, 0]], []]"}, {}),
        ({"contexts": "[[[0, 1]], []]"}, {}),
        ({"contexts": "[[[0, -1, 3]], []]"}, {}),
        ({"contexts": "[[7], []]"}, {}),
        ({"contexts": "[[], []]"}, {}),
        ({}, {"0.bias": np.zeros(17, np.int32)}),
        ({}, {"0.bias": np.zeros(16, np.int64)}),
        ({}, {"0.bias": np.full(16, -(2**31), np.int32)}),
        ({}, {"0.output": np.zeros((0, 16), np.int8)}),
        ({}, {"0.embeddings": np.zeros((), np.int8)}),
        ({}, {"0.embeddings": np.zeros((3, 4), np.int8)}),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, metadata, arrays):
    tables = random_tables((16, 100))
    save_file({**tables.arrays(), **arrays}, tmp_path / "a.safetensors", {**tables.metadata(), **metadata})
    with pytest.raises(TablesError, match=r"a\.safetensors: not entropy tables, or damaged"):
        load_tables(tmp_path / "a.safetensors")


@pytest.mark.parametrize("pair", [(0, 0), (1, -1), (0, 1), (0, -65), (-1, -1)])
def test_contexts_that_a_decoder_does_not_have_are_refused(tmp_path, pair):
    """All arrays have the sizes that these contexts ask for."""
    tables = random_tables((16, 16))
    first = tables.stages[0]
    contexts = place_contexts([pair], (16, 16))
    wrong = replace(first, contexts=contexts, embeddings=first.embeddings[:17])
    save_tables(replace(tables, stages=(wrong, tables.stages[1])), tmp_path / "a.safetensors")
    with pytest.raises(TablesError, match="context"):
        load_tables(tmp_path / "a.safetensors")


def test_missing_cut_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(TablesError, match="codec-fit-entropy"):
        load_tables(tmp_path / "none.safetensors")
    save_tables(random_tables((16,)), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for data in (b"", whole[:-1], whole[:50], b"x" * 100):
        (tmp_path / "a.safetensors").write_bytes(data)
        with pytest.raises(TablesError, match="not entropy tables"):
            load_tables(tmp_path / "a.safetensors")
    arrays = random_tables((16,)).arrays()
    del arrays["0.output"]
    save_file(arrays, tmp_path / "a.safetensors", random_tables((16,)).metadata())
    with pytest.raises(TablesError, match=r"0\.output"):
        load_tables(tmp_path / "a.safetensors")


def markov(sizes: tuple[int, int], frames: int, seed: int) -> np.ndarray:
    """Stage 0 mostly counts upwards; stage 1 is mostly stage 0's code."""
    random = np.random.default_rng(seed)
    jumps = np.where(random.random(frames) < 0.1, random.integers(0, sizes[0], frames), 1)
    first = np.cumsum(jumps) % sizes[0]
    second = np.where(random.random(frames) < 0.1, random.integers(0, sizes[1], frames), first % sizes[1])
    return np.stack([first, second])


def test_fitted_tables_find_what_codes_depend_on():
    sizes = (12, 6)
    fit = fit_tables([markov(sizes, 700, seed) for seed in range(40)], CODEC_ID, sizes)
    codes = markov(sizes, 4000, 99)
    entropies = []
    for size in sizes:  # nine tenths sure, and a tenth anything
        sure, other = 0.9 + 0.1 / size, 0.1 / size
        entropies.append(-sure * math.log2(sure) - (size - 1) * other * math.log2(other))
    for stage, entropy in enumerate(entropies):
        assert entropy * 0.95 < fit.tables.bits(codes)[stage] / 4000 < entropy * 1.1
        assert fit.static_bits[stage] == pytest.approx(math.log2(sizes[stage]), abs=0.02)
        assert entropy * 0.93 < fit.bits[stage] < entropy * 1.12
    assert (through(fit.tables, codes[:, :300]) == codes[:, :300]).all()
    again = fit_tables([markov(sizes, 700, seed) for seed in range(40)], CODEC_ID, sizes)
    assert again.tables.tables_id == fit.tables.tables_id


def test_codes_without_dependence_get_static_tables():
    sizes, random = (6, 5000), np.random.default_rng(0)
    codes = np.stack([np.minimum(random.geometric(0.4, 400) - 1, 5), random.integers(0, 5000, 400)])
    fit = fit_tables([codes[:, :200], codes[:, 200:]], CODEC_ID, sizes)
    assert not fit.tables.stages[0].contexts
    counts = np.bincount(codes[0]) / 400
    entropy = -(counts * np.log2(counts)).sum()
    assert fit.tables.bits(codes)[0] / 400 == pytest.approx(entropy, rel=0.03)
    assert (through(fit.tables, codes[:, :200]) == codes[:, :200]).all()


def test_codes_of_another_codec_or_too_few_are_refused():
    good = random_codes((8, 8), 30)
    for wrong in (good[:1], good + 8, good - 9, good[0]):
        with pytest.raises(ValueError, match="are not of codebooks"):
            fit_tables([good, wrong], CODEC_ID, (8, 8))
    with pytest.raises(ValueError, match="too few codes"):
        fit_tables([good], CODEC_ID, (8, 8))
    with pytest.raises(ValueError, match="no codes to"):
        fit_tables([], CODEC_ID, ())


def test_metadata_is_plain():
    metadata = random_tables((16, 100)).metadata()
    assert json.loads(metadata["contexts"])[1] == [[1, -1], [1, -2], [0, 0], [0, -1]]
    assert all(isinstance(value, str) for value in metadata.values())
