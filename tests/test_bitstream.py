"""The `.codec` container: what is written comes back, what is damaged is seen, prefixes are cut off it."""

import io
import math
import os
import struct
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from bitstreams import CODEC_ID, decoded, header_of, random_codes, random_tables, written
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from codec.bitstream.entropy_model import EntropyTables, StageTables, TablesError
from codec.bitstream.range_coder import CorruptError, pack_bits
from codec.bitstream.tables import load_tables
from codec.bitstream.writer import BitstreamError, BitstreamReader, BitstreamWriter, truncate

REFERENCE = Path(__file__).parent / "reference"
SIZES = (5, 40, 5000)
TABLES = random_tables(SIZES)
CODES = random_codes(SIZES, 21)
WHOLE = written(CODES, SIZES, TABLES)
HEADER = len(header_of(SIZES, TABLES).pack())
ANY_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "a.codec"
    path.write_bytes(data)
    return path


@settings(ANY_FOLDER, max_examples=60)
@given(
    st.lists(st.sampled_from([2, 3, 256, 1000, 5000, 2**18]), min_size=1, max_size=3).map(tuple),
    st.integers(1, 60),
    st.integers(1, 30),
    st.booleans(),
    st.data(),
)
def test_codes_written_in_any_pieces_come_back(tmp_path, sizes, frames, chunk_frames, coded, data):
    codes, tables = random_codes(sizes, frames), random_tables(sizes) if coded else None
    file = io.BytesIO()
    writer = BitstreamWriter(file, header_of(sizes, tables, chunk_frames), tables)
    cuts = sorted(data.draw(st.lists(st.integers(0, frames), max_size=4)))
    for piece in np.split(codes, cuts, axis=1):
        writer.write(piece)
    writer.finish(320 * frames)
    path = file_of(tmp_path, file.getvalue())
    with BitstreamReader(path) as reader:
        assert reader.header == header_of(sizes, tables, chunk_frames)
        assert (reader.end.chunks, reader.end.frames) == (math.ceil(frames / chunk_frames), frames)
        assert reader.end.samples == 320 * frames
    assert (decoded(path, tables) == codes).all()


def test_the_layout_is_the_documented_one(tmp_path):
    """Parsed by hand, without this package."""
    data = written(CODES[:2, :9], SIZES[:2], None)
    magic, version, codec, tables, rate, channels, hop, chunk, stages, *sizes = struct.unpack_from(
        "<8sH32s16sIHIIH2I", data
    )
    assert (magic, version, codec.hex(), tables) == (b"\x89codec\r\n", 1, CODEC_ID, bytes(16))
    assert (rate, channels, hop, chunk, stages, sizes) == (16000, 1, 320, 8, 2, [5, 40])
    seed = crc32(data[:82])
    assert struct.unpack_from("<I", data, 82) == (seed,)
    place, digest = 86, 0
    for index, frames in enumerate((8, 1)):
        marker, number, count, *lengths = struct.unpack_from("<4sIIHH", data, place)
        assert (marker, number, count) == (b"CHNK", index, frames)
        expected = [math.ceil(frames * bits / 8) for bits in (3, 6)]
        assert [length - 2**15 for length in lengths] == expected
        crc = crc32(data[place : place + 16], seed)
        assert struct.unpack_from("<I", data, place + 16) == (crc,)
        body = data[place + 20 : place + 20 + sum(expected)]
        bits = "".join(f"{byte:08b}" for byte in body[: expected[0]])
        first = [int(bits[3 * i : 3 * i + 3], 2) for i in range(frames)]
        assert first == CODES[0, 8 * index : 8 * index + frames].tolist()
        crc = data[place + 20 + len(body) : place + 24 + len(body)]
        assert crc == struct.pack("<I", crc32(body, crc32(data[place : place + 16], seed)))
        digest = crc32(crc, digest)
        place += 24 + len(body)
    assert struct.unpack_from("<4sIQQI", data, place) == (b"END.", 2, 9, 9 * 320 - 7, digest)
    assert data[place + 28 :] == struct.pack("<I", crc32(data[place : place + 28], seed))


def test_the_file_is_as_small_as_the_tables_allow(tmp_path):
    codes, raw = random_codes(SIZES, 500), [100 * bits for bits in (3, 6, 13)]
    data = written(codes, SIZES, TABLES, chunk_frames=100)
    bits = [TABLES.bits(codes[:, i : i + 100]) for i in range(0, 500, 100)]
    assert any(chunk < raw for chunk in bits)
    ideal = sum(sum(map(min, chunk, raw)) for chunk in bits) / 8
    overhead = HEADER + 32 + 5 * (12 + 3 * 2 + 4 + 4)
    assert ideal * 0.99 <= len(data) - overhead <= ideal * 1.005 + 5 * 3 * 2


