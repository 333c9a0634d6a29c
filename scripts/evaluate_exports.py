"""Measure the errors of int8 and bf16 on recordings: equal codes, mel distance, ViSQOL.

    python scripts/evaluate_exports.py runs/mine /wavs --held-out 0.05 --max-files 20

Prints a Markdown table of eager PyTorch, ONNX Runtime and OpenVINO on the same files, means with half of
their 95 % bootstrap intervals over files. Needs the extras `export`, `openvino` and `metrics`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from codec.data.scan import scan
from codec.data.split import split
from codec.evaluation.reading import read_clip
from codec.evaluation.statistics import interval
from codec.export import onnx as onnx_export
from codec.export import openvino as openvino_export
from codec.export.formats import FORMATS, Options
from codec.metrics.process import MetricProcess
from codec.metrics.registry import choose_metrics
from codec.metrics.signal import mel_distance
from codec.model.codec import Codec
from codec.model.saving import load

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # encode, decode


def exported(codec: Codec, folder: Path) -> dict[str, Pair]:
    """Systems that compute with fewer bits, by name."""
    for name, options in (
        ("onnx", Options(int8=True)),
        ("openvino", Options(int8=True)),
        ("bf16", Options(bf16=True)),
    ):
        (folder / name).mkdir()
        FORMATS["openvino" if name == "bf16" else name].write(codec, folder / name, options)
    encoder, decoder = (
        onnx_export.Session(folder / "onnx" / f"{side}.onnx") for side in ("encoder", "decoder")
    )
    bf16 = openvino_export.Session(folder / "bf16", bf16=True)
    int8 = openvino_export.Session(folder / "openvino")
    return {
        "OpenVINO bf16": (bf16.encode, bf16.decode),
        "OpenVINO int8": (int8.encode, int8.decode),
        "ONNX Runtime int8": (lambda audio: encoder(audio)[0], lambda codes: decoder(codes)[0]),
    }


def summed(values: list[float]) -> str:
    """Mean and half of the interval."""
    low, high = interval(values)
    return f"{sum(values) / len(values):.3f} ± {(high - low) / 2:.3f}"


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metric", default="visqol_speech")
    parser.add_argument("--held-out", type=float, help="only files that training on the folder holds out")
    parser.add_argument("--max-files", type=int, default=100)
    asked = parser.parse_args()
    ((metric,), _), codec = choose_metrics([asked.metric]), load(asked.model)
    index = scan(asked.folder).require_usable()
    files = split(index.usable, asked.held_out)[1] if asked.held_out else index.usable
    process, rate = MetricProcess(), codec.sample_rate
    rows: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        pairs: dict[str, Pair] = {"eager": (codec.encode, codec.decode), **exported(codec, Path(temporary))}
        for file in files[: asked.max_files]:
            clip = read_clip(file.located(index.root), rate, codec.audio_channels, 20.0)
            audio = torch.from_numpy(clip)[None]
            expected = codec.encode(audio)
            for name, (encode, decode) in pairs.items():
                codes = encode(audio)
                estimate = decode(codes)[..., : audio.shape[-1]]
                heard, reason = process.score(metric, estimate[0].numpy(), audio[0].numpy(), rate)
                if heard is None:
                    raise SystemExit(f"{file.path}: {metric.name}: {reason}")
                equal = 100 * float((codes == expected).float().mean())
                mel = float(mel_distance(estimate, audio, rate))
                rows.setdefault(name, []).append([equal, mel, heard])
    process.close()
    print(
        f"| {len(rows['eager'])} files | equal codes, % | mel distance | {metric.name} |\n|---|---|---|---|"
    )
    for name, scores in rows.items():
        print(f"| {name} | {' | '.join(summed(list(column)) for column in zip(*scores, strict=True))} |")


if __name__ == "__main__":
    main()
