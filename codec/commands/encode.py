"""`codec-encode MODEL FOLDER -o TOKENS`: recordings to a token dataset, or one recording to an array."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codec.audio.levels import within_range
from codec.audio.pipes import read_source
from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.model.codec import Codec
from codec.model.inference import encode_long, on_device
from codec.model.saving import load
from codec.system.files import FileError, written_whole
from codec.system.stdio import is_pipe, standard_output
from codec.tokens.encoding import run_job
from codec.tokens.plan import shard_of_jobs
from codec.tokens.sources import Settings, format_of, stored


def require_one(inputs: Sequence[str | Path], output: Path) -> None:
    """Raise ConfigError unless the input is one recording and the output a `.npy` file."""
    if len(inputs) != 1 or os.path.isdir(inputs[0]):
        raise ConfigError(
            "-: standard input is one recording: give one input, and a .npy file or - as the output"
        )
    if not is_pipe(output) and output.suffix != ".npy":
        raise ConfigError(f"{output}: the tokens of one recording are a .npy file, or - for standard output")
    if not is_pipe(output) and output.exists():
        raise ConfigError(f"{output} exists: name another file, or remove it")


def encode_one(codec: Codec, source: str | Path, output: Path, settings: Settings) -> None:
    """Write the codes or latents `[R, F]` of one recording as `.npy`; either file may be `-`."""
    token_format = format_of(codec, settings)
    read = read_source(source, codec.sample_rate, codec.audio_channels, settings.downmix)
    blocks = map(torch.from_numpy, within_range(read, source))
    parts = encode_long(codec, blocks, settings.num_quantizers, settings.beam)
    content = io.BytesIO()  # NumPy requires a file with a position, unlike a pipe
    coded = stored(torch.cat(list(parts), dim=1).numpy(), token_format)
    if fault := token_format.fault(coded):
        raise FileError(source, f"{fault} in {coded.dtype}")
    np.save(content, coded)
    if is_pipe(output):
        standard_output().write(content.getvalue())
        standard_output().flush()
    else:
        with written_whole(output) as temporary:
            temporary.write_bytes(content.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; ConfigError and DataError for user errors. Exit status 0: the job is complete."""
    options = parse("encode", argv)
    single = is_pipe(options.output) or any(map(is_pipe, options.inputs))
    layout = "npy" if single else options.format
    settings = Settings(
        *(layout, options.num_quantizers, options.beam, options.batch_seconds, options.shard_hours),
        *(options.workers, options.downmix, options.dtype, options.compile),
    )
    if single:
        require_one(options.inputs, options.output)
        if options.compile:
            raise ConfigError("--compile is for folders: one recording is streamed, which is not compiled")
        codec = on_device(load(options.model, options.trust, options.condition), options.device)
        encode_one(codec, options.inputs[0], options.output, settings)
        return 0
    work: dict[str, Any] = {"model": options.model, "inputs": options.inputs, "output": options.output}
    work |= {
        "settings": settings,
        "device": options.device,
        "trust": options.trust,
        "condition": options.condition,
    }
    if options.engine == "ray" and not options.merge:
        from codec.tokens.ray_engine import run_on_ray

        run_on_ray(run_job, work, options.num_shards)
    else:
        jobs = shard_of_jobs(options.num_shards, options.shard_id, os.environ)
        run_job(**work, jobs=jobs, merge_only=options.merge)
    return 0
