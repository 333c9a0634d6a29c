"""Time streams, one frame at a time: python scripts/benchmark_streaming.py [--threads 1]

Ours (the SoundStream, EnCodec, Mimi and tiny presets, random weights) takes turns with Mimi's streaming in
the packages moshi and transformers, where they are installed (see scripts/benchmark-requirements.txt), which
codes 80 ms at a time, and with ours at 80 ms. `--steps` adds folders of `codec-export --to onnx --streaming`,
with or without `--int8`. `--only` takes those whose names hold a text. transformers
carries the attention of its decoder from push to push, not its convolutions. CPU time per push of encoding
and of decoding, middle and 95 % of all, and audio seconds per CPU second of both together. The latency is the
algorithm's: a push, and the look-ahead of the network.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.config import CONFIG_DIR, build
from codec.export.onnx import Session
from codec.model.codec import Codec


def ours(experiment: str) -> Codec:
    """The codec of an experiment, with random weights."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", [f"experiment={experiment}", "data.root=none"])
    torch.manual_seed(0)
    return build(OmegaConf.to_container(config.model, resolve=True)).eval()  # type: ignore[arg-type]


class Ours:
    """One of our codecs, `frames` per push."""

    def __init__(self, experiment: str, frames: int):
        codec = ours(experiment)
        self.stream = codec.streaming()
        self.audio = 0.1 * torch.randn(1, codec.audio_channels, frames * codec.hop_length)
        self.seconds = self.audio.shape[2] / codec.sample_rate
        self.latency_ms = self.stream.latency_ms + 1000 * (frames - 1) / codec.frame_rate

    def encode(self) -> Tensor:
        """Codes of one push."""
        return self.stream.encode(self.audio)

    def decode(self, codes: Tensor) -> Tensor:
        """Audio of its codes."""
        return self.stream.decode(codes)


class Steps:
    """Step graphs of a folder in ONNX Runtime, on one thread."""

    def __init__(self, folder: Path):
        self.sides = [Session(folder / f"{side}_step.onnx") for side in ("encoder", "decoder")]
        self.states = [side.initial for side in self.sides]
        self.audio = 0.1 * torch.randn(self.sides[0].inputs[0].shape)
        about = self.sides[0].session.get_modelmeta().custom_metadata_map
        self.seconds = self.audio.shape[2] / int(about["sample_rate"])
        self.latency_ms = 1000 * self.seconds

    def push(self, side: int, signal: Tensor) -> Tensor:
        """Result of one step; its states are those of the next one."""
        result, *self.states[side] = self.sides[side](signal, *self.states[side])
        return result

    def encode(self) -> Tensor:
        """Codes of one push."""
        return self.push(0, self.audio)

    def decode(self, codes: Tensor) -> Tensor:
        """Audio of its codes."""
        return self.push(1, codes)


class Mimi:
    """Kyutai's Mimi as its package streams it, without compilation."""

    def __init__(self) -> None:
        os.environ["NO_TORCH_COMPILE"] = os.environ["NO_CUDA_GRAPH"] = "1"
        from moshi.models import loaders

        torch.manual_seed(0)
        self.model = loaders.get_mimi(None, device="cpu")
        self.model.streaming_forever(1)
        self.audio = 0.1 * torch.randn(1, 1, 1920)
        self.seconds, self.latency_ms = 0.08, 80.0

    @torch.inference_mode()
    def encode(self) -> Tensor:
        """Codes of one frame."""
        return self.model.encode(self.audio)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Audio of its codes."""
        return self.model.decode(codes)


class TransformersMimi:
    """Mimi of transformers with its caches, 8 codebooks."""

    def __init__(self) -> None:
        from transformers import MimiConfig, MimiModel

        torch.manual_seed(0)
        self.model = MimiModel(MimiConfig(num_quantizers=8)).eval()
        self.audio = 0.1 * torch.randn(1, 1, 1920)
        self.seconds, self.latency_ms = 0.08, 80.0
        # By place: the names of caches differ from version to version of transformers.
        self.caches: tuple[Any, ...] = (None, None)
        self.decoded: Any = None

    @torch.inference_mode()
    def encode(self) -> Tensor:
        """Codes of one frame."""
        found = self.model.encode(self.audio, None, None, *self.caches, True, return_dict=True)
        self.caches = found[1], found[2]
        return found[0]

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Audio of its codes."""
        found = self.model.decode(codes, None, self.decoded, use_cache=True, return_dict=True)
        self.decoded = found[1]
        return found[0]


Contender = Ours | Steps | Mimi | TransformersMimi


def contenders(steps: list[Path]) -> dict[str, Callable[[], Contender]]:
    """Whoever is installed, and step graphs in folders."""
    found: dict[str, Callable[[], Contender]] = {
        "soundstream_24khz": lambda: Ours("soundstream_24khz", 1),
        "soundstream_24khz, 80 ms": lambda: Ours("soundstream_24khz", 6),
        "encodec_24khz": lambda: Ours("encodec_24khz", 1),
        "mimi_24khz, 80 ms": lambda: Ours("mimi_24khz", 1),
        "tiny (16 kHz)": lambda: Ours("tiny", 1),
    }
    try:
        import moshi.models  # noqa: F401

        found["Mimi of moshi, 80 ms"] = Mimi
    except ImportError as error:
        print(f"without Mimi of moshi: {error}")
    if importlib.util.find_spec("transformers"):
        found["Mimi of transformers, 80 ms"] = TransformersMimi
    return found | {f"steps in {folder}": partial(Steps, folder) for folder in steps}


def timed(work: Callable[[], Tensor], into: list[float]) -> Tensor:
    """Do it, and note the CPU time in ms."""
    start = time.process_time()
    done = work()
    into.append(1000 * (time.process_time() - start))
    return done


def main() -> None:
    """Take turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=Path, nargs="+", default=[], metavar="FOLDER")
    parser.add_argument("--only", default="", help="those whose names hold this text, in any case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = {
        name: make for name, make in contenders(options.steps).items() if options.only.lower() in name.lower()
    }
    made = {name: make() for name, make in chosen.items()}
    spent: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in made}
    for number in range(options.rounds + 5):
        for name, contender in made.items():
            encoding, decoding = spent[name] if number >= 5 else ([], [])
            for _ in range(3):
                codes = timed(contender.encode, encoding)
                timed(lambda contender=contender, codes=codes: contender.decode(codes), decoding)
    print(f"{'':28}{'encode ms (95 %)':>20}{'decode ms (95 %)':>20}{'real time':>12}{'latency ms':>12}")
    for name, (encoding, decoding) in spent.items():
        both = (statistics.median(encoding) + statistics.median(decoding)) / 1000
        cells = [f"{statistics.median(t):.2f} ({statistics.quantiles(t, n=20)[-1]:.2f})" for t in spent[name]]
        latency = f"{made[name].latency_ms:.1f}"
        print(f"{name:28}{cells[0]:>20}{cells[1]:>20}{made[name].seconds / both:>11.2f}x{latency:>12}")


if __name__ == "__main__":
    main()
