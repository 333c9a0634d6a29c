"""`codec-export MODEL --to FORMAT -o DIR`: export a codec; the result is kept only if it is equivalent."""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec.audio.synthetic import music, speech
from codec.commands.arguments import parse
from codec.commands.export_options import Options, check_codec, check_options
from codec.config import ConfigError
from codec.export import onnx as onnx_export
from codec.export import openvino as openvino_export
from codec.export.graphs import conditions, inference_codec, programs
from codec.export.model_card import model_card
from codec.export.progress import log, progress
from codec.export.streaming_graphs import run_steps, step_programs
from codec.export.transformers_check import check
from codec.export.verification import EXACT, Comparison, Limits, compare, optional
from codec.huggingface import convert as huggingface
from codec.model.codec import Codec
from codec.model.saving import load
from codec.system.files import folder_whole, require_free

# For trained codecs, bf16 keeps 86 to 92 % of the codes, an SNR of 45 dB and the same mel distance; int8
# keeps 64 to 71 %, 30 dB and up to 10 % more distance. Deep stages code small residuals: their codes change
# first and matter least. Values far below these are faults, not rounding.
REDUCED = Limits(agreement=0.5, snr=20.0, rise=0.2)


def lengths(codec: Codec) -> list[tuple[int, int]]:
    """Batch sizes and lengths for the comparison of whole-signal graphs, with whole and partial frames."""
    hop = codec.hop_length
    return [(1, 1), (1, hop), (1, hop + 1), (3, 7 * hop - 1), (2, 40 * hop), (1, 200 * hop + 3)]


def limits(options: Options) -> Limits:
    """Limits of the comparison for the requested precision."""
    return REDUCED if options.int8 or options.bf16 else EXACT


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
        comparisons["streamed"] = compare_steps(codec, steps, states, options)
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
        onnx_export.write_steps(step_programs(codec, options.frames_per_step), folder, metadata)
        names += ["encoder_step", "decoder_step"]
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
        comparisons["streamed"] = compare_steps(codec, sessions, states, options)
    return comparisons


def compare_whole(
    codec: Codec, encode: Callable[..., Tensor], decode: Callable[[Tensor], Tensor]
) -> dict[str, Comparison]:
    """Compare on whole signals with all stages, and the decoder also with each smaller number of stages.

    Each condition that is an input is compared.
    """
    log.info("comparing whole signals with the codec")
    comparisons = {
        f"whole signals{case}": compare(codec, call, decode, lengths(codec), condition=name)
        for case, name, call in by_condition(codec, encode)
    }
    stages = range(1, codec.quantizer.num_quantizers)
    if stages:
        log.info("comparing the decoder with fewer stages")
        shapes = [(1, 7 * codec.hop_length - 1)]
        comparisons["fewer stages"] = Comparison.worst(
            compare(codec, partial(codec.encode, num_quantizers=n), decode, shapes, stages=n) for n in stages
        )
    return comparisons


def by_condition(
    codec: Codec, encode: Callable[..., Any]
) -> Iterator[tuple[str, str | None, Callable[..., Any]]]:
    """Yield a suffix of the case, a condition, and `encode` with it as its second argument.

    Yields `encode` itself, and None, if the condition is no input.
    """
    if not conditions(codec):
        yield "", None, encode
    for number, name in enumerate(conditions(codec)):
        yield f", {name}", name, partial(called_with, encode, number)


def called_with(encode: Callable[..., Any], number: int, audio: Tensor, *state: Tensor) -> Any:
    """Call a graph with a condition for all of the batch."""
    return encode(audio, torch.full((len(audio),), number), *state)


