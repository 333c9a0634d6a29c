"""Compare a codebook of a token dataset with labels in time, such as phones.

    codec-encode runs/mine /speech -o tokens
    python scripts/codebook_purity.py tokens phones.csv --stage 0

`phones.csv` has the columns file, start, end (seconds) and label; file is a path or id of the dataset. A
frame has the label at its center; frames without one are not counted. The measures are those of HuBERT
(arXiv 2106.07447, section IV-D). Beside them is chance: those of the same labels in random order.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from codec.commands.errors import report_errors
from codec.config import ConfigError
from codec.tokens.dataset import TokenDataset

COLUMNS = ("file", "start", "end", "label")


def read_labels(path: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Rows (start, end, label) by file; ConfigError for missing columns, or times that are no numbers."""
    labels: dict[str, list[tuple[float, float, str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                times = float(row["start"]), float(row["end"])
                labels.setdefault(row["file"], []).append((*times, row["label"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{path}, line {number}: expected {', '.join(COLUMNS)}: {error}") from error
    return labels


def count(tokens: TokenDataset, labels: dict[str, list[tuple[float, float, str]]], stage: int) -> Counter:
    """Number of frames with each pair of code and label."""
    pairs: Counter[tuple[int, str]] = Counter()
    for name, rows in labels.items():
        if name not in tokens.index.by_name:
            continue
        codes = tokens.codes(tokens.find(name))[stage].tolist()
        for start, end, label in rows:
            first, last = (max(0, int(np.ceil(time * tokens.frame_rate - 0.5))) for time in (start, end))
            pairs.update((code, label) for code in codes[first:last])
    return pairs


def purity(pairs: Counter) -> dict[str, float]:
    """Phone purity, cluster purity, mutual information over the entropy of labels, number of frames."""
    codes, names = (
        {key: n for n, key in enumerate(sorted({pair[side] for pair in pairs}))} for side in (0, 1)
    )
    joint = np.zeros((len(codes), len(names)))
    for (code, label), frames in pairs.items():
        joint[codes[code], names[label]] = frames
    total = joint.sum()
    joint /= total
    by_code, by_label = joint.sum(1), joint.sum(0)
    used = joint > 0
    information = (joint[used] * np.log(joint[used] / np.outer(by_code, by_label)[used])).sum()
    entropy = -(by_label * np.log(by_label)).sum()
    return {
        "phone_purity": joint.max(1).sum(),
        "cluster_purity": joint.max(0).sum(),
        "normalized_information": information / entropy if entropy else 0.0,
        "frames": total,
    }


def shuffled(pairs: Counter, seed: int = 0) -> Counter:
    """Pairs of the same codes with the same labels in random order."""
    codes, labels = zip(*pairs.elements(), strict=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return Counter(zip(codes, (labels[n] for n in order), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the measures of one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tokens", type=Path, help="token dataset of codec-encode")
    parser.add_argument("labels", type=Path, help="CSV of file, start, end, label")
    parser.add_argument("--stage", type=int, default=0, help="codebook, from 0; default: %(default)s")
    options = parser.parse_args(argv)
    tokens = TokenDataset(options.tokens)
    if not tokens.num_quantizers:
        raise ConfigError(f"{options.tokens} holds continuous latents: only codes have a purity")
    if options.stage not in range(tokens.num_quantizers):
        raise ConfigError(f"--stage must be 0 to {tokens.num_quantizers - 1}, got {options.stage}")
    pairs = count(tokens, read_labels(options.labels), options.stage)
    if not pairs:
        raise ConfigError(
            f"{options.labels}: no label is of a frame of {options.tokens}: compare the file names"
        )
    chance = purity(shuffled(pairs))
    for name, value in purity(pairs).items():
        print(f"{name} {value:.4g}" + (f" (chance {chance[name]:.4g})" if name != "frames" else ""))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
