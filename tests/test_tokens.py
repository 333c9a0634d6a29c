"""Token datasets: what other libraries read from them, what readers get, and what damage does."""

import json
import os
import pickle
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenized import LAYOUTS, NEEDS_ARROW, RATE, require_same_codes, small_codec, write_corpus
from torch.utils.data import DataLoader

from codec.audio.reading import read_audio
from codec.tokens import TokenDataset, TokenError, delay, flatten, padded, undelay, unflatten
from codec.tokens import dataset as dataset_module
from codec.tokens.encoding import encode_corpus
from codec.tokens.files import inside, mirrored
from codec.tokens.sources import Encoder, Settings


@pytest.fixture(scope="module", params=LAYOUTS)
def corpus(request, codec, tmp_path_factory):
    """A dataset, and the codes that each recording was encoded to."""
    folder = tmp_path_factory.mktemp("corpus")
    expected, row = {}, Encoder.row

    def recorded(self, one, codes):
        expected[self.plan.sources[one.number].path] = torch.from_numpy(codes.astype(np.int64))
        return row(self, one, codes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "row", recorded)
        names = write_corpus(folder / "wavs")
        options = Settings(request.param, shard_hours=0.0005, workers=0)
        encode_corpus(codec, [folder / "wavs"], folder / "tokens", options)
    for name in names:
        require_same_codes(codec, expected[name], read_audio(folder / "wavs" / name)[0])
    return folder / "tokens", expected


def test_every_utterance_has_the_codes_of_its_recording(corpus):
    path, expected = corpus
    dataset = TokenDataset(path)
    assert [dataset.utterance(i).path for i in range(len(dataset))] == sorted(expected)
    for i, codes in enumerate(dataset):
        row = dataset.utterance(i)
        assert codes.dtype == torch.int64 and torch.equal(codes, expected[row.path])
        assert dataset.find(row.path) == dataset.find(row.id) == i
        assert dataset.length(i) == row.n_samples
        dataset.verify(i)
    assert dataset.find("s1/utt 4") == dataset.find("s1/utt 4.wav")
    # Both a.wav and a.flac: neither may be called a.
    assert {"s0/utt 0.wav", "s0/utt 0.flac"} <= {dataset.utterance(i).id for i in range(len(dataset))}
    with pytest.raises(KeyError):
        dataset.find("s0/utt 0")


def test_a_window_by_frames_and_by_time_is_cut_from_the_whole(corpus):
    dataset = TokenDataset(corpus[0])
    i = dataset.find("s1/utt 7")
    whole = dataset[i]
    assert torch.equal(dataset.codes(i, 3, 17), whole[:, 3:17])
    assert torch.equal(dataset.seconds(i, 0.0, 1e9), whole)
    # 125 frames a second: 0.1 s is within frame 12, 0.2 s begins frame 25.
    assert torch.equal(dataset.seconds(i, 0.1, 0.2), whole[:, 12:25])
    for start, stop in [(-1, 3), (5, 5), (0, whole.shape[1] + 1)]:
        with pytest.raises(ValueError, match="has frames 0 to"):
            dataset.codes(i, start, stop)
    with pytest.raises(ValueError, match="begin < end"):
        dataset.seconds(i, 2, 1)
    assert torch.equal(dataset[-1], dataset[len(dataset) - 1])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_a_time_that_is_a_frame_s_in_decimals_is_that_frame_s(corpus, monkeypatch):
    monkeypatch.setattr(TokenDataset, "frame_rate", 100.0)  # 0.07 s are 7.000000000000001 frames in binary
    dataset = TokenDataset(corpus[0])
    i = dataset.find("s1/utt 7")
    for frame in range(1, dataset[i].shape[1]):
        begin, end = float(f"{(frame - 1) / 100:.2f}"), float(f"{frame / 100:.2f}")
        assert torch.equal(dataset.seconds(i, begin, end), dataset[i][:, frame - 1 : frame])


