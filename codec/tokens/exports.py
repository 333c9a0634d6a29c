"""`codec-export-tokens TOKENS --to hf -o FOLDER`: export of token datasets to formats of other libraries."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from codec.config import ConfigError
from codec.system.files import folder_whole
from codec.system.progress import progress_bar
from codec.tokens.arrow import pyarrow
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import Utterance, inside, mirrored
from codec.tokens.views import flatten

GROUP_CODES = 2**22  # codes in memory at a time
FILE_CODES = 2**26  # codes in one file
CHUNK_BYTES = 2**26  # of litdata


def export_hf(tokens: TokenDataset, output: Path) -> None:
    """Write Parquet for `datasets.load_dataset(output)`: one row per utterance, codes or latents `[R][F]`."""
    pa = pyarrow()
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    kind = pa.from_numpy_dtype(tokens.format.dtype)
    types = dict.fromkeys(FACTS, pa.int64()) | dict.fromkeys(("id", "path", "sha256"), pa.string())
    schema = pa.schema([*types.items(), (tokens.format.column, pa.list_(pa.list_(kind)))])
    files = list(portions(tokens, range(len(tokens)), FILE_CODES))
    with folder_whole(output) as work, progress_bar(None, "exporting", total=len(tokens)) as bar:
        (work / "data").mkdir()
        for number, part in enumerate(files):
            path = work / "data" / f"train-{number:05d}-of-{len(files):05d}.parquet"
            with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
                for group in portions(tokens, part, GROUP_CODES):
                    rows = [
                        facts(tokens, i) | {tokens.format.column: list(compact(tokens, i))} for i in group
                    ]
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    bar.update(len(rows))
        card = CARD.format(column=tokens.format.column, about=json.dumps(describe(tokens), indent=2))
        (work / "README.md").write_text(card, encoding="utf-8")


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
Tokens of a neural audio codec; `{column}` are `[num_quantizers or latent_dim][n_frames]`.

```json
{about}
```
"""


FACTS = ("id", "path", "sha256", "channels", "sample_rate", "n_samples", "n_frames")


def facts(tokens: TokenDataset, i: int) -> dict[str, Any]:
    """Metadata of an utterance."""
    row = tokens.utterance(i)
    return {name: getattr(row, name) for name in FACTS}


def portions(tokens: TokenDataset, part: Sequence[int], most_codes: int) -> Iterator[range]:
    """Split into ranges of successive utterances of at most `most_codes` values, or one longer one."""
    begin = codes = 0
    for n, i in enumerate(part):
        size = int(tokens.index.n_frames[i]) * tokens.rows
        if n > begin and codes + size > most_codes:
            yield range(part[begin], part[n - 1] + 1)
            begin, codes = n, 0
        codes += size
    if len(part):
        yield range(part[begin], part[-1] + 1)


def export_lhotse(tokens: TokenDataset, output: Path) -> None:
    """Write `cuts.jsonl.gz` for `lhotse.CutSet.from_file`; `cut.load_codes()` returns `[F, K]`.

    A cut lasts whole frames; the recording's own length is its `n_samples` at its `source_sample_rate`. The
    folder's absolute path is stored, because Lhotse resolves relative paths in the working directory.
    """
    shift = tokens.format.hop_length / tokens.format.sample_rate
    with folder_whole(output) as work:
        with gzip.open(work / "cuts.jsonl.gz", "wt", encoding="ascii") as file:
            for i in progress_bar(range(len(tokens)), "exporting"):
                row = tokens.utterance(i)
                place = {"storage_type": "numpy_files", "storage_path": os.path.abspath(output)}
                place["storage_key"] = f"codes/{mirrored(inside(row.path), '.npy')}"
                save_npy(work / place["storage_key"], compact(tokens, i).T)
                file.write(json.dumps(lhotse_cut(tokens, row, place, shift)) + "\n")
        (work / "tokens.json").write_text(json.dumps(describe(tokens), indent=2))


def lhotse_cut(tokens: TokenDataset, row: Utterance, place: dict[str, str], shift: float) -> dict[str, Any]:
    """`MonoCut` with the codes as a custom field and as features, without which a cut has no sample rate."""
    span = {"start": 0, "duration": row.n_frames * shift}
    shape = [row.n_frames, tokens.num_quantizers]
    codes = {"array": {**place, "shape": shape}, "temporal_dim": 0, "frame_shift": shift, "start": 0}
    features = {"type": "codes", "num_frames": shape[0], "num_features": shape[1], "frame_shift": shift}
    features |= {"sampling_rate": tokens.format.sample_rate, "channels": 0, **span, **place}
    facts = {"n_samples": row.n_samples, "source_sample_rate": row.sample_rate, "path": row.path}
    cut = {"id": row.id, **span, "channel": 0, "supervisions": [], "features": features}
    return cut | {"custom": {"codes": codes, **facts}, "type": "MonoCut"}


