"""Measure this package on a GPU: python scripts/benchmark_gpu.py -o FOLDER

Training steps of all experiments in bf16-mixed, on the experiment's own crops (eager, "tuned" with cuDNN's
choice of algorithms by trial, compiled, "graphs" with CUDA graphs), the originals' steps where they are
installed (benchmark_peers.py), quantizers, encoding of long recordings, one frame at a time. Peak memory,
the lines that wait for the GPU, and the kernels that take longest. A model is measured in a process of its
own, first without compilation. Compilations then run side by side and leave their kernels in Inductor's
cache. `gpu.csv` and `gpu.md` are written after every model; jobs that the minutes do not reach are named.
Nothing is downloaded. `--device cpu` takes tiny sizes, to try the script.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codec.system.files import write_whole

EXPERIMENTS = {  # and the sizes of batches that fill a large GPU
    "soundstream_24khz": (16, 64),
    "encodec_24khz": (16, 64),
    "dac_44khz": (16, 64),
    "speech_16khz": (16, 128),
    "mimi_24khz": (16, 64),
    "speech_16khz_streaming": (128,),
    "speech_16khz_25hz": (128,),
    "speech_16khz_12hz": (128,),
    "speech_16khz_fsq": (128,),
    "speech_16khz_vae": (128,),
    "wavtokenizer_24khz": (40,),
    "dac_24khz": (64,),
    "dac_16khz": (64,),
    "tiny": (64,),
}
PEERS = {"encodec": ("encodec_24khz", 24000), "dac": ("dac_24khz", 9120)}  # and samples of a crop
STREAMS = ("speech_16khz_streaming", "encodec_24khz", "soundstream_24khz", "mimi_24khz")
ENCODERS = ("speech_16khz", "soundstream_24khz", "encodec_24khz", "dac_44khz", "mimi_24khz")
ORDER = ("soundstream_24khz", "encodec_24khz", "encodec", "dac_44khz", "dac", "speech_16khz", "ours")
LEAST_SECONDS, MOST_CALLS = 2.0, 60
PARALLEL = 6  # compilations side by side; each holds a model on the device
MEASURES = ("audio_seconds_per_second", "milliseconds", "peak_gib", "note")


class Job(NamedTuple):
    """One measurement: its kind and subject, `eager`, `tuned`, `compiled` or `graphs`, and a batch size."""

    job: str
    name: str
    how: str
    batch: int


COLUMNS = [*Job._fields, *MEASURES]


def groups(only: list[str], small: bool) -> list[list[Job]]:
    """Measurements, those that one process does together, the most informative first; compilations last."""
    by_model: dict[str, list[Job]] = {}
    compiled: dict[str, list[Job]] = {}
    for name, batches in EXPERIMENTS.items():
        sizes = (2,) if small else batches[::-1]
        encode, stream = Job("encode", name, "eager", 1 if small else 16), Job("stream", name, "eager", 1)
        by_model[name] = [Job("train", name, how, size) for size in sizes for how in ("eager", "tuned")]
        by_model[name] += [*([encode] if name in ENCODERS else []), *([stream] if name in STREAMS else [])]
        compiled[name] = [Job("train", name, how, sizes[0]) for how in ("compiled", "graphs")]
        compiled[name] += [encode._replace(how="compiled")] if name in ENCODERS else []
    for name in PEERS:
        by_model[name] = [Job("peer", name, "eager", 2 if small else 64)]
    for name in ("ours", "ours, factorized"):
        by_model[name] = [Job("quantize", name, "eager", 1 if small else 16)]
    order = sorted(by_model, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    everything = [*(by_model[name] for name in order), *compiled.values()]
    chosen = [[job for job in group if not only or {job.name, job.job} & set(only)] for group in everything]
    return [group for group in chosen if group]


def compose_experiment(name: str) -> dict[str, Any]:
    """Resolved config of an experiment."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from codec.config import CONFIG_DIR

    overrides = [f"experiment={name}", "data.root=unused", "name=benchmark"]
    overrides += ["optimizer.discriminator_update_probability=1.0"]  # a whole step, each time
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    return config


def build_model(name: str, device: torch.device) -> Any:
    """Codec of an experiment with random weights, for inference."""
    from codec.model.saving import build_codec

    torch.manual_seed(0)
    return build_codec(compose_experiment(name)["model"]).eval().to(device)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(function: Callable[[], object], device: torch.device, warm: int = 3) -> float:
    """Median wall time of a call that ends with the device's work, after `warm` calls."""
    for _ in range(warm):
        function()
    synchronize(device)
    times: list[float] = []
    while (sum(times) < LEAST_SECONDS and len(times) < MOST_CALLS) or len(times) < 3:
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
        if device.type == "cpu" and len(times) >= 3:
            break
    return statistics.median(times)