def test_fixed_windows_are_all_there_in_order(corpus):
    path, expected = corpus
    windows = TokenDataset(path).windows(20, 7)
    by_hand = [
        expected[name][:, start : start + 20]
        for name in sorted(expected)
        for start in range(0, expected[name].shape[1] - 19, 7)
    ]
    assert len(windows) == len(by_hand) > 20
    assert all(torch.equal(a, b) for a, b in zip(windows, by_hand, strict=True))
    assert len(TokenDataset(path).windows(10_000)) == 0
    with pytest.raises(ValueError, match="at least 1 frame"):
        TokenDataset(path).windows(0)


def test_first_stages_only(corpus):
    whole, first = TokenDataset(corpus[0]), TokenDataset(corpus[0], num_quantizers=2)
    assert torch.equal(first[3], whole[3][:2]) and first.codebook_sizes == (64, 64)
    with pytest.raises(ValueError, match="num_quantizers must be 1 to 3"):
        TokenDataset(corpus[0], num_quantizers=4)


def test_loading_processes_read_the_same(corpus):
    dataset = TokenDataset(corpus[0], view=partial(delay, fill=64))
    alone = [item for item in dataset]
    assert not {"index", "shard"} & dataset.__getstate__().keys() and len(pickle.dumps(dataset)) < 5000
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[2], alone[2])
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=partial(padded, fill=64))
    found = [row[..., :n] for batch, lengths in loader for row, n in zip(batch, lengths, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


@pytest.mark.slow
def test_a_spawned_process_opens_the_files_again(corpus, codec):
    loader = DataLoader(TokenDataset(corpus[0]), None, num_workers=1, multiprocessing_context="spawn")
    assert all(torch.equal(a, b) for a, b in zip(loader, TokenDataset(corpus[0]), strict=True))


def test_a_window_decodes_to_the_audio_cut_from_the_whole(corpus, codec):
    path, expected = corpus
    dataset = TokenDataset(path)
    i = dataset.find("s0/utt 6")
    samples = dataset.length(i)
    with torch.inference_mode():
        whole = codec.decode(expected["s0/utt 6.wav"][None], samples)[0]
    assert dataset.decode(codec, i).shape == (1, samples)
    last = dataset[i].shape[1]
    for start, stop in [(0, last), (20, 40), (last - 1, last)]:
        part = dataset.decode(codec, i, start, stop)
        assert part.shape[1] == min(stop * 128, samples) - start * 128
        assert (part - whole[:, start * 128 : stop * 128]).abs().max() < 1e-5


def test_pieces_of_audio_leave_the_caller_s_modes_alone(corpus, codec, monkeypatch):
    monkeypatch.setattr("codec.model.inference.PIECE_SECONDS", 0.1)
    dataset = TokenDataset(corpus[0])
    pieces = []
    for piece in dataset.audio(codec, dataset.find("s0/utt 6")):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        pieces.append(piece)
    assert len(pieces) > 2 and not dataset.decode(codec, 0).is_inference()
    assert torch.equal(torch.cat(pieces, 1), dataset.decode(codec, dataset.find("s0/utt 6")))


def test_another_codec_is_refused_unless_it_is_meant(corpus, codec):
    dataset = TokenDataset(corpus[0])
    other = small_codec()
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    with pytest.raises(ValueError, match=r"is of another codec \(.*any_codec=True"):
        dataset.decode(other, 0)
    assert dataset.decode(other, 0, any_codec=True).shape == dataset.decode(codec, 0).shape


@NEEDS_ARROW
def test_pyarrow_alone_reads_the_shards(codec, tmp_path):
    pa = pytest.importorskip("pyarrow")
    write_corpus(tmp_path / "wavs")
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "tokens", Settings(shard_hours=0.0005, workers=0))
    dataset = TokenDataset(tmp_path / "tokens")
    rows = []
    for shard in sorted((tmp_path / "tokens" / "shards").iterdir()):
        with pa.memory_map(str(shard)) as source:
            table = pa.ipc.open_file(source).read_all()
        assert table.schema.field("codes").type == pa.large_list(pa.uint8())
        assert json.loads(table.schema.metadata[b"codec-tokens"])["codec_id"] == codec.codec_id()
        rows += table.to_pylist()
    assert len(rows) == len(dataset) and len(list((tmp_path / "tokens" / "shards").iterdir())) > 2
    for i, row in enumerate(rows):
        assert row["path"] == dataset.utterance(i).path and row["sha256"] == dataset.utterance(i).sha256
        codes = np.array(row["codes"]).reshape(3, row["n_frames"])
        assert np.array_equal(codes, dataset[i])


@pytest.mark.skipif(sys.platform != "linux", reason="needs another operating system: names of any bytes")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_may_have_a_name_that_is_not_utf_8(codec, tmp_path, layout):
    write_corpus(tmp_path / "wavs")
    tokens = tmp_path / os.fsdecode(b"tokens\xff")
    encode_corpus(codec, [tmp_path / "wavs"], tokens, Settings(layout, workers=0))
    assert len(read_everything(tokens)) == len(TokenDataset(tokens))


def test_numpy_and_json_alone_read_the_npy_tree(codec, tmp_path):
    write_corpus(tmp_path / "wavs")
    encode_corpus(codec, [tmp_path / "wavs"], tmp_path / "tokens", Settings("npy", workers=0))
    about = json.loads((tmp_path / "tokens" / "tokens.json").read_text())
    assert about["frame_rate"] == [125, 1] and about["sample_rate"] == RATE and about["dtype"] == "uint8"
    lines = (tmp_path / "tokens" / "manifest.jsonl").read_text().splitlines()
    dataset = TokenDataset(tmp_path / "tokens")
    for i, row in enumerate(map(json.loads, lines)):
        codes = np.load(tmp_path / "tokens" / f"{row['path']}.npy")
        assert codes.dtype == np.uint8 and np.array_equal(codes, dataset[i])


def test_reading_imports_neither_lightning_nor_hydra():
    code = "import sys, codec.tokens.dataset; print({'lightning', 'hydra', 'pyarrow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


CODES = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))