def test_codes_that_the_tables_do_not_expect_are_stored_as_they_are(tmp_path):
    unlikely = StageTables(
        np.array([0] + 15 * [-(2**14)], np.int32), np.zeros((0, 16), np.int8), np.zeros((0, 0))
    )
    tables = EntropyTables(CODEC_ID, (16,), (unlikely,))
    codes = np.full((1, 64), 7)
    path = file_of(tmp_path, written(codes, (16,), tables, chunk_frames=64))
    assert path.stat().st_size == len(written(codes, (16,), None, chunk_frames=64))
    assert (decoded(path, tables) == codes).all()


def test_likely_codes_still_take_a_byte_for_64_frames(tmp_path):
    """So that few bytes never promise endless audio."""
    likely = StageTables(
        np.array([0] + 15 * [-(2**14)], np.int32), np.zeros((0, 16), np.int8), np.zeros((0, 0))
    )
    tables = EntropyTables(CODEC_ID, (16,), (likely,))
    codes = np.zeros((1, 1000), np.int64)
    path = file_of(tmp_path, written(codes, (16,), tables, chunk_frames=1000))
    assert path.stat().st_size == len(header_of((16,), None).pack()) + 32 + 22 + 16
    assert (decoded(path, tables) == codes).all()


@pytest.mark.parametrize("tables", [TABLES, None])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_file_cut_to_fewer_stages_is_the_file_written_with_fewer(tmp_path, tables, depth):
    source, target = file_of(tmp_path, written(CODES, SIZES, tables)), tmp_path / "cut.codec"
    truncate(source, target, depth)
    assert (decoded(target, tables) == CODES[:depth]).all()
    assert (decoded(source, tables, depth) == CODES[:depth]).all()
    if tables is None:
        assert target.read_bytes() == written(CODES[:depth], SIZES[:depth], None)
    else:
        file = io.BytesIO()
        writer = BitstreamWriter(file, header_of(SIZES, tables).prefix(depth), tables)
        writer.write(CODES[:depth])
        writer.finish(21 * 320 - 7)
        assert target.read_bytes() == file.getvalue()


def test_truncate_refuses_what_it_cannot_do(tmp_path):
    source, target = file_of(tmp_path, WHOLE), tmp_path / "cut.codec"
    for depth in (0, 4):
        with pytest.raises(ValueError, match="1 to 3"):
            truncate(source, target, depth)
    damaged = bytearray(WHOLE)
    damaged[HEADER + 26] ^= 1
    with pytest.raises(BitstreamError, match=r"damaged\.codec: chunk 0, from 0\.00 s on"):
        truncate(file_of(tmp_path, damaged).rename(tmp_path / "damaged.codec"), target, 2)
    assert not target.exists() and not list(tmp_path.glob("*.tmp"))
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        truncate(file_of(tmp_path, WHOLE), target, 2)
    assert target.read_text() == "mine"
    truncate(file_of(tmp_path, WHOLE), target, 2, overwrite=True)
    assert (decoded(target, TABLES) == CODES[:2]).all()


def test_chunks_decode_alone(tmp_path):
    """A chunk's bytes depend on its own codes only, and it is read with those around it lost."""
    changed = CODES.copy()
    changed[:, :8] = random_codes(SIZES, 8, seed=5)
    begin, other = (data.index(b"CHNK\1") for data in (WHOLE, written(changed, SIZES, TABLES)))
    assert WHOLE[begin:-32] == written(changed, SIZES, TABLES)[other:-32]
    lost = bytearray(WHOLE)
    lost[HEADER + 26] ^= 255  # in chunk 0
    lost[-40] ^= 255  # in chunk 2
    with BitstreamReader(file_of(tmp_path, lost), salvage=True) as reader:
        chunks = list(reader.chunks(TABLES))
    assert [(c.start, c.frames, c.codes is None) for c in chunks] == [
        (0, 8, True),
        (8, 8, False),
        (16, 5, True),
    ]
    assert (chunks[1].codes == CODES[:, 8:16]).all()
    assert "checksum" in chunks[0].problem and "checksum" in chunks[2].problem


