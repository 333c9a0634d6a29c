"""Compare quantizers with the libraries people use: python scripts/benchmark_quantizers.py

Every contender quantizes the same latents with as many codebooks of the same size; they take turns in one
process on one thread, whose CPU time is read. "train" is forward, backward and the codebook update, "encode"
gives codes, "decode" gives latents of codes. Those that are installed take part (see
scripts/benchmark-requirements.txt). With --compile everybody's forward and encode go through torch.compile;
who does not get through is named. With --memory each runs in a process of its own, whose peak resident memory
is read.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codec.codebooks.ema import EMACodebook
from codec.codebooks.factorized import FactorizedCodebook
from codec.quantizers.residual import Residual

SIZE = 1024
# Codebooks, latent dimensions, batch and frames.
SETTINGS = [
    (books, dim, *shape) for books in (1, 8) for dim in (128, 512) for shape in ((16, 150), (1, 6000))
]
MEMORY_SETTING = (8, 128, 16, 2000)


class Contender(NamedTuple):
    """Quantizer of one library for latents `[B, D, F]`; `update` learns everything without gradients."""

    module: nn.Module
    forward: Callable[[Tensor], tuple[Tensor, Tensor, Any]]  # output, loss, and what `update` is given
    encode: Callable[[Tensor], Any]
    decode: Callable[[Any], Tensor]
    update: Callable[[Any], object] | None = None

    def train(self, latents: Tensor) -> None:
        """Forward, backward of the loss that all train with, update."""
        output, loss, record = self.forward(latents)
        (output.mean() + loss.sum()).backward()
        if self.update:
            self.update(record)

    def compiled(self) -> Contender:
        """The same with its forward and its encode compiled; decode stays."""
        return self._replace(forward=torch.compile(self.forward), encode=torch.compile(self.encode))


def ours(books: int, dim: int) -> Contender:
    """Residual VQ with EMA codebooks."""
    weights = {"commitment": 1.0}
    make = partial(EMACodebook, codebook_size=SIZE)
    quantizer = Residual(dim, make, num_quantizers=books, loss_weights=weights)
    return residual(quantizer)


def ours_factorized(books: int, dim: int) -> Contender:
    """DAC's quantizer as we build it."""
    weights = {"commitment": 0.25, "codebook": 1.0}
    make = partial(FactorizedCodebook, codebook_size=SIZE)
    quantizer = Residual(dim, make, num_quantizers=books, loss_weights=weights)
    return residual(quantizer)._replace(update=None)  # by gradients alone, as DAC's


def residual(quantizer: Residual) -> Contender:
    """Any of ours."""

    def forward(latents: Tensor) -> tuple[Tensor, Tensor, Any]:
        quantized = quantizer(latents)
        losses = [quantizer.loss_weights[name] * loss for name, loss in quantized.losses.items()]
        return quantized.latents, torch.stack(losses), quantized

    return Contender(quantizer, forward, quantizer.encode, quantizer.decode, quantizer.update)


def vector_quantize_pytorch(books: int, dim: int, rotation: bool = True) -> Contender:
    """lucidrains' ResidualVQ; its default gradient is the rotation trick."""
    from vector_quantize_pytorch import ResidualVQ

    module = ResidualVQ(
        dim=dim, num_quantizers=books, codebook_size=SIZE, decay=0.99, rotation_trick=rotation
    )

    def forward(latents: Tensor) -> tuple[Tensor, Tensor, Any]:
        output, _, loss = module(latents.transpose(1, 2))
        return output, loss, None

    def encode(latents: Tensor) -> Tensor:
        return module(latents.transpose(1, 2))[1]

    return Contender(module, forward, encode, module.get_output_from_indices)


def quantizer_pytorch(books: int, dim: int) -> Contender:
    """Quantizer1d with residuals that do not share a codebook."""
    from quantizer_pytorch import Quantizer1d

    module = Quantizer1d(dim, num_groups=1, codebook_size=SIZE, num_residuals=books, shared_codebook=False)

    def forward(latents: Tensor) -> tuple[Tensor, Tensor, Any]:
        output, info = module(latents)
        return output, info["loss"], None

    return Contender(module, forward, lambda latents: module(latents)[1]["indices"], module.from_ids)


def encodec(books: int, dim: int) -> Contender:
    """EnCodec's, which AudioCraft, FunCodec and others copied."""
    from encodec.quantization.vq import ResidualVectorQuantizer

    module = ResidualVectorQuantizer(dimension=dim, n_q=books, bins=SIZE, decay=0.99, kmeans_init=False)

    def forward(latents: Tensor) -> tuple[Tensor, Tensor, Any]:
        output, _, loss = module.vq(latents)
        return output, loss, None

    return Contender(module, forward, module.vq.encode, module.vq.decode)


def mimi(books: int, dim: int) -> Contender:
    """Kyutai's residual VQ."""
    from moshi.quantization import ResidualVectorQuantizer

    module = ResidualVectorQuantizer(dimension=dim, n_q=books, bins=SIZE)
    for layer in module.vq.layers:
        layer._codebook._buffers["_initialized"].fill_(1)

    def forward(latents: Tensor) -> tuple[Tensor, Tensor, Any]:
        result = module(latents, 75)
        return result.x, result.penalty, None

    return Contender(module, forward, module.encode, module.decode)


def dac(books: int, dim: int) -> Contender:
    """Descript's factorized residual VQ."""
    from dac.nn.quantize import ResidualVectorQuantize

    module = ResidualVectorQuantize(dim, books, SIZE, 8, quantizer_dropout=0.0)

    def forward(latents: Tensor) -> tuple[Tensor, Tensor, Any]:
        output, _, _, commitment, codebook = module(latents)
        return output, 0.25 * commitment + codebook, None

    return Contender(
        module,
        forward,
        lambda latents: module(latents)[1],
        lambda codes: module.from_codes(codes)[0],
    )