@given(CODES)
def test_views_can_be_undone(shape):
    stages, frames, seed = shape
    sizes = [3, 700, 2, 90, 5][:stages]
    random = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(0, size, (2, frames), generator=random) for size in sizes], dim=1)
    delayed = delay(codes, fill=-1)
    assert delayed.shape == (2, stages, frames + stages - 1) and torch.equal(undelay(delayed), codes)
    for k in range(stages):
        for f in range(frames + stages - 1):
            inside_ = 0 <= f - k < frames
            assert torch.equal(delayed[:, k, f], codes[:, k, f - k] if inside_ else torch.tensor([-1, -1]))
    plain, raised = flatten(codes), flatten(codes, sizes)
    assert torch.equal(unflatten(plain, stages), codes) and torch.equal(
        unflatten(raised, stages, sizes), codes
    )
    for f in range(frames):
        for k in range(stages):
            assert torch.equal(plain[:, f * stages + k], codes[:, k, f])
            assert torch.equal(raised[:, f * stages + k], codes[:, k, f] + sum(sizes[:k]))
    assert raised.max() < sum(sizes) and torch.equal(unflatten(plain[:, :-1], stages), codes[..., :-1])


def test_views_refuse_what_they_cannot_undo():
    codes = torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="lie outside the codebooks"):
        unflatten(flatten(codes, [5, 5]).flip(0), 2, [5, 5])
    with pytest.raises(ValueError, match="only 1 codebook sizes"):
        flatten(codes, [5])
    with pytest.raises(ValueError, match="fewer than the 2"):
        undelay(torch.zeros(3, 1))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../a.wav", "a/../../b", "a\\b", "", "C:/x", "a\0b", "a/" * 2000]
)
def test_paths_that_lead_outside_are_refused(path):
    with pytest.raises(TokenError, match="not a plain relative one"):
        inside(path)


