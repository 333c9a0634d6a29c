"""Encoders compiled by `torch.compile`, once for batches of any size and signals of any length."""

from __future__ import annotations

import sys
import time

import torch
from torch._dynamo.exc import TorchDynamoException

from codec.config import ConfigError
from codec.export.graphs import without_normalization
from codec.model.codec import Codec
from codec.model.inference import encode_batch, exact_float32

FRAMES = 37  # of the examples to compile with: no size of anything else


def compiled(codec: Codec) -> Codec:
    """Copy of a codec for `encode_batch` with a compiled encoder; takes seconds to minutes.

    Two graphs, for one signal and for several, take all lengths; on CPUs those of some layers take a range.
    The quantizer is not compiled, so that codes differ by the rounding of latents alone. ConfigError without
    a compiler.
    """
    device = next(codec.parameters()).device
    copy = without_normalization(codec).to(device)
    copy.autoencoder.compile_networks(dynamic=True)
    print(f"compiling the encoder for {device.type}, which may take minutes", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        # A dimension of the same size as the channels would be taken for one of the same meaning.
        for batch in (1, codec.audio_channels + 1):
            lengths = [(FRAMES - n) * codec.hop_length for n in range(batch)]
            with exact_float32():
                encode_batch(copy, [torch.zeros(codec.audio_channels, length) for length in lengths])
    except TorchDynamoException as error:
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise ConfigError(
            f"--compile: {reason}: leave it out, or install a C++ compiler (CXX, by default g++) for a CPU, "
            "a C compiler (CC) and Triton for a GPU"
        ) from error
    print(f"compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return copy
