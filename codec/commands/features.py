"""`codec-features TEACHER FOLDER -o FEATURES`: features of a speech model for all recordings."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.huggingface.speech import feature_codec
from codec.model.inference import on_device
from codec.tokens.encoding import encode_corpus
from codec.tokens.plan import shard_of_jobs
from codec.tokens.sources import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; ConfigError and DataError for user errors. Exit status 0: the job is complete."""
    options = parse("features", argv)
    jobs = shard_of_jobs(options.num_shards, options.shard_id, os.environ)
    layer = int(options.layer) if options.layer.isdigit() else options.layer
    work = {"workers": options.workers, "shard_hours": options.shard_hours}
    settings = Settings(options.format, **work, dtype=options.dtype, layer=layer)
    codec = on_device(feature_codec(options.teacher, layer), options.device)
    try:
        encode_corpus(codec, options.inputs, options.output, settings, jobs, options.merge)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of memory, also for one recording at a time: --device cpu ({error})"
        ) from error
    return 0
