"""Compare training speed with the original EnCodec and DAC: python scripts/benchmark_training.py

Each contender does one whole adversarial step on the same audio: generator forward, discriminator step,
generator step, codebook update, both optimizers. They take turns in one process on one thread, and its CPU
time is read, so that other load disturbs all of them alike. Ours is `CodecTraining.training_step` with the
parts of a real experiment; the originals (benchmark_peers.py) take part if scripts/benchmark-requirements.txt
is installed. EnCodec's loss balancer is off on both sides, with --balancer it is on.
"""

from __future__ import annotations

import argparse
import gc
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from benchmark_peers import PEERS
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codec.config import CONFIG_DIR, build
from codec.data.crops import Batch
from codec.model.saving import build_codec
from codec.training.module import CodecTraining

SAMPLE_RATE = 24000
# Experiment, batch size and samples of a crop: one second, or the 0.38 s of DAC's own config.
EXPERIMENTS = {
    "soundstream": ("soundstream_24khz", 4, 24000),
    "encodec": ("encodec_24khz", 4, 24000),
    "dac": ("dac_24khz", 4, 9120),
    "mimi": ("mimi_24khz", 4, 23040),
    "wavtokenizer": ("wavtokenizer_24khz", 4, 24000),
}
Step = Callable[[Tensor], None]


class BareOptimizer:
    """The members of a LightningOptimizer that `CodecTraining` uses."""

    def __init__(self, optimizer: torch.optim.Optimizer, training: BareTraining):
        self.optimizer, self.training = optimizer, training

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Let the module clip, then step."""
        self.training.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()


class BareData:
    """The members of the data module that the training step uses."""

    seed = 0

    def advance(self) -> None:
        """Nothing is counted."""

    def source(self, number: int) -> list[str]:
        """Name of the made-up audio."""
        return ["noise"]


class BareTrainer(NamedTuple):
    """The members of Lightning's trainer that the training step uses."""

    optimizers: list[torch.optim.Optimizer]
    precision: str = "32-true"
    strategy: Any = None


class BareTraining(CodecTraining):
    """The real training step, with stand-ins for Lightning's trainer so that it can be called by itself."""

    trainer: Any = BareTrainer([])
    audio_data: Any = BareData()
    steps = 0

    @property
    def global_step(self) -> int:
        """Steps done."""
        return self.steps

    def optimizers(self, use_pl_optimizer: bool = True) -> list[Any]:
        """Both players' optimizers."""
        return [BareOptimizer(optimizer, self) for optimizer in self.trainer.optimizers]

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backpropagate."""
        loss.backward()

    def train_on(self, audio: Tensor) -> None:
        """One step; RuntimeError if it was skipped."""
        done = self.training_step(Batch.of(audio, torch.arange(len(audio))), self.steps)
        self.steps += 1
        if not done["step"].finite:
            raise RuntimeError("the step was skipped: its losses are not finite")


def ours(experiment: str, balancer: bool, bf16: bool) -> Step:
    """The training step of one of our experiments, built as `codec-train` does."""
    overrides = [f"experiment={experiment}", "data.root=unused", "name=benchmark"]
    overrides += ["optimizer.discriminator_update_probability=1.0"]  # a whole step, each time
    overrides += ["loss.balancer=null"] if "encodec" in experiment and not balancer else []
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    options = {name: value for name, value in config["training"].items() if not name.startswith("_")}
    parts = [build(config[name], path=name) for name in ("discriminator", "loss", "optimizer")]
    training = BareTraining(build_codec(config["model"]), *parts, **options)
    training.trainer = BareTrainer(training.configure_optimizers())
    return torch.autocast("cpu", torch.bfloat16)(training.train_on) if bf16 else training.train_on


def contenders(pair: str) -> list[str]:
    """Trainings to compare: ours in fp32 and bf16-mixed, and the original if there is one."""
    return ["ours", "bf16", *(["original"] if pair in PEERS else [])]


def make(pair: str, who: str, balancer: bool) -> Step:
    """One contender's step; ImportError when the original's package is not installed."""
    torch.manual_seed(0)
    if who == "original":
        return PEERS[pair](balancer)
    return ours(EXPERIMENTS[pair][0], balancer, bf16=who == "bf16")


def make_audio(pair: str) -> Tensor:
    """Noise `[B, 1, T]`, the same for every contender of a pair."""
    _, batch, length = EXPERIMENTS[pair]
    return 0.1 * torch.randn(batch, 1, length, generator=torch.Generator().manual_seed(0))


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of this process in one call; the garbage of earlier ones is collected before."""
    gc.collect()
    start = time.process_time()
    function()
    return time.process_time() - start


