"""`codec-encode MODEL FOLDER -o TOKENS`: encode a corpus, resumable and in any number of jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from codec.config import ConfigError
from codec.data.loader import WorkerLoader, named_losses
from codec.model.batching import exact_float32, on_device
from codec.model.codec import Codec
from codec.model.saving import load
from codec.system.files import only_writer
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import META_FILE, TokenError, TokenFormat
from codec.tokens.plan import WORK, Plan, batches, begin, describe, make_plan
from codec.tokens.shards import Outcome, all_done, merge, note, sweep, write_shard
from codec.tokens.sources import Encoder, Settings, SourceBatches, format_of


def encode_corpus(
    codec: Codec,
    inputs: Sequence[Path],
    output: Path,
    settings: Settings | None = None,
    jobs: tuple[int, int] = (1, 0),
    merge_only: bool = False,
) -> dict[str, Any] | None:
    """Encode a folder, or files, on the codec's device, as job `jobs[1]` of `jobs[0]`.

    Complete shards of earlier runs are kept. Returns the content of `tokens.json` if this job is the last to
    end, otherwise None. ConfigError or DataError for invalid arguments, FileError if this job is already
    running.
    """
    settings = settings or Settings()
    token_format = format_of(codec, settings)
    plan = make_plan(inputs, codec.sample_rate, settings.shard_hours)
    options = {"beam": settings.beam, "precision": "float32"}
    options |= {"batch_seconds": settings.batch_seconds, "shard_hours": settings.shard_hours}
    if settings.downmix != "mid":  # absent from older datasets
        options["downmix"] = settings.downmix
    about = describe(token_format, plan, options)
    if begin(output, about):
        require_whole(output)
        print(f"{output} is complete: nothing to do")
        return None
    with only_writer(output, output / WORK / f"{jobs[1]}-of-{jobs[0]}.lock"):
        own = range(jobs[1], len(plan.shards), jobs[0])
        todo = [shard for shard in own if not note(output, shard).is_file()]
        if (output / META_FILE).is_file():  # written by another job, which then removed the notes
            return None
        if merge_only:
            missing = [shard for shard in range(len(plan.shards)) if not note(output, shard).is_file()]
            if missing:
                raise ConfigError(
                    f"{output}: {len(missing)} of {len(plan.shards)} shards are not encoded yet"
                )
        else:
            sweep(output, own)
            encode_shards(codec, settings, plan, todo, output, token_format, about)
        if not all_done(output, plan) and not (output / META_FILE).is_file():
            print(f"job {jobs[1]} of {jobs[0]} is done; the last one to end completes {output}")
            return None
        return finish(output, plan, token_format, about)


def require_whole(output: Path) -> None:
    """Raise TokenError unless all files of a dataset exist with their sizes; their content is not read."""
    tokens = TokenDataset(output)
    try:
        for i in range(len(tokens)):
            tokens.stored(i)
    except TokenError as error:
        raise TokenError(f"{error}; remove {output} to encode all again") from error


def finish(output: Path, plan: Plan, token_format: TokenFormat, about: Mapping[str, Any]) -> Any:
    """Merge the shards, unless another job that ended at the same time has done so."""
    try:
        content = merge(output, plan, token_format, about)
    except FileNotFoundError:
        if not (output / META_FILE).is_file():
            raise
        return None
    skipped = f", {content['skipped']} files skipped: {output}/report.txt" if content["skipped"] else ""
    print(f"{content['items']} files, {content['hours']:.2f} hours, {content['frames']} frames{skipped}")
    print(f"read them with codec.tokens.TokenDataset({str(output)!r})")
    return content


def encode_shards(
    codec: Codec,
    settings: Settings,
    plan: Plan,
    todo: Sequence[int],
    output: Path,
    token_format: TokenFormat,
    about: Mapping[str, Any],
) -> None:
    """Encode these shards one after the other, with prefetching across shards."""
    groups = [(shard, group) for shard in todo for group in batches(plan, shard, settings.batch_seconds)]
    reader = SourceBatches(plan, [group for _, group in groups], codec, settings)
    workers = min(settings.workers, len(groups))
    loader = WorkerLoader(reader, batch_size=None, num_workers=workers, collate_fn=list)
    encoder = Encoder(codec, settings, plan, token_format)
    device = next(codec.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    seconds = sum(plan.seconds(shard) for shard in todo)
    outcomes: dict[int, Outcome] = {}
    with exact_float32(), progress(seconds) as advance, named_losses():
        for (shard, _), loaded in zip(groups, loader, strict=True):
            outcomes |= encoder.encode(loaded, advance)
            if len(outcomes) == len(plan.shards[shard]):
                write_shard(output, shard, plan, outcomes, about, name)
                outcomes = {}


@contextmanager
def progress(seconds: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar in hours of audio; yields a function to advance it by seconds."""
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h [{elapsed}<{remaining}{postfix}]"
    interval = 0.5 if sys.stderr.isatty() else 30.0
    began = time.perf_counter()
    with tqdm(
        total=seconds / 3600, desc="encoding", bar_format=shape, delay=1.0, mininterval=interval
    ) as bar:

        def advance(more: float) -> None:
            hours = more / 3600
            speed = (bar.n + hours) / (time.perf_counter() - began) * 3600
            bar.set_postfix_str(f"{speed:.0f} audio-hours per hour", refresh=False)
            bar.update(hours)

        yield advance


def run_job(
    model: Path,
    inputs: Sequence[Path],
    output: Path,
    settings: Settings,
    jobs: tuple[int, int],
    device: str | None = None,
    merge_only: bool = False,
    trust: Sequence[str] = (),
) -> None:
    """Load the codec and run one job; ConfigError if a batch does not fit the device's memory."""
    try:
        encode_corpus(on_device(load(model, trust), device), inputs, output, settings, jobs, merge_only)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of memory: --batch-seconds {settings.batch_seconds / 2:g}, in a new folder, takes less"
        ) from error