def export_codec_bpe(tokens: TokenDataset, output: Path) -> None:
    """Write `ID_c0.npy` files, int64 `[1, K, F]`, and `codec_info.json`, as codec-bpe does.

    ConfigError for codebooks of different sizes, for which codec-bpe has no vocabulary.
    """
    sizes = set(tokens.codebook_sizes)
    if len(sizes) > 1:
        raise ConfigError(f"codec-bpe needs codebooks of one size, got {sorted(sizes)}: --num-quantizers")
    about = {
        "codec_type": "codec",
        "codec_model": tokens.format.codec_id,
        "sampling_rate_encoder": tokens.format.sample_rate,
        "sampling_rate_decoder": tokens.format.sample_rate,
        "num_codebooks": tokens.num_quantizers,
        "codebook_size": tokens.codebook_sizes[0],
        "framerate": tokens.frame_rate,
    }
    with folder_whole(output) as work:
        for i in progress_bar(range(len(tokens)), "exporting"):
            name = mirrored(inside(tokens.utterance(i).id.replace(":", "%3A")), "_c0.npy")
            save_npy(work / name, tokens.codes(i).numpy()[None])
        (work / "codec_info.json").write_text(json.dumps(about, indent=4))


def export_megatron(tokens: TokenDataset, output: Path) -> None:
    """Write `tokens.bin` and `tokens.idx`, an `IndexedDataset` of Megatron-LM: a document per utterance.

    Codes are in the order of `flatten`, codebook k offset by the sizes before it; an end token follows.
    They are uint16 for fewer than 65500 tokens, as Megatron chooses, else int32. ConfigError for more tokens
    than int32 has.
    """
    sizes = tokens.codebook_sizes
    end = sum(sizes)
    if end >= 2**31:
        raise ConfigError(f"{end + 1} tokens exceed Megatron's int32: export fewer with --num-quantizers")
    dtype, code = (np.dtype("<u2"), 8) if end + 1 < 65500 else (np.dtype("<i4"), 4)
    lengths = tokens.index.n_frames.astype(np.int64) * len(sizes) + 1
    starts = np.cumsum(lengths) - lengths
    with folder_whole(output) as work:
        with (work / "tokens.bin").open("wb") as file:
            for i in progress_bar(range(len(tokens)), "exporting"):
                codes = flatten(tokens.codes(i), sizes).numpy()
                file.write(np.append(codes, end).astype(dtype).tobytes())
        header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(tokens), len(tokens) + 1)
        documents = np.arange(len(tokens) + 1, dtype="<i8")
        arrays = (lengths.astype("<i4"), (starts * dtype.itemsize).astype("<i8"), documents)
        (work / "tokens.idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
        about = {"vocabulary_size": end + 1, "end_token": end, "dtype": dtype.name, "order": MEGATRON_ORDER}
        about["codebook_offsets"] = np.cumsum((0, *sizes[:-1])).tolist()
        (work / "tokens.json").write_text(json.dumps(describe(tokens) | about, indent=2))


MEGATRON_ORDER = (
    "frame by frame, within a frame stage by stage, each code plus its codebook_offsets; end_token"
)


def export_webdataset(tokens: TokenDataset, output: Path) -> None:
    """Write tars for `webdataset.WebDataset`: `NUMBER.npy`, codes or latents `[R, F]`, and `NUMBER.json`.

    Samples are numbered, because WebDataset ends a key at its first dot.
    """
    shards = list(portions(tokens, range(len(tokens)), FILE_CODES))
    with folder_whole(output) as work, progress_bar(None, "exporting", total=len(tokens)) as bar:
        for number, part in enumerate(shards):
            with tarfile.open(work / f"{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for i in part:
                    array = io.BytesIO()
                    np.save(array, compact(tokens, i), allow_pickle=False)
                    add_member(tar, f"{i:09d}.npy", array.getvalue())
                    add_member(tar, f"{i:09d}.json", json.dumps(facts(tokens, i)).encode())
                    bar.update()
        (work / "tokens.json").write_text(json.dumps(describe(tokens), indent=2))


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file to a tar archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def export_litdata(tokens: TokenDataset, output: Path) -> None:
    """Write chunks for `litdata.StreamingDataset`: `codes` or `latents` `[R, F]`, and the metadata as `json`.

    ConfigError without litdata.
    """
    try:
        from litdata.streaming import Cache  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ConfigError("--to litdata needs litdata: pip install litdata") from error
    with folder_whole(output) as work:
        chunks = Cache(str(work), chunk_bytes=CHUNK_BYTES)
        for i in progress_bar(range(len(tokens)), "exporting"):
            # As a plain string, a path that is a file here would be replaced by the file's content.
            chunks[i] = {tokens.format.column: compact(tokens, i), "json": json.dumps(facts(tokens, i))}
        chunks.done()
        chunks.merge()
        (work / "tokens.json").write_text(json.dumps(describe(tokens), indent=2))


def compact(tokens: TokenDataset, i: int) -> np.ndarray:
    """Codes or latents `[R, F]` of an utterance in the dataset's type, after verifying their CRC-32."""
    tokens.verify(i)
    return tokens.codes(i).numpy().astype(tokens.format.dtype)


def save_npy(path: Path, codes: np.ndarray) -> None:
    """Write a `.npy` file, creating its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file: BinaryIO
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(codes), allow_pickle=False)


def describe(tokens: TokenDataset) -> dict[str, Any]:
    """Dataset's description, restricted to the exported codebooks; of latents with their statistics."""
    sizes = {"num_quantizers": tokens.num_quantizers, "codebook_sizes": list(tokens.codebook_sizes)}
    about = {name: value for name, value in tokens.description.items() if name != "order"}
    return about | sizes if tokens.codebook_sizes else about


EXPORTS = {
    "hf": export_hf,
    "lhotse": export_lhotse,
    "codec-bpe": export_codec_bpe,
    "megatron": export_megatron,
    "webdataset": export_webdataset,
    "litdata": export_litdata,
}