# Each with what it is measured against.
CONTENDERS: dict[str, tuple[Callable[[int, int], Contender], str]] = {
    "ours": (ours, "ours"),
    "vector-quantize-pytorch": (vector_quantize_pytorch, "ours"),
    "same, straight-through": (partial(vector_quantize_pytorch, rotation=False), "ours"),
    "quantizer-pytorch": (quantizer_pytorch, "ours"),
    "encodec (AudioCraft)": (encodec, "ours"),
    "moshi (Mimi)": (mimi, "ours"),
    "ours, factorized": (ours_factorized, "ours, factorized"),
    "descript-audio-codec": (dac, "ours, factorized"),
}


def milliseconds(function: Callable[[], object]) -> float:
    """CPU time of this thread in one call."""
    start = time.thread_time()
    function()
    return 1000 * (time.thread_time() - start)


def installed(books: int, dim: int, compiled: bool = False) -> dict[str, Contender]:
    """The contenders whose packages are there."""
    found = {}
    for name, (make, _) in CONTENDERS.items():
        torch.manual_seed(0)
        try:
            found[name] = make(books, dim).compiled() if compiled else make(books, dim)
        except ImportError as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return found


def jobs_of(contender: Contender, latents: Tensor) -> dict[str, Callable[[], object]]:
    """Functions to time, by name, each called once already."""
    contender.module.eval()
    with torch.no_grad():
        codes = contender.encode(latents)
        contender.decode(codes)
    jobs: dict[str, Callable[[], object]] = {
        "train": lambda: contender.train(latents.clone().requires_grad_()),
        "encode": torch.no_grad()(lambda: contender.encode(latents)),
        "decode": torch.no_grad()(lambda: contender.decode(codes)),
    }
    contender.module.train()
    jobs["train"]()
    return jobs


def all_jobs(contenders: dict[str, Contender], latents: Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    """The jobs of those that can do them; of others it is printed why not."""
    jobs = {}
    for name, contender in contenders.items():
        try:
            jobs[name] = jobs_of(contender, latents)
        except Exception as error:  # whatever a compiler makes of another library
            reason = str(error).strip().partition("\n")[0]
            print(f"without {name}: {type(error).__name__}: {reason}", file=sys.stderr)
    return jobs


def gemm_floor(books: int, dim: int, frames: int) -> float:
    """Milliseconds that the search's matrix products alone take, at the speed of the fastest routine here."""
    points, vectors = torch.randn(frames, dim), torch.randn(SIZE, dim)
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    product = (
        (lambda: linear(points, vectors, None, "none", [], "")) if linear else (lambda: points @ vectors.T)
    )
    return books * min(milliseconds(product) for _ in range(10))


def compare(books: int, dim: int, batch: int, frames: int, options: argparse.Namespace) -> None:
    """Let the contenders take turns; print the lower quartile of each and its multiple of ours."""
    torch.compiler.reset()
    latents = torch.randn(batch, dim, frames, generator=torch.Generator().manual_seed(0))
    contenders = installed(books, dim, options.compile)
    jobs = all_jobs(contenders, latents)
    times: dict[tuple[str, str], list[float]] = {(n, job): [] for n in jobs for job in jobs[n]}
    for _ in range(options.rounds):
        for name, named in jobs.items():
            for job, function in named.items():
                contenders[name].module.train(job == "train")
                repeats = 10 if job == "decode" else 1
                if job != "train":
                    function()  # tables made of weights are made anew after a training step, not in use
                times[name, job].append(sum(milliseconds(function) for _ in range(repeats)) / repeats)
    floor = gemm_floor(books, dim, batch * frames)
    print(f"\n{books} x {SIZE} codes, {dim} dimensions, {batch} x {frames} frames; GEMM floor {floor:.1f} ms")
    typical = {key: statistics.quantiles(values, n=4)[0] for key, values in times.items()}
    for name in jobs:
        cells = [
            f"{typical[name, job]:9.2f} ms {typical[name, job] / typical[CONTENDERS[name][1], job]:7.2f} x"
            for job in jobs[name]
        ]
        print(f"{name:26}" + "".join(cells), flush=True)


def print_memory(name: str) -> None:
    """Print the rise of this process's peak memory by one training step and one encode, in MiB."""
    books, dim, batch, frames = MEMORY_SETTING
    contender = CONTENDERS[name][0](books, dim)
    latents = torch.randn(batch, dim, frames)
    contender.module.eval()
    with torch.no_grad():
        contender.encode(latents[..., :8])
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        contender.encode(latents)
    encode = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    contender.module.train()
    contender.train(latents.requires_grad_())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"encode {(encode - start) / 1024:7.0f} MiB, then a training step {(peak - start) / 1024:7.0f} MiB")


def main() -> None:
    """Run the benchmarks of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--books", type=int, choices=(1, 8), help="only with this many codebooks")
    parser.add_argument("--compile", action="store_true", help="compile forwards and encodes of all")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print_memory(options.memory_of)
    elif options.memory:
        books, dim, batch, frames = MEMORY_SETTING
        print(f"peak above the start: {books} x {SIZE} codes, {dim} dimensions, {batch} x {frames} frames")
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--memory-of", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            print(
                f"{name:26}{(done.stdout or done.stderr.strip().rpartition(chr(10))[2]).rstrip()}", flush=True
            )
    else:
        for books, dim, batch, frames in SETTINGS:
            if options.books in (None, books):
                compare(books, dim, batch, frames, options)


if __name__ == "__main__":
    main()