def convolution_backward_flops(grad: list, x: list, weight: list, *args: Any, **_: Any) -> int:
    """FLOPs of a convolution's gradients; torch's own count takes a grouped convolution for a dense one."""
    transposed, mask = args[4], args[7]
    positions = math.prod(x[2:] if transposed else grad[2:])
    return 2 * x[0] * positions * math.prod(weight) * sum(mask[:2])


def count_flops(step: Step, audio: Tensor) -> float:
    """FLOPs of matrix products and convolutions in one step, LSTMs added (forward, and twice that back)."""
    lstm = [0]

    def add(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(module, nn.LSTM) and torch.is_grad_enabled():
            matrices = sum(p.numel() for name, p in module.named_parameters() if "weight" in name)
            lstm[0] += 3 * 2 * inputs[0].shape[0] * inputs[0].shape[1] * matrices

    formula = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    handle = nn.modules.module.register_module_forward_hook(add)
    with FlopCounterMode(display=False, custom_mapping=formula) as counter:
        step(audio)
    handle.remove()
    return counter.get_total_flops() + lstm[0]


def ceiling(dtype: torch.dtype) -> float:
    """GFLOP/s of a convolution that suits oneDNN (kernel 7, 256 channels), the best of six."""
    conv, x = nn.Conv1d(256, 256, 7, padding=3).to(dtype), torch.randn(4, 256, 6000, dtype=dtype)
    with torch.no_grad():
        seconds = min(cpu_seconds(lambda: conv(x)) for _ in range(6))
    return 2 * 4 * 6000 * 256 * 256 * 7 / seconds / 1e9


def compare(pair: str, rounds: int, balancer: bool) -> None:
    """Let the contenders of one pair take turns; print a row for each."""
    audio = make_audio(pair)
    steps: dict[str, Step] = {}
    for who in contenders(pair):
        try:
            steps[who] = make(pair, who, balancer)
        except ImportError as error:
            print(f"{pair}: without the original ({error}): see scripts/benchmark-requirements.txt")
    flops = {who: count_flops(step, audio) for who, step in steps.items()}  # warms up, too
    seconds: dict[str, list[float]] = {who: [] for who in steps}
    peaks: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(rounds):
        for who, step in steps.items():
            seconds[who].append(cpu_seconds(lambda step=step: step(audio)))
        for dtype, found in peaks.items():
            found.append(ceiling(dtype))
    duration = len(audio) * audio.shape[-1] / SAMPLE_RATE
    for who, times in seconds.items():
        typical = statistics.median(times)
        share = flops[who] / typical / 1e9 / max(peaks[torch.bfloat16 if who == "bf16" else torch.float32])
        print(
            f"{pair:12}{who:9}{duration / typical:9.3f}{flops[who] / duration / 1e9:12.0f}"
            f"{flops[who] / typical / 1e9:12.0f}{100 * share:9.0f} %   {ratios(seconds, who)}",
            flush=True,
        )


def ratios(seconds: dict[str, list[float]], who: str) -> str:
    """Speed relative to the original's: median, lowest and highest of the rounds, and of the best times."""
    if "original" not in seconds or who == "original":
        return ""
    each = [peer / own for peer, own in zip(seconds["original"], seconds[who], strict=True)]
    best = min(seconds["original"]) / min(seconds[who])
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f}, best times {best:.2f})"


def report_memory(pairs: Iterable[str], balancer: bool) -> None:
    """Print the peak memory of each contender, every one in a process of its own."""
    print("peak resident memory, MiB            built  two steps")
    for pair in pairs:
        for who in contenders(pair):
            command = [sys.executable, __file__, "--memory-of", pair, who]
            command += ["--balancer"] if balancer else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            answer = done.stdout if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]
            print(f"{pair:12}{who:20}{answer.rstrip()}", flush=True)


def print_memory(pair: str, who: str, balancer: bool) -> None:
    """Do two steps and print this process's peak memory before and after."""
    step, audio = make(pair, who, balancer), make_audio(pair)
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(audio)
    step(audio)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{built / 1024:10.0f} {peak / 1024:10.0f}")


def main() -> None:
    """Run the benchmarks of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=EXPERIMENTS, help="one model instead of all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--balancer", action="store_true", help="EnCodec's loss balancer, on both sides")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [options.only] if options.only else list(EXPERIMENTS)
    if options.memory_of:
        print_memory(*options.memory_of, options.balancer)
    elif options.memory:
        report_memory(pairs, options.balancer)
    else:
        print(
            "                        audio s    GFLOP per   GFLOP per    share of   speed relative to the\n"
            "                      per CPU s      audio s       CPU s   a conv's   original's, by rounds"
        )
        for pair in pairs:
            compare(pair, options.rounds, options.balancer)


if __name__ == "__main__":
    main()
