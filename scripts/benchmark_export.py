"""Time exported codecs against eager PyTorch and transformers, in one run, taking turns.

    python scripts/benchmark_export.py                     # shapes of EnCodec and SoundStream, random weights
    python scripts/benchmark_export.py runs/speech         # a trained model: also its errors in int8 and bf16

Prints a Markdown table per thread count: median speed relative to real time, and relative to eager.
Runtimes that are not installed are left out. Random weights are as fast as trained ones, but not as good:
the share of equal codes is printed for a trained model alone.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from codec.config import ConfigError
from codec.export import onnx as onnx_export
from codec.export import openvino as openvino_export
from codec.export import transformers_check
from codec.export.formats import calibration
from codec.export.graphs import inference_codec, programs, without_normalization
from codec.export.streaming_graphs import run_steps, step_programs
from codec.export.verification import clip, compare, optional
from codec.huggingface import convert as huggingface
from codec.model.codec import Codec
from codec.model.saving import build_codec

Job = tuple[Callable[[], object], Callable[[], object]]  # encode, decode


def composed(*overrides: str) -> Codec:
    """A codec of the shipped options with random weights."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from codec.config import CONFIG_DIR

    torch.manual_seed(0)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", ["name=benchmark", "data.root=none", *overrides])
    node = OmegaConf.to_container(config, resolve=True)
    codec = build_codec(node["model"]).eval()  # type: ignore[index, call-overload]
    for parameter in codec.parameters():
        parameter.requires_grad_(False)
    if wanted := codec.quantizer.pool_size():
        codec.quantizer.initialise(0.1 * torch.randn(min(wanted, 2048), codec.quantizer.dim))
    return codec