@contextmanager
def host_waits(device: torch.device, into: Counter[str]) -> Iterator[None]:
    """Count the lines of this package that wait for the GPU."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one in caught:
        if "synchroniz" in str(one.message):
            into[f"{'/'.join(Path(one.filename).parts[-3:])}:{one.lineno}"] += 1


def crop_samples(config: dict[str, Any], small: bool) -> int:
    """Samples of a training crop, a multiple of the hop: of the experiment, or a third of a second."""
    from codec.model.saving import build_codec

    with torch.device("meta"):
        hop = build_codec(config["model"]).hop_length
    seconds = 0.33 if small else config["data"]["segment_seconds"]
    return max(1, round(seconds * config["sample_rate"] / hop)) * hop


def training_step(job: Job, device: torch.device) -> tuple[Callable[[], None], float]:
    """Whole adversarial step of an experiment, with both optimizers, and the seconds of audio in it."""
    from benchmark_training import BareTrainer, BareTraining

    from codec.config import build
    from codec.model.saving import build_codec

    config = compose_experiment(job.name)
    options = {key: value for key, value in config["training"].items() if not key.startswith("_")}
    modes = {"compiled": True, "graphs": "reduce-overhead"}
    options |= {"compile": modes.get(job.how, False), "stages": (), "adversarial_from": 0}
    torch.manual_seed(0)
    parts = [build(config[name], path=name) for name in ("discriminator", "loss", "optimizer")]
    training = BareTraining(build_codec(config["model"]), *parts, **options).to(device)
    training.trainer = BareTrainer(training.configure_optimizers())
    samples = crop_samples(config, device.type == "cpu")
    audio = 0.1 * torch.randn(job.batch, config["channels"], samples, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            training.train_on(audio)

    return step, job.batch * samples / config["sample_rate"]


def trained(job: Job, device: torch.device) -> dict[str, Any]:
    """Speed of training steps, with the lines that wait and the kernels that take longest."""
    torch.backends.cudnn.benchmark = job.how == "tuned"
    step, duration = training_step(job, device)
    seconds = median_seconds(step, device, 1 if device.type == "cpu" else 4)
    waits = Counter[str]()
    with host_waits(device, waits):
        step()
    note = f"{sum(waits.values())} waits: " + ", ".join(f"{line} {n}" for line, n in waits.most_common(4))
    found = {"audio_seconds_per_second": duration / seconds, "milliseconds": 1000 * seconds}
    return found | {"note": f"{note}; {kernels(step)}" if device.type == "cuda" else ""}


def kernels(step: Callable[[], None]) -> str:
    """Number of kernels of a step, their time, and the five that take longest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: event.self_device_time_total, reverse=True)
    total = sum(event.self_device_time_total for event in events)
    longest = [
        f"{e.key[:60]} {e.count} x {e.self_device_time_total / e.count / 1000:.2f} ms" for e in events[:5]
    ]
    count = sum(event.count for event in events)
    return f"{count} kernels, {total / 1000:.0f} ms: " + ", ".join(longest).replace("|", " ")


