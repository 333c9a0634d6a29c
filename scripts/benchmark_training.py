"""Compare training speed with the original EnCodec and DAC: python scripts/benchmark_training.py

Each contender does one whole adversarial step on the same audio: generator forward, discriminator step,
generator step, codebook update, both optimizers. Contenders take turns in one process on one thread, and process
CPU time is read, so that other load disturbs all of them alike. Ours is `CodecTraining.training_step` with the
parts of a real experiment. The originals are measured if their packages are there, see
scripts/benchmark-requirements.txt; their loops are written after what trains them in public:
  encodec  AudioCraft's recipe: the discriminator is frozen in the generator's step. No loss balancer on either
           side (the package has none); --balancer puts ours on both, which is how EnCodec really trains.
  dac      scripts/train.py of its repository, without the two losses that are logged but have no weight.
"""

from __future__ import annotations

import argparse
import contextlib
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
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from codec.config import CONFIG_DIR, build
from codec.data import Batch
from codec.losses.balancer import Balancer
from codec.model import build_codec
from codec.training import CodecTraining

SAMPLE_RATE = 24000
# Experiment, batch size and samples a crop: one second, or the 0.38 s of DAC's own config.
EXPERIMENTS = {
    "soundstream": ("soundstream_24khz", 4, 24000),
    "encodec": ("encodec_24khz", 4, 24000),
    "dac": ("dac_24khz", 4, 9120),
}
Step = Callable[[Tensor], None]


class BareOptimizer:
    """What `CodecTraining` uses of a LightningOptimizer, without Lightning."""

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
    """What the training step tells the data module."""

    def advance(self) -> None:
        """Nothing is kept."""

    def source(self, number: int) -> list[str]:
        """Name of the made-up audio."""
        return ["noise"]


class BareTrainer(NamedTuple):
    """What the training step asks of Lightning's trainer."""

    optimizers: list[torch.optim.Optimizer]
    precision: str = "32-true"


class BareTraining(CodecTraining):
    """The real training step with stand-ins for Lightning's trainer, so that steps can be called one by one."""

    trainer: Any = None
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
        """One step; raises RuntimeError if it was skipped."""
        done = self.training_step(Batch(audio, torch.arange(len(audio))), self.steps)
        self.steps += 1
        if not done["step"].finite:
            raise RuntimeError("the step was skipped: its losses are not finite")