def turns(jobs: dict[str, Job], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each job's two halves; every round runs all of them, so that load hits all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for count in range(rounds + 1):
        for name, halves in jobs.items():
            taken = []
            for half in halves:
                begin = time.perf_counter()
                half()
                taken.append(time.perf_counter() - begin)
            if count:  # the first round warms up
                times[name].append((taken[0], taken[1]))
    return {
        name: (statistics.median(t[0] for t in runs), statistics.median(t[1] for t in runs))
        for name, runs in times.items()
    }


def table(title: str, times: dict[str, tuple[float, float]], seconds: float, reference: str) -> None:
    """Print the speeds of encoding, decoding and both, relative to real time."""
    print(f"\n{title}\n\n| | encode | decode | both | of {reference} |\n|---|---|---|---|---|")
    base = sum(times[reference])
    for name, (encode, decode) in times.items():
        both = encode + decode
        numbers = " | ".join(f"{seconds / value:.1f}x" for value in (encode, decode, both))
        print(f"| {name} | {numbers} | {base / both:.2f} |", flush=True)


def whole_jobs(codec: Codec, folder: Path, threads: int, seconds: float) -> dict[str, Job]:
    """Everything that is installed and can code whole signals."""
    audio = clip(codec, 1, int(seconds * codec.sample_rate) // codec.hop_length * codec.hop_length)
    codes = codec.encode(audio)
    folded = without_normalization(codec)
    pairs = {"eager": (codec.encode, codec.decode), "eager, folded": (folded.encode, folded.decode)}
    for name in ("onnx", "onnx-int8"):
        if (folder / name).is_dir():
            sides = [
                onnx_export.Session(folder / name / f"{side}.onnx", threads)
                for side in ("encoder", "decoder")
            ]
            pairs[name] = (sides[0], sides[1])
    for name, where, bf16 in (("openvino", "openvino", False), ("openvino bf16", "openvino", True),
                              ("openvino int8", "openvino-int8", False)):  # fmt: skip
        if (folder / where).is_dir():
            session = openvino_export.Session(folder / where, threads, bf16)
            pairs[name] = (session.encode, session.decode)
    if (folder / "hf").is_dir() and "Encodec" in (folder / "hf/config.json").read_text():
        with transformers_check.quiet():
            theirs = optional("transformers").EncodecModel.from_pretrained(folder / "hf").eval()
        pairs["transformers"] = (
            partial(transformers_check.encode_encodec, theirs),
            partial(transformers_check.decode_encodec, theirs),
        )
    return {
        name: (partial(encode, audio), partial(decode, codes)) for name, (encode, decode) in pairs.items()
    }


def write_all(codec: Codec, folder: Path, formats: Sequence[str]) -> None:
    """Export to the formats of the options that are installed, without the checks of codec-export."""
    for name in formats:
        path = folder / name
        path.mkdir()
        try:
            WRITERS[name](codec, path)
        except (ConfigError, ModuleNotFoundError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
            shutil.rmtree(path)


def write_onnx(codec: Codec, path: Path) -> None:
    """Whole signals, and steps of a causal codec."""
    onnx_export.write_whole(programs(inference_codec(codec)), path, {})
    with contextlib.suppress(ConfigError):
        onnx_export.write_steps(step_programs(codec), path, {})


def write_int8(codec: Codec, path: Path) -> None:
    """The same in int8."""
    before = path.parent / "onnx"
    if not before.is_dir():
        raise ConfigError("it is made of onnx")
    audio = calibration(codec)
    inputs = {"encoder": audio, "decoder": [[codec.encode(clip[0])] for clip in audio]}
    for file in before.iterdir():
        shutil.copy(file, path / file.name)
        onnx_export.to_int8(path / file.name, inputs.get(file.stem))


WRITERS: dict[str, Callable[[Codec, Path], object]] = {
    "hf": huggingface.save,
    "onnx": write_onnx,
    "onnx-int8": write_int8,
    "openvino": lambda codec, path: openvino_export.write(codec, path, {}),
    "openvino-int8": lambda codec, path: openvino_export.write(codec, path, {}, calibration(codec)),
}


def step_jobs(codec: Codec, folder: Path, frames: int) -> dict[str, Job]:
    """A stream's calls of one frame, in eager PyTorch and in ONNX Runtime."""
    audio = clip(codec, 1, frames * codec.hop_length)
    codes = codec.encode(audio)
    stream = codec.streaming()

    def push(coder: Callable[[Tensor], Tensor], signal: Tensor, length: int) -> None:
        for piece in signal.split(length, 2):
            coder(piece)

    jobs: dict[str, Job] = {
        "eager": (
            partial(push, stream.encode, audio, codec.hop_length),
            partial(push, stream.decode, codes, 1),
        )
    }
    for name in ("onnx", "onnx-int8"):
        if (folder / name / "encoder_step.onnx").is_file():
            encode, decode = (
                onnx_export.Session(folder / name / f"{side}_step.onnx") for side in ("encoder", "decoder")
            )
            jobs[name] = (
                partial(run_steps, encode, encode.initial, audio, codec.hop_length),
                partial(run_steps, decode, decode.initial, codes, 1),
            )
    return jobs


def quality(codec: Codec, folder: Path) -> None:
    """Print the errors of the formats' precision on speech-like clips."""
    print("\n| | codes that agree | decoder's SNR, dB |\n|---|---|---|")
    for name, (encode, decode) in quality_pairs(codec, folder).items():
        found = compare(codec, encode, decode, [(4, 3 * codec.sample_rate)])
        print(f"| {name} | {found.agreement:.1%} | {found.snr:.1f} |")


def quality_pairs(codec: Codec, folder: Path) -> dict[str, tuple[Callable, Callable]]:
    """Formats that compute with fewer bits."""
    pairs: dict[str, tuple[Callable, Callable]] = {}
    path = folder / "onnx-int8"
    if path.is_dir():
        sides = [onnx_export.Session(path / f"{side}.onnx") for side in ("encoder", "decoder")]
        pairs["onnx int8"] = tuple(lambda x, side=side: side(x)[0] for side in sides)  # type: ignore[assignment]
        steps = [onnx_export.Session(path / f"{side}_step.onnx") for side in ("encoder", "decoder")]
        pairs["onnx int8, streamed"] = (
            lambda x: run_steps(steps[0], steps[0].initial, x, codec.hop_length),
            lambda x: run_steps(steps[1], steps[1].initial, x, 1),
        )
    for name, where, bf16 in (("openvino bf16", "openvino", True), ("openvino int8", "openvino-int8", False)):
        if (folder / where).is_dir():
            session = openvino_export.Session(folder / where, bf16=bf16)
            pairs[name] = session.encode, session.decode
    return pairs


@torch.no_grad()
def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, nargs="?", help="a trained model; default: shapes with random weights"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of audio in a round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", choices=list(WRITERS), default=list(WRITERS))
    parser.add_argument(
        "--shapes", nargs="+", default=["encodec", "soundstream"], help="autoencoders, without a model"
    )
    asked = parser.parse_args()
    small = ["quantizer=rvq", "sample_rate=24000"]
    models = (
        {str(asked.model): huggingface.load_any(asked.model)}
        if asked.model
        else {name: composed(f"autoencoder={name}", *small) for name in asked.shapes}
    )
    for name, codec in models.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_all(codec, folder, asked.formats)
            for threads in asked.threads:
                torch.set_num_threads(threads)
                jobs = whole_jobs(codec, folder, threads, asked.seconds)
                title = f"{name}: {asked.seconds} s at once, {threads} thread(s)"
                table(title, turns(jobs, asked.rounds), asked.seconds, "eager")
            torch.set_num_threads(1)
            frames = max(1, int(asked.seconds * codec.frame_rate))
            seconds = frames / codec.frame_rate
            if (folder / "onnx" / "encoder_step.onnx").is_file():
                times = turns(step_jobs(codec, folder, frames), asked.rounds)
                table(f"{name}: streamed, a frame a call, 1 thread", times, seconds, "eager")
            if asked.model:
                quality(codec, folder)


if __name__ == "__main__":
    main()