def peer(job: Job, device: torch.device) -> dict[str, Any]:
    """The same step of an original package, in bf16 autocast."""
    from benchmark_peers import PEERS as MAKERS
    from benchmark_peers import SAMPLE_RATE

    with torch.device("cpu"):
        contender = MAKERS[job.name](False)
    for value in vars(contender).values():
        if isinstance(value, torch.nn.Module):
            value.to(device)
    samples = PEERS[job.name][1]
    audio = 0.1 * torch.randn(job.batch, 1, samples, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            contender(audio)

    seconds = median_seconds(step, device, 1 if device.type == "cpu" else 4)
    return {
        "audio_seconds_per_second": job.batch * samples / SAMPLE_RATE / seconds,
        "milliseconds": 1000 * seconds,
    }


def encoded(job: Job, device: torch.device) -> dict[str, Any]:
    """Codes of ten seconds a recording, in float32 without TF32, as codec-encode."""
    from codec.model.inference import exact_float32

    codec = build_model(job.name, device)
    if job.how == "compiled":
        codec.autoencoder.compile_networks()
    hops = round((0.5 if device.type == "cpu" else 10) * codec.frame_rate)
    audio = 0.1 * torch.randn(job.batch, codec.audio_channels, hops * codec.hop_length, device=device)
    with torch.inference_mode(), exact_float32():
        codes = codec.encode(audio)
        seconds = median_seconds(lambda: codec.encode(audio), device)
        back = median_seconds(lambda: codec.decode(codes), device)
    duration = job.batch * audio.shape[2] / codec.sample_rate
    note = f"decoding {duration / back:.0f} audio s/s"
    return {"audio_seconds_per_second": duration / seconds, "milliseconds": 1000 * seconds, "note": note}


def streamed(job: Job, device: torch.device) -> dict[str, Any]:
    """One frame encoded and decoded, at a time."""
    codec = build_model(job.name, device)
    stream = codec.streaming()
    audio = 0.1 * torch.randn(1, codec.audio_channels, codec.hop_length, device=device)
    seconds = median_seconds(lambda: stream.decode(stream.encode(audio)).cpu(), device, 8)
    note = f"algorithmic latency {stream.latency_ms:.0f} ms"
    return {
        "audio_seconds_per_second": 1 / codec.frame_rate / seconds,
        "milliseconds": 1000 * seconds,
        "note": note,
    }


def quantized(job: Job, device: torch.device) -> dict[str, Any]:
    """Training step of eight stages of 1024 codes, on 150 frames of 128 dimensions."""
    from benchmark_quantizers import CONTENDERS

    make, own = CONTENDERS[job.name][0], []
    contender = make(8, 128)
    contender.module.to(device).train()
    latents = torch.randn(job.batch, 128, 150, device=device, requires_grad=True)
    seconds = median_seconds(lambda: contender.train(latents), device)
    for name, (rival, against) in CONTENDERS.items():
        if against == job.name != name:
            try:
                other = rival(8, 128)
            except ImportError:
                continue
            other.module.to(device).train()
            own.append(
                f"{name} {1000 * median_seconds(lambda other=other: other.train(latents), device):.1f} ms"
            )
    return {"milliseconds": 1000 * seconds, "note": ", ".join(own)}


KINDS: dict[str, Callable[[Job, torch.device], dict[str, Any]]] = {
    "train": trained,
    "peer": peer,
    "encode": encoded,
    "stream": streamed,
    "quantize": quantized,
}


def measure(job: Job, device: torch.device) -> dict[str, Any]:
    """Result of one job in this process; a package that is missing becomes its note."""
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        result = KINDS[job.job](job, device)
    except ImportError as error:
        return {"note": f"not installed: {error}"}
    except Exception as error:  # the other jobs of this process still run
        return {"note": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"}
    if device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return result


def measure_all(group: list[Job], device: torch.device) -> None:
    """Print one line of JSON per job, as it ends."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    for job in group:
        print(json.dumps([*job, measure(job, device)]), flush=True)
        gc.collect()


class Child:
    """Process that measures a group of jobs; a thread gathers its output."""

    def __init__(self, group: list[Job], device: str, threads: int | None = None):
        self.group, self.printed = group, list[str]()
        command = [sys.executable, __file__, "--device", device, "--jobs", json.dumps(group)]
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)} if threads else {}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        """Gather lines until the process ends."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.printed.extend(lines)

    def results(self, seconds: float) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Results of all jobs after at most some seconds; the notes of missing ones say why."""
        reason = "ended early:"
        try:
            self.process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            reason = "out of time:"
        self.reader.join(10)
        lines = [json.loads(line) for line in self.printed if line.startswith('["')]
        done = {Job(*line[:4]): line[4] for line in lines}
        last = [line.strip() for line in self.printed if line.strip()][-1:]
        for job in self.group:
            yield job, done.get(job, {"note": " ".join([reason, *last])[:200]})


def compile_ahead(todo: list[list[Job]], device: str, seconds: float) -> None:
    """Fill Inductor's cache on disk by running all compiled jobs, several processes side by side."""
    end, waiting, running = time.monotonic() + seconds, list(todo), list[Child]()
    while (waiting or running) and time.monotonic() < end:
        running = [child for child in running if child.process.poll() is None]
        while waiting and len(running) < PARALLEL:
            running.append(Child(waiting.pop(0), device, threads=4))
        time.sleep(0.2)
    for child in running:
        list(child.results(0))


def device_name(device: str) -> str:
    """Name of the card, or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", words)
    return model[1] if model else "cpu"


def shown(value: Any) -> str:
    """Value of a table's cell."""
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def write_tables(folder: Path, rows: list[dict[str, Any]], card: str) -> None:
    """Write `gpu.csv` and `gpu.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({name: shown(value) for name, value in row.items()} for row in rows)
    write_whole(folder / "gpu.csv", text.getvalue())
    lines = [
        f"{card}, torch {torch.__version__}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(shown(row.get(name, "")) for name in COLUMNS) + " |" for row in rows]
    write_whole(folder / "gpu.md", "\n".join(lines) + "\n")


def run(options: argparse.Namespace) -> None:
    """Measure all jobs one after another, within the minutes."""
    start, budget = time.monotonic(), 60 * options.minutes
    todo = groups(options.only, options.device == "cpu")
    card, rows, ahead = device_name(options.device), list[dict[str, Any]](), options.device == "cpu"
    for position, group in enumerate(todo):
        if group[0].how == "compiled" and not ahead:
            left = budget - (time.monotonic() - start)
            compile_ahead(todo[position:], options.device, 0.5 * left)
            ahead = True
        left = budget - (time.monotonic() - start)
        missing = [(job, {"note": "not measured: out of time"}) for job in group]
        for job, result in Child(group, options.device).results(left) if left > 10 else missing:
            rows.append({**job._asdict(), **result})
            print(*job, {key: shown(value) for key, value in result.items()}, flush=True)
        write_tables(options.output, rows, card)


def main() -> None:
    """Run the benchmark of the command line, or one job of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(tempfile.gettempdir()) / "codec-gpu")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="*", default=[], help="kinds (train, encode, ...) or experiments")
    parser.add_argument("--jobs", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.jobs:
        measure_all([Job(*job) for job in json.loads(options.jobs)], torch.device(options.device))
    else:
        run(options)


if __name__ == "__main__":
    main()
