"""Score a codec on noisy speech, under each of its conditions, against the clean speech.

    python scripts/denoising.py runs/mine /speech /noise -o denoising.csv --metrics pesq_wb,dnsmos_p808

Recordings of /speech are mixed with recordings of /noise at each signal-to-noise ratio. A file gets the same
noise in every row. The noisy input is scored too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from curve_scores import Listener, Reconstruction, Row
from torch import Tensor

from codec.commands.errors import report_errors
from codec.config import ConfigError
from codec.data.degradation import Degradation, Degrader, Noise
from codec.data.index import IndexedFile
from codec.data.scan import scan
from codec.evaluation.tables import write_table
from codec.metrics.registry import choose_metrics
from codec.model.codec import Codec
from codec.model.saving import load

COLUMNS = ("snr_db", "audio")
SEED = 0


def noisy(audio: Tensor, noises: Sequence[IndexedFile], sample_rate: int, snr_db: float) -> Tensor:
    """Clean audio `[1, C, T]` with the noise that its content draws."""
    options = Degradation(Noise("", 1.0, (snr_db, snr_db)))
    shape = audio.shape[-1], sample_rate, audio.shape[1]
    content = int(audio.abs().sum().item() * 1e6)
    random = np.random.default_rng((SEED, content))
    mixed = Degrader(options, noises, (), shape).apply(audio[0].numpy(), random)
    return torch.from_numpy(mixed.audio)[None]


def measure(codec: Codec, listener: Listener, noises: Sequence[IndexedFile], snr_db: float) -> list[Row]:
    """Rows of the noisy input and of each condition, at one signal-to-noise ratio in dB."""

    def code(audio: Tensor) -> list[Reconstruction]:
        mixed = noisy(audio, noises, codec.sample_rate, snr_db)
        coded = [
            Reconstruction(name, codec.decode(codec.encode(mixed, condition=name), mixed.shape[-1]), {})
            for name in codec.conditioning.names
        ]
        return [Reconstruction("noisy input", mixed, {}), *coded]

    rows = listener.judge(code)
    return [{"snr_db": f"{snr_db:g}", "audio": name, **row} for name, row in rows.items()]


def main() -> int:
    """Measure all ratios and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="run, saved codec or checkpoint")
    parser.add_argument("speech", type=Path, help="folder of clean recordings that were not trained on")
    parser.add_argument("noise", type=Path, help="folder of noise")
    parser.add_argument("-o", "--output", type=Path, required=True, help="table to write, csv")
    parser.add_argument("--snr", default="0,5,10,20", help="ratios in dB; default: %(default)s")
    parser.add_argument("--metrics", default="", help="names or groups, as in codec-evaluate")
    parser.add_argument("--max-files", type=int, default=40, help="recordings; default: %(default)s")
    options = parser.parse_args()
    codec = load(options.model)
    if not codec.conditioning.names:
        raise ConfigError(f"{options.model}: this codec was trained without conditions")
    metrics, omitted = choose_metrics(list(filter(None, options.metrics.split(","))))
    for reason in omitted:
        print(f"not scored: {reason}", file=sys.stderr)
    speech, noise = scan(options.speech), scan(options.noise)
    chosen = speech.usable[:: max(1, len(speech.usable) // options.max_files)][: options.max_files]
    files = [file.below(speech.root).path for file in chosen]
    noises = [file.below(noise.root) for file in noise.usable]
    listener = Listener(files, codec.sample_rate, codec.audio_channels, metrics)
    try:
        rows = [row for snr in options.snr.split(",") for row in measure(codec, listener, noises, float(snr))]
    finally:
        listener.close()
    columns = [*COLUMNS, *listener.names, "files", "seconds"]
    write_table(options.output, columns, [list(map(row.get, columns)) for row in rows])
    print(options.output.read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