@settings(ANY_FOLDER, max_examples=300)
@given(st.data())
def test_any_change_is_an_error_or_a_flagged_chunk(tmp_path, data):
    kind = data.draw(st.sampled_from(["byte", "cut", "truncate", "insert", "append"]))
    place = data.draw(st.integers(0, len(WHOLE) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=30))
    changed = {
        "byte": WHOLE[:place] + patch + WHOLE[place + len(patch) :],
        "cut": WHOLE[:place] + WHOLE[place + len(patch) :],
        "truncate": WHOLE[:place],
        "insert": WHOLE[:place] + patch + WHOLE[place:],
        "append": WHOLE + patch,
    }[kind]
    path = file_of(tmp_path, changed)
    if changed == WHOLE:
        return
    with pytest.raises(BitstreamError, match=r"a\.codec: "):
        decoded(path, TABLES)
    try:
        with BitstreamReader(path, salvage=True) as reader:
            chunks = list(reader.chunks(TABLES))
    except BitstreamError:
        assert place < HEADER
        return
    frame = 0
    for chunk in chunks:
        assert chunk.start == frame and (chunk.codes is None) == bool(chunk.problem)
        frame += chunk.frames
        if chunk.codes is not None:
            assert (chunk.codes == CODES[:, chunk.start : frame]).all()
    assert frame <= 21 and (reader.end is None or frame == 21)
    assert sum(chunk.codes is None for chunk in chunks) + (frame < 21) <= 3


@settings(ANY_FOLDER, max_examples=100)
@given(st.binary(max_size=200), st.sampled_from([0, 8, HEADER]))
@example(b"", 0)
def test_random_bytes_are_refused(tmp_path, data, kept):
    path = file_of(tmp_path, WHOLE[:kept] + data)
    with pytest.raises(BitstreamError):
        decoded(path, TABLES)


def resealed(header: bytes, rest: bytes = b"") -> bytes:
    """A header with the right checksum."""
    return header + struct.pack("<I", crc32(header)) + rest


@pytest.mark.parametrize(
    ("place", "layout", "value", "message"),
    [
        (8, "<H", 2, "version 2; this program reads version 1: update it"),
        (58, "<I", 0, "sample_rate"),
        (58, "<I", 2**32 - 1, "sample_rate"),
        (62, "<H", 0, "channels"),
        (64, "<I", 0, "hop_length"),
        (68, "<I", 0, "chunk_frames"),
        (68, "<I", 2**32 - 1, "chunk_frames"),
        (72, "<H", 0, "num_quantizers"),
        (72, "<H", 65535, "truncated or damaged in the header"),
        (74, "<I", 1, "codebook sizes"),
        (74, "<I", 2**32 - 1, "codebook sizes"),
    ],
)
def test_a_header_that_lies_is_refused_with_a_right_checksum(tmp_path, place, layout, value, message):
    header = bytearray(WHOLE[: HEADER - 4])
    struct.pack_into(layout, header, place, value)
    stages = struct.unpack_from("<H", header, 72)[0]
    header = header[: 74 + 4 * min(stages, 3)]
    for salvage in (False, True):
        with pytest.raises(BitstreamError, match=message):
            BitstreamReader(file_of(tmp_path, resealed(bytes(header), WHOLE[HEADER:])), salvage)


def forged(chunks: list[tuple[int, int, list[int], bytes]], end: tuple[int, int, int]) -> bytes:
    """A file of one stage of 256 codes, 2^16 frames a chunk, with any numbers and all checksums right."""
    data, digest = header_of((256,), None, 2**16).pack(), 0
    seed = struct.unpack("<I", data[-4:])[0]
    for index, frames, lengths, body in chunks:
        start = struct.pack("<4sII1I", b"CHNK", index, frames, *lengths)
        crc = struct.pack("<I", crc32(body, crc32(start, seed)))
        data += start + struct.pack("<I", crc32(start, seed)) + body + crc
        digest = crc32(crc, digest)
    last = struct.pack("<4sIQQI", b"END.", *end, digest)
    return data + last + struct.pack("<I", crc32(last, seed))


RAW = 2**31


