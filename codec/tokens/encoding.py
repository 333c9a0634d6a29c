"""`codec-encode MODEL FOLDER -o TOKENS`: encode a corpus, resumable and in any number of jobs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from codec.config import ConfigError
from codec.data.loader import WorkerLoader, named_losses
from codec.model.codec import Codec
from codec.model.inference import exact_float32, on_device
from codec.model.saving import load
from codec.system.device import device_name
from codec.system.files import only_writer
from codec.system.progress import progress_bar
from codec.system.resuming import require_unused, resume
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import META_FILE, TokenError
from codec.tokens.plan import batches, make_plan
from codec.tokens.shards import WORK, Outcome, Shards
from codec.tokens.sources import Encoder, Settings, SourceBatches, format_of

# Options of the settings that identify a dataset; another value gives another dataset.
OPTIONS = {"layout": "--format", "beam": "--beam", "downmix": "--downmix", "dtype": "--dtype"}
OPTIONS |= {"batch_seconds": "--batch-seconds", "shard_hours": "--shard-hours"}
OPTIONS |= {"codec_id": "the model (codec_id)", "layer": "--layer"}
OPTIONS |= {"condition": "--condition", "codebook_sizes": "codebook sizes (--num-quantizers)"}


def encode_corpus(
    codec: Codec,
    inputs: Sequence[str | Path],
    output: Path,
    settings: Settings | None = None,
    jobs: tuple[int, int] = (1, 0),
    merge_only: bool = False,
) -> dict[str, Any] | None:
    """Encode a folder, or files, on the codec's device, as job `jobs[1]` of `jobs[0]`.

    Complete shards of earlier runs are kept. Returns the content of `tokens.json` if this job is the last to
    end, otherwise None. ConfigError or DataError for invalid arguments, ConfigError if this job is already
    running.
    """
    job = Encoding(codec, inputs, output, settings or Settings(), jobs)
    if job.begin():
        print(f"{output} is complete: nothing to do")
        return None
    with only_writer(output, f"{WORK}/{jobs[1]}-of-{jobs[0]}.lock"):
        if job.shards.is_merged:  # by another job, which then removed the notes
            return None
        if merge_only:
            job.require_notes()
        else:
            job.encode()
        return job.finish()


class Encoding:
    """One job of encoding a corpus: its plan, codec, settings and output."""

    def __init__(
        self,
        codec: Codec,
        inputs: Sequence[str | Path],
        output: Path,
        settings: Settings,
        jobs: tuple[int, int],
    ):
        self.codec, self.settings, self.jobs = codec, settings, jobs
        token_format = format_of(codec, settings)
        self.plan = make_plan(inputs, codec.sample_rate, settings.shard_hours)
        described = token_format.describe()
        about = {name: described[name] for name in token_format.identity} | settings.about()
        about |= {"condition": codec.condition} if codec.condition else {}
        about |= {"files": len(self.plan.sources), "files_sha256": self.plan.sha256}
        self.shards = Shards(output, self.plan, token_format, about)
        self.own = range(jobs[1], len(self.plan.shards), jobs[0])

    def begin(self) -> bool:
        """Create or resume the output folder; True if the dataset is complete already.

        ConfigError if the folder holds other files, or a dataset of another codec, other options or files.
        """
        output, complete = self.shards.output, self.shards.is_merged
        mark = META_FILE if complete else f"{WORK}/plan.json"
        require_unused(output, mark)
        about = self.shards.about
        names = dict.fromkeys([*about, "downmix", "condition"])  # `tokens.json` has further entries
        resume(output, mark, about, "name another folder", names=names, options=OPTIONS)
        if complete:
            shutil.rmtree(output / WORK, ignore_errors=True)
            require_whole(output)
        return complete

    def require_notes(self) -> None:
        """Raise ConfigError unless all jobs have encoded their shards."""
        if missing := self.shards.missing(range(len(self.plan.shards))):
            raise ConfigError(
                f"{self.shards.output}: {len(missing)} of {len(self.plan.shards)} shards are not encoded yet"
            )

    def encode(self) -> None:
        """Encode the missing shards of this job one after the other, with prefetching across shards."""
        self.shards.sweep(self.own)
        todo, seconds = self.shards.missing(self.own), self.settings.batch_seconds
        groups = [(shard, group) for shard in todo for group in batches(self.plan, shard, seconds)]
        reader = SourceBatches(self.plan, [group for _, group in groups], self.codec, self.settings)
        workers = min(self.settings.workers, len(groups))
        loader = WorkerLoader(reader, batch_size=None, num_workers=workers, collate_fn=list)
        codec = self.codec
        if self.settings.compile and groups:
            from codec.tokens.compiled import compiled  # its import takes two seconds

            codec = compiled(codec)
        encoder = Encoder(codec, self.settings, self.plan, self.shards.format)
        name = device_name(next(codec.parameters()).device) + ", compiled" * self.settings.compile
        outcomes: dict[int, Outcome] = {}
        with exact_float32(), progress(sum(map(self.plan.seconds, todo))) as advance, named_losses():
            for (shard, _), loaded in zip(groups, loader, strict=True):
                outcomes |= encoder.encode(loaded, advance)
                if len(outcomes) == len(self.plan.shards[shard]):
                    self.shards.write(shard, outcomes, name)
                    outcomes = {}

    def finish(self) -> dict[str, Any] | None:
        """Merge all shards if no other job still encodes, or has merged them at the same time."""
        if self.shards.missing(range(len(self.plan.shards))) and not self.shards.is_merged:
            print(f"job {self.jobs[1]} of {self.jobs[0]} is done; the last to end completes the dataset")
            return None
        try:
            content = self.shards.merge()
        except FileNotFoundError:
            if not self.shards.is_merged:
                raise
            return None
        output = self.shards.output
        skipped = f", {content['skipped']} files skipped: {output}/report.txt" if content["skipped"] else ""
        print(f"{content['items']} files, {content['hours']:.2f} hours, {content['frames']} frames{skipped}")
        print(f"read them with codec.tokens.TokenDataset({str(output)!r})")
        return content


def require_whole(output: Path) -> None:
    """Raise TokenError unless all files of a dataset exist with their sizes; their content is not read."""
    tokens = TokenDataset(output)
    try:
        for i in range(len(tokens)):
            tokens.stored(i)
    except TokenError as error:
        raise TokenError(f"{error}; remove {output} to encode all again") from error


@contextmanager
def progress(seconds: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar in hours of audio; yields a function to advance it by seconds."""
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h [{elapsed}<{remaining}{postfix}]"
    start = time.perf_counter()
    with progress_bar(None, "encoding", total=seconds / 3600, bar_format=shape) as bar:

        def advance(more: float) -> None:
            hours = more / 3600
            speed = (bar.n + hours) / (time.perf_counter() - start) * 3600
            bar.set_postfix_str(f"{speed:.0f} audio-hours per hour", refresh=False)
            bar.update(hours)

        yield advance


def run_job(
    model: Path,
    inputs: Sequence[str | Path],
    output: Path,
    settings: Settings,
    jobs: tuple[int, int],
    device: str | None = None,
    merge_only: bool = False,
    trust: Sequence[str] = (),
    condition: str | None = None,
) -> None:
    """Load the codec and run one job; ConfigError if a batch does not fit the device's memory."""
    try:
        codec = on_device(load(model, trust, condition), device)
        encode_corpus(codec, inputs, output, settings, jobs, merge_only)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of memory: --batch-seconds {settings.batch_seconds / 2:g}, in a new folder, takes less"
        ) from error
