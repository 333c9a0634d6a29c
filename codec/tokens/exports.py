"""`codec-export-tokens TOKENS --to hf -o FOLDER`: export of token datasets to formats of other libraries."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from codec.config import ConfigError
from codec.system.files import folder_whole
from codec.tokens.arrow import pyarrow
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import Utterance, inside, mirrored

GROUP_CODES = 2**22  # codes in memory at a time
FILE_CODES = 2**26  # codes in one Parquet file


def export_hf(tokens: TokenDataset, output: Path) -> None:
    """Write Parquet for `datasets.load_dataset(output)`: one row per utterance, codes `[K][F]`."""
    pa = pyarrow()
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    kind = pa.from_numpy_dtype(tokens.format.dtype)
    facts = [(name, pa.string()) for name in ("id", "path", "sha256")]
    facts += [(name, pa.int64()) for name in ("channels", "sample_rate", "n_samples", "n_frames")]
    schema = pa.schema([*facts, ("codes", pa.list_(pa.list_(kind)))])
    files = list(portions(tokens, range(len(tokens)), FILE_CODES))
    with folder_whole(output) as work, tqdm(total=len(tokens), desc="exporting", delay=1.0) as bar:
        (work / "data").mkdir()
        for number, part in enumerate(files):
            path = work / "data" / f"train-{number:05d}-of-{len(files):05d}.parquet"
            with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
                for group in portions(tokens, part, GROUP_CODES):
                    rows = [hf_row(tokens, i) for i in group]
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    bar.update(len(rows))
        about = describe(tokens)
        (work / "README.md").write_text(CARD.format(about=json.dumps(about, indent=2)), encoding="utf-8")


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
Tokens of a neural audio codec; `codes` are `[num_quantizers][n_frames]`.

```json
{about}
```
"""


def hf_row(tokens: TokenDataset, i: int) -> dict[str, Any]:
    """Row of an utterance: its metadata and codes."""
    row = tokens.utterance(i)
    names = ("id", "path", "sha256", "channels", "sample_rate", "n_samples", "n_frames")
    return {name: getattr(row, name) for name in names} | {"codes": list(compact(tokens, i))}


def portions(tokens: TokenDataset, part: Sequence[int], most_codes: int) -> Iterator[range]:
    """Split into ranges of successive utterances with at most `most_codes` codes, or one longer utterance."""
    begin = codes = 0
    for n, i in enumerate(part):
        size = int(tokens.index.n_frames[i]) * tokens.num_quantizers
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
            for i in tqdm(range(len(tokens)), desc="exporting", delay=1.0):
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
        for i in tqdm(range(len(tokens)), desc="exporting", delay=1.0):
            name = mirrored(inside(tokens.utterance(i).id), "_c0.npy")
            save_npy(work / name, tokens.codes(i).numpy()[None])
        (work / "codec_info.json").write_text(json.dumps(about, indent=4))


def compact(tokens: TokenDataset, i: int) -> np.ndarray:
    """Codes `[K, F]` of an utterance in the dataset's type, after verifying their CRC-32."""
    tokens.verify(i)
    return tokens.codes(i).numpy().astype(tokens.format.dtype)


def save_npy(path: Path, codes: np.ndarray) -> None:
    """Write a `.npy` file, creating its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file: BinaryIO
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(codes), allow_pickle=False)


def describe(tokens: TokenDataset) -> dict[str, Any]:
    """Dataset's description, restricted to the exported codebooks."""
    sizes = {"num_quantizers": tokens.num_quantizers, "codebook_sizes": list(tokens.codebook_sizes)}
    return {name: value for name, value in tokens.description.items() if name != "order"} | sizes


EXPORTS = {"hf": export_hf, "lhotse": export_lhotse, "codec-bpe": export_codec_bpe}