@pytest.mark.parametrize(
    ("chunks", "end", "message"),
    [
        ([], (0, 0, 0), "do not agree"),
        ([(0, 2, [RAW | 2], b"ab")], (1, 2, 641), "do not agree"),
        ([(0, 2, [RAW | 2], b"ab")], (2, 2, 640), "do not agree"),
        ([(0, 2, [RAW | 2], b"ab")], (2**32 - 1, (2**32 - 1) * 2**16, (2**32 - 1) * 2**16 * 320), "not fit"),
        ([(0, 2, [RAW | 2], b"ab")], (1, 3, 960), "expected chunk 0 of 3 frames, found chunk 0 of 2 frames"),
        ([(1, 2, [RAW | 2], b"ab")], (1, 2, 640), "expected chunk 0 of 2 frames, found chunk 1 of 2 frames"),
        ([(0, 0, [RAW | 0], b"")], (1, 1, 320), "a chunk of 0 frames"),
        ([(0, 2**16 + 1, [RAW | 2**16], b"ab")], (1, 2**16, 2**16 * 320), "a chunk of 65537 frames"),
        ([(0, 2, [RAW | 3], b"abc")], (1, 2, 640), "3 bytes for 2 codes"),
        ([(0, 2, [RAW | (RAW - 1)], b"ab")], (1, 2, 640), "2147483647 bytes for 2 codes"),
        ([(0, 200, [3], b"abc")], (1, 200, 64000), "3 bytes for 200 codes"),
        ([(0, 2**16, [RAW | 2**16], b"ab")], (1, 2**16, 2**16 * 320), "truncated"),
        ([(0, 2, [2], b"ab")], (1, 2, 640), "coded with tables, and there are none for stage 0"),
    ],
)
def test_a_chunk_or_an_end_that_lies_is_refused_with_right_checksums(tmp_path, chunks, end, message):
    path = file_of(tmp_path, forged(chunks, end))
    with pytest.raises(BitstreamError, match=message):
        decoded(path, None)
    with BitstreamReader(path, salvage=True) as reader:
        for chunk in reader.chunks():
            assert chunk.frames <= 2**17 and (chunk.codes is None or chunk.codes.max() < 256)


LAST = StageTables(
    np.array([*2048 * [-(2**14)], 0], np.int32), np.zeros((0, 2049), np.int8), np.zeros((0, 0), np.int8)
)


@pytest.mark.parametrize(("size", "tables"), [(5, None), (4097, EntropyTables(CODEC_ID, (4097,), (LAST,)))])
def test_codes_beyond_the_codebook_are_refused_with_right_checksums(tmp_path, size, tables):
    """Three bits hold more than five codes, and the last of 2049 symbols and one bit more than 4097."""
    codes = np.full((1, 8), size - 1)
    part = tables.encode(codes) if tables else pack_bits(codes[0], 3)
    beyond = bytes([part[0] | 0xE0, *part[1:]])
    with pytest.raises(BitstreamError, match="a code of stage 0 is beyond its codebook"):
        decoded(copied(tmp_path, size, tables, beyond), tables)
    assert (decoded(copied(tmp_path, size, tables, part), tables) == codes).all()


def copied(folder: Path, size: int, tables: EntropyTables | None, part: bytes) -> Path:
    """A file of one chunk of eight frames, coded already."""
    file = io.BytesIO()
    writer = BitstreamWriter(file, header_of((size,), tables), tables)
    writer.copy_chunk([part], [tables is None], 8)
    writer.finish(320 * 8)
    return file_of(folder, file.getvalue())


def test_a_chunk_of_another_file_with_the_same_header_is_seen(tmp_path):
    other = written(random_codes(SIZES, 21, seed=9), SIZES, TABLES)
    first, theirs = ([data.index(b"CHNK" + bytes([i])) for i in (0, 1)] for data in (WHOLE, other))
    swapped = WHOLE[:HEADER] + other[theirs[0] : theirs[1]] + WHOLE[first[1] :]
    with pytest.raises(BitstreamError, match="do not match the end record"):
        decoded(file_of(tmp_path, swapped), TABLES)


def test_numbers_of_lost_chunks_are_bounded_by_the_size_of_the_file(tmp_path):
    path = file_of(tmp_path, forged([(2**32 - 1, 2, [RAW | 2], b"ab")], (0, 0, 0)))
    with BitstreamReader(path, salvage=True) as reader:
        assert sum(chunk.frames for chunk in reader.chunks()) == 0


@pytest.mark.parametrize("filler", [b"CHNK", b"CHNK" + bytes(20)])
def test_salvage_reads_a_long_file_of_markers_once(tmp_path, filler):
    path = file_of(tmp_path, WHOLE[:HEADER] + filler * 20000 + WHOLE[HEADER:])
    with BitstreamReader(path, salvage=True) as reader:
        reads, read = [], reader.file.read
        reader.file.read = lambda size: (reads.append(size), read(size))[1]
        codes = np.concatenate([chunk.codes for chunk in reader.chunks(TABLES)], axis=1)
    assert (codes == CODES).all() and sum(reads) < 30 * path.stat().st_size


