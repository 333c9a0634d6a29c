"""Exports, opened by the libraries that they are for."""

import gc
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from tokenized import NEEDS_ARROW, small_codec, write_corpus

from codec.commands.export_tokens import main
from codec.config import ConfigError
from codec.system.files import FileError
from codec.tokens.dataset import TokenDataset
from codec.tokens.encoding import encode_corpus
from codec.tokens.exports import (
    EXPORTS,
    export_codec_bpe,
    export_hf,
    export_lhotse,
    export_litdata,
    export_megatron,
    export_webdataset,
    portions,
)
from codec.tokens.sources import Settings

# Other libraries warn of their own dependencies.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    write_corpus(folder / "wavs")
    encode_corpus(small_codec(), [folder / "wavs"], folder / "npy", Settings("npy", workers=0))
    return TokenDataset(folder / "npy")


@NEEDS_ARROW
def test_parquet_alone_holds_the_codes_and_their_description(tokens, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("codec.tokens.exports.FILE_CODES", 600)
    monkeypatch.setattr("codec.tokens.exports.GROUP_CODES", 200)
    export_hf(tokens, tmp_path / "hf")
    files = sorted((tmp_path / "hf" / "data").iterdir())
    assert len(files) > 2 and files[0].name == f"train-00000-of-{len(files):05d}.parquet"
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert [row["id"] for row in rows] == [tokens.utterance(i).id for i in range(len(tokens))]
    assert all(np.array_equal(row["codes"], codes) for row, codes in zip(rows, tokens, strict=True))
    assert tokens.format.codec_id in (tmp_path / "hf" / "README.md").read_text()


@NEEDS_ARROW
def test_datasets_opens_the_export_and_the_shards_as_they_are(tokens, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets")
    export_hf(tokens, tmp_path / "hf")
    options = {"cache_dir": str(tmp_path / "cache"), "split": "train"}
    loaded = datasets.load_dataset(str(tmp_path / "hf"), **options)
    assert len(loaded) == len(tokens)
    for row, codes in zip(loaded, tokens, strict=True):
        assert np.array_equal(row["codes"], codes)
    wavs = tokens.path.parent / "wavs"
    settings = Settings(shard_hours=0.0005, workers=0)
    encode_corpus(small_codec(), [wavs], tmp_path / "arrow", settings)
    files = str(tmp_path / "arrow" / "shards" / "*.arrow")
    shards = datasets.load_dataset("arrow", data_files=files, **options)
    for row, codes in zip(shards, tokens, strict=True):
        assert np.array_equal(np.reshape(row["codes"], (3, row["n_frames"])), codes)


def test_lhotse_opens_the_cuts_and_parts_of_them(tokens, tmp_path, monkeypatch):
    lhotse = pytest.importorskip("lhotse", reason="needs Lhotse")
    export_lhotse(tokens, tmp_path / "cuts")
    monkeypatch.chdir(tmp_path / "cuts")
    cuts = lhotse.CutSet.from_file(tmp_path / "cuts" / "cuts.jsonl.gz")
    found = list(cuts)
    assert [cut.id for cut in found] == [tokens.utterance(i).id for i in range(len(tokens))]
    for i, (cut, codes) in enumerate(zip(found, tokens, strict=True)):
        assert np.array_equal(cut.load_codes(), codes.T) and cut.n_samples == tokens.utterance(i).n_samples
        assert cut.duration == pytest.approx(codes.shape[1] / 125)
    # Frames 25 to 49: 125 a second.
    part = found[-1].truncate(offset=0.2, duration=0.2)
    assert np.array_equal(part.load_codes(), tokens[-1].T[25:50])


def test_codec_bpe_trains_on_the_export(tokens, tmp_path):
    export_codec_bpe(tokens, tmp_path / "bpe")
    info = json.loads((tmp_path / "bpe" / "codec_info.json").read_text())
    assert (info["num_codebooks"], info["codebook_size"], info["framerate"]) == (3, 64, 125)
    codes = np.load(tmp_path / "bpe" / "s1" / "utt 4_c0.npy")
    assert codes.dtype == np.int64 and np.array_equal(codes[0], tokens[tokens.find("s1/utt 4")])
    trainer = pytest.importorskip("codec_bpe.core.trainer", reason="needs codec-bpe")
    builder = pytest.importorskip("codec_bpe.core.converter")
    tokenizer = trainer.Trainer(3, 64, 125, chunk_size_secs=1, vocab_size=300, pad_token="<pad>").train(
        str(tmp_path / "bpe")
    )
    chars = builder.codes_to_chars(tokens[0].numpy(), 64)
    back = tokenizer.decode(tokenizer(chars)["input_ids"]).replace(" ", "")
    assert np.array_equal(builder.chars_to_codes(back, 3, 64), tokens[0])


MEGATRON = """
import json, sys
import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
dataset = IndexedDataset(sys.argv[1])
rows, documents = [row.tolist() for row in dataset], dataset.document_indices.tolist()
print(json.dumps({"dtype": np.dtype(dataset.index.dtype).name, "documents": documents, "rows": rows}))
"""


def test_megatron_opens_the_flattened_codes(tokens, tmp_path, monkeypatch):
    export_megatron(tokens, tmp_path / "small")
    monkeypatch.setattr(TokenDataset, "codebook_sizes", (64, 70_000, 64))
    export_megatron(tokens, tmp_path / "large")
    monkeypatch.setattr(TokenDataset, "codebook_sizes", (2**31,))
    with pytest.raises(ConfigError, match="exceed Megatron's int32"):
        export_megatron(tokens, tmp_path / "huge")
    if importlib.util.find_spec("megatron") is None:
        pytest.skip("needs Megatron")
    for name, offsets, dtype in (("small", [0, 64, 128], np.uint16), ("large", [0, 64, 70_064], np.int32)):
        # A process of its own: its import of distutils fails beside another one.
        command = [sys.executable, "-W", "ignore", "-c", MEGATRON, str(tmp_path / name / "tokens")]
        read = json.loads(subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1])
        about = json.loads((tmp_path / name / "tokens.json").read_text())
        assert about["codebook_offsets"] == offsets and about["end_token"] == offsets[-1] + 64
        assert about["vocabulary_size"] == about["end_token"] + 1 and about["frame_rate"] == [125, 1]
        assert read["dtype"] == np.dtype(dtype).name
        assert read["documents"] == list(range(len(tokens) + 1))
        for row, codes in zip(read["rows"], tokens, strict=True):
            expected = [code + offsets[k] for frame in codes.T.tolist() for k, code in enumerate(frame)]
            assert row == [*expected, about["end_token"]]


@pytest.mark.filterwarnings("ignore")  # WebDataset leaves its files open
def test_webdataset_opens_the_archives(tokens, tmp_path, monkeypatch):
    webdataset = pytest.importorskip("webdataset", reason="needs WebDataset")
    monkeypatch.setattr("codec.tokens.exports.FILE_CODES", 600)
    export_webdataset(tokens, tmp_path / "out")
    count = len(list((tmp_path / "out").glob("*.tar")))
    shards = str(tmp_path / "out" / f"{{000000..{count - 1:06d}}}.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    gc.collect()
    assert count > 2
    for i, (sample, codes) in enumerate(zip(samples, tokens, strict=True)):
        assert np.array_equal(sample["npy"], codes) and sample["npy"].dtype == np.uint8
        assert sample["json"]["id"] == tokens.utterance(i).id


def test_litdata_opens_the_chunks(tokens, tmp_path, monkeypatch):
    litdata = pytest.importorskip("litdata", reason="needs litdata")
    monkeypatch.chdir(tokens.path.parent / "wavs")  # where the paths in the metadata are files
    monkeypatch.setattr("codec.tokens.exports.CHUNK_BYTES", 1500)
    export_litdata(tokens, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.bin"))) > 2
    dataset = litdata.StreamingDataset(str(tmp_path / "out"))
    assert len(dataset) == len(tokens)
    for i, codes in enumerate(tokens):
        assert np.array_equal(dataset[i]["codes"], codes)
        assert json.loads(dataset[i]["json"])["path"] == tokens.utterance(i).path


def test_first_stages_and_refusals(tokens, tmp_path, monkeypatch):
    arguments = [str(tokens.path), "--to", "codec-bpe", "-o", str(tmp_path / "bpe")]
    assert main([*arguments, "--num-quantizers", "2"]) == 0
    assert np.load(tmp_path / "bpe" / "s1" / "utt 4_c0.npy").shape[1] == 2
    with pytest.raises(FileError, match="exists already"):
        main(arguments)
    with pytest.raises(ConfigError, match="num_quantizers must be 1 to 3"):
        main([*arguments, "--num-quantizers", "7"])
    monkeypatch.setattr(TokenDataset, "codebook_sizes", (64, 32, 64))
    with pytest.raises(ConfigError, match=r"codebooks of one size, got \[32, 64\]"):
        export_codec_bpe(tokens, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bpe"]


@pytest.mark.parametrize("name", EXPORTS)
def test_an_interrupted_export_leaves_nothing(name, tokens, tmp_path, monkeypatch):
    needed = {"hf": "pyarrow", "litdata": "litdata"}.get(name, "json")
    pytest.importorskip(needed, reason=f"needs {needed}")
    stored = TokenDataset.codes

    def interrupted(dataset, i, *span):
        if i == 4:
            raise KeyboardInterrupt
        return stored(dataset, i, *span)

    monkeypatch.setattr(TokenDataset, "codes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        EXPORTS[name](tokens, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_portions_are_all_utterances_in_order(tokens):
    parts = list(portions(tokens, range(len(tokens)), 400))
    assert [i for part in parts for i in part] == list(range(len(tokens))) and len(parts) > 2
    nested = [i for part in parts for group in portions(tokens, part, 200) for i in group]
    assert nested == list(range(len(tokens)))


def test_without_pyarrow_the_message_says_what_to_install(tokens, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"neural-audio-codec\[tokens\]"):
        export_hf(tokens, tmp_path / "hf")