def ours(experiment: str, balancer: bool, bf16: bool = False) -> Step:
    """One of our experiments as `codec-train` would build it."""
    overrides = [f"experiment={experiment}", "data.root=unused", "name=benchmark"]
    overrides += [] if balancer or "encodec" not in experiment else ["loss.balancer=null"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    options = {name: value for name, value in config["training"].items() if not name.startswith("_")}
    parts = [build(config[name], path=name) for name in ("discriminator", "loss", "optimizer")]
    training = BareTraining(build_codec(config["model"]), *parts, **options).train()
    training.average.eval()
    training.trainer = BareTrainer([])
    training.trainer = BareTrainer(training.configure_optimizers())
    if not bf16:
        return training.train_on
    return torch.autocast("cpu", torch.bfloat16)(training.train_on)


class MelLoss(nn.Module):
    """EnCodec's frequency loss (arXiv:2210.13438, eq. 2) with torchaudio's transforms, as AudioCraft has it."""

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self.mels = nn.ModuleList(
            MelSpectrogram(SAMPLE_RATE, window, window, window // 4, n_mels=64, power=1.0, normalized=True)
            for window in (32, 64, 128, 256, 512, 1024, 2048)
        )

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Scalar distance of two `[B, 1, T]`."""
        total = torch.zeros(())
        for mel in self.mels:
            x, y = mel(estimate), mel(target)
            logs = (1e-5 + x).log() - (1e-5 + y).log()
            total = total + functional.l1_loss(x, y) + torch.linalg.vector_norm(logs, dim=-2).mean()
        return total / len(self.mels)


class EncodecPeer:
    """The package encodec's 24 kHz model and discriminator under AudioCraft's recipe."""

    def __init__(self, balancer: bool):
        from encodec import EncodecModel
        from encodec.msstftd import MultiScaleSTFTDiscriminator

        self.model = EncodecModel.encodec_model_24khz(pretrained=False).train()
        for layer in self.model.quantizer.vq.layers:
            # Random codebooks, as ours: fifty rounds of k-means at the first step are no part of a step.
            layer._codebook.embed.normal_(std=layer._codebook.embed.shape[1] ** -0.5)
            layer._codebook.inited.fill_(1)
        windows = [2048, 1024, 512, 256, 128]
        hops = [window // 4 for window in windows]
        self.judge = MultiScaleSTFTDiscriminator(
            filters=32, n_ffts=windows, win_lengths=windows, hop_lengths=hops
        )
        self.mel = MelLoss()
        self.weights = {"waveform": 0.1, "spectral": 1.0, "adversarial": 3.0, "feature_matching": 3.0}
        self.balancer = Balancer(list(self.weights)) if balancer else None
        self.optimizers = adamw(self.model, self.judge)

    def __call__(self, audio: Tensor) -> None:
        """One step."""
        latents = self.model.encoder(audio)
        quantized = self.model.quantizer(latents, self.model.frame_rate, None)
        estimate = self.model.decoder(quantized.quantized)[..., : audio.shape[-1]]
        real, fake = self.judge(audio)[0], self.judge(estimate.detach())[0]
        losses = [
            functional.relu(1 - a).mean() + functional.relu(1 + b).mean()
            for a, b in zip(real, fake, strict=True)
        ]
        descend(self.optimizers[1], self.judge, torch.stack(losses).mean(), 10.0)
        self.judge.requires_grad_(False)
        total = self.total(self.losses(audio, estimate), estimate) + quantized.penalty
        self.judge.requires_grad_(True)
        descend(self.optimizers[0], self.model, total, 1.0)

    def losses(self, audio: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """The generator's losses."""
        (logits, fake_maps), (_, real_maps) = self.judge(estimate), self.judge(audio)
        distances = [
            functional.l1_loss(fake, real) / real.abs().mean()
            for fakes, reals in zip(fake_maps, real_maps, strict=True)
            for fake, real in zip(fakes, reals, strict=True)
        ]
        return {
            "waveform": functional.l1_loss(estimate, audio),
            "spectral": self.mel(estimate, audio),
            "adversarial": torch.stack([functional.relu(1 - one).mean() for one in logits]).mean(),
            "feature_matching": torch.stack(distances).mean(),
        }

    def total(self, losses: dict[str, Tensor], estimate: Tensor) -> Tensor:
        """Their sum, weighted or balanced."""
        if self.balancer:
            return (estimate * self.balancer.balance(losses, self.weights, estimate)).sum()
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()


class DACPeer:
    """descript-audio-codec's 24 kHz model, discriminator and losses in its own loop's order."""

    def __init__(self, balancer: bool):
        import dac
        from audiotools import AudioSignal
        from dac.model.discriminator import Discriminator
        from dac.nn.loss import GANLoss, MelSpectrogramLoss

        self.signal = AudioSignal
        rates = [2, 4, 5, 8]
        self.model = dac.DAC(
            encoder_rates=rates, decoder_rates=rates[::-1], n_codebooks=32, quantizer_dropout=0.5,
            sample_rate=SAMPLE_RATE,
        )  # fmt: skip
        self.judge = Discriminator(sample_rate=SAMPLE_RATE)
        self.gan = GANLoss(self.judge)
        self.mel = MelSpectrogramLoss(
            n_mels=[5, 10, 20, 40, 80, 160, 320], window_lengths=[32, 64, 128, 256, 512, 1024, 2048],
            mel_fmin=[0.0] * 7, mel_fmax=[None] * 7, pow=1.0, mag_weight=0.0,
        )  # fmt: skip
        self.optimizers = adamw(self.model, self.judge)

    def __call__(self, audio: Tensor) -> None:
        """One step."""
        real = self.signal(audio, SAMPLE_RATE)
        output = self.model(audio, SAMPLE_RATE)
        fake = self.signal(output["audio"], SAMPLE_RATE)
        descend(self.optimizers[1], self.judge, self.gan.discriminator_loss(fake, real), 10.0)
        adversarial, feature_matching = self.gan.generator_loss(fake, real)
        total = 15.0 * self.mel(fake, real) + 2.0 * feature_matching + adversarial
        total = total + 0.25 * output["vq/commitment_loss"] + output["vq/codebook_loss"]
        descend(self.optimizers[0], self.model, total, 1000.0)


def adamw(*players: nn.Module) -> list[torch.optim.Optimizer]:
    """torch's default AdamW for each player."""
    return [torch.optim.AdamW(player.parameters(), lr=1e-4, betas=(0.8, 0.99)) for player in players]


def descend(optimizer: torch.optim.Optimizer, player: nn.Module, loss: Tensor, limit: float) -> None:
    """One clipped optimizer step."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(player.parameters(), limit)
    optimizer.step()


PEERS = {"encodec": EncodecPeer, "dac": DACPeer}


def make(contender: str, balancer: bool) -> Step:
    """`encodec/ours`, `encodec/bf16` or `encodec/peer` and so on; ImportError without the peer's package."""
    pair, who = contender.split("/")
    torch.manual_seed(0)
    if who == "peer":
        return PEERS[pair](balancer)
    return ours(EXPERIMENTS[pair][0], balancer, bf16=who == "bf16")


def make_audio(pair: str) -> Tensor:
    """Noise `[B, 1, T]`, the same for every contender of a pair."""
    _, batch, length = EXPERIMENTS[pair]
    return 0.1 * torch.randn(batch, 1, length, generator=torch.Generator().manual_seed(0))


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of this process in one call; garbage of others is collected before."""
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
            frames = inputs[0].shape[0] * inputs[0].shape[1]
            matrices = sum(p.numel() for name, p in module.named_parameters() if "weight" in name)
            lstm[0] += 3 * 2 * frames * matrices

    formula = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    handle = nn.modules.module.register_module_forward_hook(add)
    with FlopCounterMode(display=False, custom_mapping=formula) as counter:
        step(audio)
    handle.remove()
    return counter.get_total_flops() + lstm[0]


def ceiling(dtype: torch.dtype) -> float:
    """GFLOP/s of a convolution that suits oneDNN (kernel 7, 256 channels), the best of five."""
    conv, x = nn.Conv1d(256, 256, 7, padding=3).to(dtype), torch.randn(4, 256, 6000, dtype=dtype)
    with torch.no_grad():
        seconds = min(cpu_seconds(lambda: conv(x)) for _ in range(6))
    return 2 * 4 * 6000 * 256 * 256 * 7 / seconds / 1e9


def compare(pair: str, rounds: int, balancer: bool) -> None:
    """Time the contenders of one pair in turns and print a row for each."""
    audio = make_audio(pair)
    steps: dict[str, Step] = {}
    for who in ("ours", "bf16", *(("peer",) if pair in PEERS else ())):
        try:
            steps[who] = make(f"{pair}/{who}", balancer)
        except ImportError as error:
            print(f"{pair}: the original is left out, {error}: see scripts/benchmark-requirements.txt")
    flops = {who: count_flops(step, audio) for who, step in steps.items()}  # the warm-up too
    peaks = {torch.float32: [], torch.bfloat16: []}
    seconds: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(rounds):
        for who, step in steps.items():
            seconds[who].append(cpu_seconds(lambda step=step: step(audio)))
        for dtype, found in peaks.items():
            found.append(ceiling(dtype))
    duration = audio.shape[0] * audio.shape[2] / SAMPLE_RATE
    for who, times in seconds.items():
        peak = max(peaks[torch.bfloat16 if who == "bf16" else torch.float32])
        rate = flops[who] / statistics.median(times) / 1e9
        print(
            f"{pair:12}{who:6}{duration / statistics.median(times):10.3f}{flops[who] / duration / 1e9:10.0f}"
            f"{rate:9.0f}{100 * rate / peak:9.0f} %{ratios(seconds, who):>24}",
            flush=True,
        )


def ratios(seconds: dict[str, list[float]], who: str) -> str:
    """Speed relative to the original's, round by round: median (lowest to highest)."""
    if "peer" not in seconds or who == "peer":
        return ""
    each = [peer / own for peer, own in zip(seconds["peer"], seconds[who], strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def report_memory(pairs: Iterable[str], balancer: bool) -> None:
    """Print the peak memory of each contender, every one in a process of its own."""
    print("peak resident memory of two steps, MiB: before the first step, whole")
    for pair in pairs:
        for who in ("ours", "bf16", *(("peer",) if pair in PEERS else ())):
            command = [sys.executable, __file__, "--memory-of", f"{pair}/{who}"]
            command += ["--balancer"] if balancer else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            answer = done.stdout if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]
            print(f"{pair:12}{who:6}{answer.strip()}", flush=True)


def print_memory(contender: str, balancer: bool) -> None:
    """Do two steps and print this process's peak memory before and after."""
    step, audio = make(contender, balancer), make_audio(contender.split("/")[0])
    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    step(audio)
    step(audio)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print("".join(f"{peak / 1024:10.0f}" for peak in peaks))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=EXPERIMENTS, help="one model instead of all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--balancer", action="store_true", help="EnCodec's loss balancer, on both sides")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [arguments.only] if arguments.only else list(EXPERIMENTS)
    if arguments.memory_of:
        return print_memory(arguments.memory_of, arguments.balancer)
    if arguments.memory:
        return report_memory(pairs, arguments.balancer)
    print("             who    audio s /   GFLOP /  GFLOP/s  of conv's   speed / the original's")
    print("                    CPU s       audio s           ceiling    median (lowest to highest)")
    for pair in pairs:
        compare(pair, arguments.rounds, arguments.balancer)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