def first(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
    """Return the only output of a function that returns a tuple."""
    return function(*inputs)[0]


def compare_steps(
    codec: Codec, steps: Mapping[str, Callable], states: Mapping[str, list[Tensor]], options: Options
) -> Comparison:
    """Compare step graphs, from the initial state, with the codec on the whole signal."""
    log.info("comparing steps with the codec")
    frames, hop = options.frames_per_step, codec.hop_length
    decode = partial(run, steps["decoder_step"], states["decoder_step"], frames)
    shapes = [(1, frames * hop), (2, 24 * frames * hop)]
    return Comparison.worst(
        compare(
            codec,
            partial(run, step, states["encoder_step"], frames * hop),
            decode,
            shapes,
            condition=name,
        )
        for _, name, step in by_condition(codec, steps["encoder_step"])
    )


def run(step: Callable, initial: list[Tensor], length: int, signal: Tensor) -> Tensor:
    """Call `run_steps`, with the signal as the last argument."""
    return run_steps(step, initial, signal, length)


def export_huggingface(codec: Codec, folder: Path, options: Options) -> dict[str, Comparison]:
    """Write a directory for `EncodecModel`, `DacModel` or `MimiModel` of `transformers`."""
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


FORMATS: dict[str, Callable[[Codec, Path, Options], dict[str, Comparison]]] = {
    "onnx": export_onnx,
    "torch": export_torch,
    "openvino": export_openvino,
    "hf": export_huggingface,
    "codec": export_codec,
}


def export(codec: Codec, form: str, folder: Path, options: Options, card: Callable[..., str]) -> list[str]:
    """Export a codec to the format `form` in a new folder; returns the comparisons as lines of text.

    The folder appears only after all checks. `card` writes its README.md from the comparisons. ConfigError if
    a comparison exceeds the limits.
    """
    check_codec(codec, form, options)
    with folder_whole(folder) as staging:
        comparisons = FORMATS[form](codec, staging, options)
        lines = [f"{case}: {comparison}" for case, comparison in comparisons.items()]
        for case, comparison in comparisons.items():
            comparison.require(f"{form}, {case},", limits(options))
        (staging / "README.md").write_text(card(form=form, options=options, checks=lines), encoding="utf-8")
    return lines


def main(argv: Sequence[str]) -> int:
    """Run the command; exit status 0: exported and verified, 2: nothing was kept."""
    arguments = parse("export", argv)
    options = Options(arguments.streaming, arguments.frames_per_step, arguments.int8, arguments.bf16)
    check_options(arguments.to, options)
    check_others(arguments)
    with progress():
        log.info("loading %s", arguments.model)
        codec = huggingface.load_any(arguments.model, arguments.zero_padding)
        if arguments.condition:
            codec.set_condition(arguments.condition)
        card = partial(model_card, codec, arguments.model, license_id=arguments.license)
        lines = export(codec, arguments.to, arguments.output, options, card)
    print("\n".join(lines))
    print(f"{arguments.to}: {arguments.output}")
    if arguments.push:
        print(push(arguments.output, arguments.push, arguments.dry_run))
    return 0


def check_others(asked: argparse.Namespace) -> None:
    """Raise ConfigError for conflicting options, an existing folder or a missing package."""
    if asked.zero_padding and not huggingface.is_huggingface(asked.model):
        raise ConfigError(f"--zero-padding is for an EnCodec of transformers: {asked.model} is none")
    if asked.dry_run and not asked.push:
        raise ConfigError("--dry-run is for --push REPO")
    if asked.push and not asked.dry_run:
        optional("huggingface_hub")
    require_free(asked.output)


def push(folder: Path, repository: str, dry_run: bool) -> str:
    """Upload a folder to the Hugging Face hub, with the account of `hf auth login`; returns a report."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    megabytes = sum((folder / name).stat().st_size for name in files) / 1e6
    upload = f"{len(files)} files, {megabytes:.1f} MB, to {repository}: {', '.join(files)}"
    if dry_run:
        return f"would upload {upload}"
    hub = optional("huggingface_hub")
    try:
        api = hub.HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder))
    except Exception as error:  # from the hub, its HTTP library or the network
        raise ConfigError(f"--push {repository}: {error}; the folder {folder} is complete") from error
    return f"uploaded {upload}"