def test_long_names_are_shortened_to_different_ones():
    names = [f"folder/{'é' * 126}{end}" for end in "ab"]
    short = [mirrored(name, ".npy") for name in names]
    assert len(set(short)) == 2 and all(len(name.split("/")[1].encode()) <= 255 for name in short)
    assert mirrored("a/b.wav", ".npy") == "a/b.wav.npy"


def read_everything(path: Path) -> list[np.ndarray]:
    dataset = TokenDataset(path)
    for i in range(len(dataset)):
        dataset.verify(i)
    return [codes.numpy() for codes in dataset]


def small_files(folder: Path) -> list[Path]:
    names = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in names if path.name not in ("report.txt", "skipped.jsonl")]


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_an_error_or_makes_no_difference(corpus, data):
    path = corpus[0]
    good = read_everything(path)
    files = small_files(path)
    victim = data.draw(st.sampled_from(files))
    content = victim.read_bytes()
    how = data.draw(st.sampled_from(["change", "cut", "extend", "replace", "remove"]))
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.binary(min_size=1, max_size=12))
    damaged = {
        "change": content[:place] + value + content[place + len(value) :],
        "cut": content[:place],
        "extend": content + value,
        "replace": value,
        "remove": b"",
    }[how]
    try:
        victim.unlink() if how == "remove" else victim.write_bytes(damaged)
        found = read_everything(path)
    except (TokenError, FileNotFoundError):
        return
    finally:
        victim.write_bytes(content)
    assert all(np.array_equal(a, b) for a, b in zip(found, good, strict=True))


def test_every_access_notices_damage(corpus, monkeypatch):
    path, expected = corpus
    good = TokenDataset(path)
    i = good.find("s1/utt 4")
    row, codes = good.utterance(i), np.ascontiguousarray(good.stored(i))
    arrow = good.format.layout == "arrow"
    victim = path / (f"shards/{row.shard:05d}.arrow" if arrow else f"{row.path}.npy")
    content = victim.read_bytes()
    begin = content.index(codes.tobytes())
    try:
        for place in (0, codes.nbytes // 2, codes.nbytes - 1):
            damaged = bytearray(content)
            damaged[begin + place] ^= 1  # another code of the codebook
            victim.write_bytes(damaged)
            dataset = TokenDataset(path)
            windows = dataset.windows(4)
            number = next(n for n in range(len(windows)) if windows.place(n)[0] == i)
            reads = [partial(dataset.__getitem__, i), partial(windows.__getitem__, number)]
            reads += [partial(dataset.codes, i, 1, 2), partial(dataset.seconds, i, 0.0, 1e-3)]
            reads += [partial(pickle.loads(pickle.dumps(dataset)).codes, i)]
            for read in reads:
                with pytest.raises(TokenError, match="damaged: s1/utt 4 differs from its CRC-32"):
                    read()
    finally:
        victim.write_bytes(content)
    compared = []
    compare = dataset_module.checksum
    monkeypatch.setattr(
        dataset_module, "checksum", lambda codes: compared.append(codes.size) or compare(codes)
    )
    whole = TokenDataset(path)
    for start in range(5):
        assert torch.equal(whole.codes(i, start, start + 1), expected[row.path][:, start : start + 1])
    assert compared == [codes.size]  # once


def edit_tokens(folder: Path, **changes: object) -> None:
    """Change `tokens.json`, and an npy dataset's first row, under right checksums."""
    manifest, meta = folder / "manifest.jsonl", folder / "tokens.json"
    first, *others = manifest.read_text().splitlines()
    about = json.loads(meta.read_text())
    row = json.loads(first)
    row |= {name: value for name, value in changes.items() if name in row and name not in about}
    about |= {name: value for name, value in changes.items() if name in about}
    manifest.write_text("\n".join([json.dumps(row), *others]) + "\n")
    meta.write_text(json.dumps(about | {"index_crc32": zlib.crc32(manifest.read_bytes())}))


@pytest.mark.parametrize(
    ("name", "value"), [("id", 5), ("path", 5), ("path", ["a"]), ("id", None), ("sha256", 1.5), ("path", {})]
)
def test_a_row_whose_names_are_no_texts_is_refused(codec, tmp_path, name, value):
    write_corpus(tmp_path / "wavs")
    folder = tmp_path / "tokens"
    encode_corpus(codec, [tmp_path / "wavs"], folder, Settings("npy", workers=0))
    edit_tokens(folder, **{name: value})
    with pytest.raises(TokenError, match=rf"manifest\.jsonl: damaged: the {name} .* is not a text"):
        TokenDataset(folder)


def test_a_description_that_contradicts_its_codec_is_refused(codec, tmp_path):
    write_corpus(tmp_path / "wavs")
    folder = tmp_path / "tokens"
    encode_corpus(codec, [tmp_path / "wavs"], folder, Settings("npy", workers=0))
    twice = {"sample_rate": codec.sample_rate * 2, "hop_length": codec.hop_length * 2}
    for changes, named in (
        (twice, "sample_rate 32000, the codec has 16000; hop_length"),
        ({"audio_channels": 2}, ""),
    ):
        before = (folder / "tokens.json").read_bytes()
        edit_tokens(folder, **changes)
        dataset = TokenDataset(folder)
        with pytest.raises(TokenError, match=rf"tokens\.json: damaged: it contradicts its codec: {named}"):
            dataset.decode(codec, 0)
        (folder / "tokens.json").write_bytes(before)
    TokenDataset(folder).decode(codec, 0)


HOSTILE = {
    "codebook_sizes": [[], [0], [2**70], "64", [64.0, 64, 64], [64] * 2000, None],
    "hop_length": [0, -1, 2**60, "128", None],
    "sample_rate": [0, 1e9, True],
    "items": [-1, 8, 10, 2**80],
    "layout": ["tar", None, 3],
    "version": [2, None, "1"],
    "format": ["other", None],
    "codec_id": [None, 5],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in HOSTILE for value in HOSTILE[key]])
