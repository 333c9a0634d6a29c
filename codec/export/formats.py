"""Formats of exported codecs: a writer of each, which compares its result with the codec."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.audio.synthetic import music, speech
from codec.export import onnx as onnx_export
from codec.export import openvino as openvino_export
from codec.export.comparison import compare_steps, compare_whole, first, lengths
from codec.export.graphs import conditions, inference_codec, programs
from codec.export.progress import log
from codec.export.streaming_graphs import step_programs
from codec.export.transformers_check import check
from codec.export.verification import Comparison, compare
from codec.huggingface import convert as huggingface
from codec.model.codec import Codec
from codec.model.saving import load

ONNX = ("onnx", "onnxscript", "onnxruntime")


class Options(NamedTuple):
    """Options of an export."""

    streaming: bool = False
    frames_per_step: int = 1
    int8: bool = False
    bf16: bool = False


class Format(NamedTuple):
    """Format of an export: its writer, the options that it has, its packages and their extra."""

    write: Callable[[Codec, Path, Options], dict[str, Comparison]]
    options: frozenset[str] = frozenset()
    extra: str = "export"
    packages: tuple[str, ...] = ()


def export_torch(codec: Codec, folder: Path, options: Options) -> dict[str, Comparison]:
    """Write `encoder.pt2` and `decoder.pt2` with `torch.export`, and step graphs if requested.

    Such files can hold pickled objects: use `torch.export.load` only on trusted files.
    """
    plain, comparisons = inference_codec(codec), {}
    for name, program in programs(plain).items():
        save_program(program, folder / f"{name}.pt2")
    encode, decode = (load_program(folder / f"{name}.pt2") for name in ("encoder", "decoder"))
    comparisons |= compare_whole(codec, encode, decode)
    if options.streaming:
        graphs = step_programs(codec, options.frames_per_step)
        for name, graph in graphs.items():
            save_program(graph.program, folder / f"{name}.pt2")
        steps = {name: load_program(folder / f"{name}.pt2") for name in graphs}
        states = {name: graph.initial for name, graph in graphs.items()}
        comparisons["streamed"] = compare_steps(codec, steps, states, options.frames_per_step)
    return comparisons


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program; suppresses torch's warnings about its format."""
    log.info("writing %s", path.name)
    content = io.BytesIO()  # torch's file writer aborts the process when a disk is full
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def load_program(path: Path) -> Callable[..., Tensor]:
    """Load a program as a function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()


def export_onnx(codec: Codec, folder: Path, options: Options) -> dict[str, Comparison]:
    """Write `encoder.onnx`, `decoder.onnx`, with --streaming also `*_step.onnx`; all run in ONNX Runtime."""
    plain, metadata, comparisons = inference_codec(codec), onnx_export.about(codec), {}
    onnx_export.write_whole(programs(plain), folder, metadata)
    names = ["encoder", "decoder"]
    if options.streaming:
        graphs = step_programs(codec, options.frames_per_step)
        onnx_export.write_steps(graphs, folder, metadata)
        names += graphs
    if options.int8:
        audio = calibration(codec)
        inputs = {"encoder": audio, "decoder": [[codec.encode(clip[0])] for clip in audio]}
        for name in names:
            onnx_export.to_int8(folder / f"{name}.onnx", inputs.get(name))
    sessions = {name: onnx_export.Session(folder / f"{name}.onnx") for name in names}
    encode, decode = (partial(first, sessions[name]) for name in ("encoder", "decoder"))
    comparisons |= compare_whole(codec, encode, decode)
    if options.streaming:
        states = {name: session.initial for name, session in sessions.items()}
        comparisons["streamed"] = compare_steps(codec, sessions, states, options.frames_per_step)
    return comparisons


def calibration(codec: Codec) -> list[list[Tensor]]:
    """Speech-like and music-like clips `[1, C, T]`, with other seeds than in verification.

    If the condition is an input of graphs, they take turns.
    """
    shape = codec.sample_rate, codec.audio_channels
    sounds = [
        make(2.0, shape[0], np.random.default_rng(100 + i)) for i in range(4) for make in (speech, music)
    ]
    clips = [torch.from_numpy(sound)[None, None].repeat(1, shape[1], 1) for sound in sounds]
    count = len(conditions(codec))
    return [[clip, *([torch.tensor([i // 2 % count])] if count else [])] for i, clip in enumerate(clips)]


def export_huggingface(codec: Codec, folder: Path, options: Options) -> dict[str, Comparison]:
    """Write a directory for `EncodecModel`, `DacModel`, `MimiModel` or `WavTokenizerModel`."""
    log.info("writing a model of transformers")
    name = huggingface.save(codec, folder)
    log.info("comparing it with the codec")
    return {f"transformers.{name}": check(codec, folder)}


def export_openvino(codec: Codec, folder: Path, options: Options) -> dict[str, Comparison]:
    """Write `network.xml`, `quantizer.xml` and `decoder.xml` for OpenVINO, the fastest runtime on CPUs."""
    clips = calibration(codec) if options.int8 else None
    openvino_export.write(codec, folder, onnx_export.about(codec), clips)
    session = openvino_export.Session(folder, bf16=options.bf16)
    return compare_whole(codec, session.encode, session.decode)


def export_codec(codec: Codec, folder: Path, options: Options) -> dict[str, Comparison]:
    """Write a directory for `codec.load`, for example from a model of `transformers`, to train it further."""
    log.info("writing the codec")
    codec.save(folder)
    copy = load(folder)
    return {"saved": compare(codec, copy.encode, copy.decode, lengths(codec))}


FORMATS = {
    "onnx": Format(export_onnx, frozenset({"streaming", "int8"}), packages=ONNX),
    "torch": Format(export_torch, frozenset({"streaming"})),
    "openvino": Format(export_openvino, frozenset({"int8", "bf16"}), "openvino", (*ONNX, "openvino")),
    "hf": Format(export_huggingface, packages=("transformers",)),
    "codec": Format(export_codec),
}