def test_salvage_decodes_no_byte_twice(tmp_path, monkeypatch):
    """Chunks within chunks, checksums right, that fail at their last stage: each took the time of all."""
    tables, frames, count, heads = random_tables((256, 5)), 1024, 30, []
    header, last = header_of((256, 5), tables, frames), frames * 3 // 8
    for i in range(count):  # all end behind the same bytes, each four bytes later than the one within
        first = frames // 64 + (count - 1 - i) * header.head_bytes + 4 * i
        start = struct.pack("<4sII", b"CHNK", 0, frames) + header.lengths.pack(first, header.raw_flag | last)
        heads.append(start + struct.pack("<I", crc32(start, header.crc)))
    data = b"".join(heads) + bytes(frames // 64) + b"\xff" * last  # three bits, all ones: beyond five codes
    for i, head in enumerate(heads, start=1):
        crc = crc32(data[i * header.head_bytes :], struct.unpack("<I", head[-4:])[0])
        data += struct.pack("<I", crc)
    calls, decode = [], BitstreamReader.decode
    monkeypatch.setattr(BitstreamReader, "decode", lambda *a: (calls.append(a), decode(*a))[1])
    with BitstreamReader(file_of(tmp_path, header.pack() + data), salvage=True) as reader:
        assert list(reader.chunks(tables)) == [] and len(calls) == 1


def test_salvage_reads_no_byte_often(tmp_path):
    """Heads with right checksums, each of which promises all that follows."""
    header = header_of((256,), None, 2**16)
    start = struct.pack("<4sII", b"CHNK", 0, 2**16) + header.lengths.pack(header.raw_flag | 2**16)
    head = start + struct.pack("<I", crc32(start, header.crc))
    path = file_of(tmp_path, header.pack() + head * 10000)
    with BitstreamReader(path, salvage=True) as reader:
        reads, read = [], reader.file.read
        reader.file.read = lambda size: (reads.append(size), read(size))[1]
        assert list(reader.chunks()) == []
    assert sum(reads) < 10 * path.stat().st_size


def test_the_right_tables_are_needed(tmp_path):
    path = file_of(tmp_path, WHOLE)
    for wrong in (None, random_tables(SIZES, seed=1)):
        with pytest.raises(TablesError, match=f"the entropy tables {TABLES.tables_id} are needed"):
            decoded(path, wrong)
        with pytest.raises(TablesError, match="are needed"):
            BitstreamWriter(io.BytesIO(), header_of(SIZES, TABLES), wrong).write(CODES)


@pytest.mark.parametrize("wrong", [CODES[:2], CODES + 5, CODES - 1, CODES.astype(float), CODES[0]])
def test_other_codes_are_refused_by_the_writer(wrong):
    with pytest.raises(ValueError, match="codes must be"):
        BitstreamWriter(io.BytesIO(), header_of(SIZES, None)).write(wrong)


@pytest.mark.parametrize("samples", [0, 320 * 20, 320 * 21 + 1])
def test_samples_that_are_not_those_of_the_frames_are_refused(samples):
    writer = BitstreamWriter(io.BytesIO(), header_of(SIZES, None))
    writer.write(CODES)
    with pytest.raises(ValueError, match="21 frames of 320 samples are not"):
        writer.finish(samples)


def test_headers_out_of_range_cannot_be_written():
    with pytest.raises(CorruptError, match="ids"):
        replace(header_of((4,), None), codec_id="c0dec").pack()
    with pytest.raises(CorruptError, match="num_quantizers"):
        header_of((4,) * 65, None).pack()


def test_what_is_no_file_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("none", "No such file"),
        ("fifo", "not a regular file"),
        (".", "not a regular file"),
    ):
        with pytest.raises(BitstreamError, match=message):
            BitstreamReader(tmp_path / name)


def test_files_of_the_first_version_are_read_for_ever():
    """Written on 2026-11-22, with the tables beside it: codes, bytes and all."""
    tables, codes = load_tables(REFERENCE / "golden.safetensors"), np.load(REFERENCE / "golden_codes.npy")
    assert (decoded(REFERENCE / "golden.codec", tables) == codes).all()
    assert written(codes, tables.codebook_sizes, tables) == (REFERENCE / "golden.codec").read_bytes()
    assert tables.tables_id == "8d4c12761b0f968682d6cd395a188a6a"