def test_a_description_that_makes_no_sense_is_refused(corpus, key, value):
    meta = corpus[0] / "tokens.json"
    content = meta.read_text()
    try:
        meta.write_text(json.dumps(json.loads(content) | {key: value}))
        with pytest.raises(TokenError):
            TokenDataset(corpus[0])
    finally:
        meta.write_text(content)


def test_codes_beyond_the_codebooks_are_refused_under_right_checksums(codec, tmp_path):
    write_corpus(tmp_path / "wavs")
    folder = tmp_path / "tokens"
    encode_corpus(codec, [tmp_path / "wavs"], folder, Settings("npy", workers=0))
    codes = np.load(folder / "s1" / "utt 4.wav.npy")
    before = zlib.crc32(codes.tobytes())
    codes[1, 7] = 64
    np.save(folder / "s1" / "utt 4.wav.npy", codes)
    manifest, meta = folder / "manifest.jsonl", folder / "tokens.json"
    manifest.write_text(manifest.read_text().replace(str(before), str(zlib.crc32(codes.tobytes()))))
    crc32 = zlib.crc32(manifest.read_bytes())
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"index_crc32": crc32}))
    dataset = TokenDataset(folder)
    i = dataset.find("s1/utt 4")
    for read in (dataset.codes, dataset.verify, partial(dataset.codes, start=5, stop=9), dataset.__getitem__):
        with pytest.raises(TokenError, match="s1/utt 4: codes exceed the codebooks"):
            read(i)


def test_no_dataset_and_an_unfinished_one_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no token dataset, tokens\.json is missing"):
        TokenDataset(tmp_path)
    (tmp_path / ".encoding").mkdir()
    with pytest.raises(FileNotFoundError, match="not finished: run codec-encode again"):
        TokenDataset(tmp_path)
