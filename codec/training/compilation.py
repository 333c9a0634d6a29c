"""Compilation of the networks that a run trains."""

from __future__ import annotations

from codec.discriminators.base import Discriminator
from codec.model.codec import Codec

MODES = "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"


def compile_networks(codec: Codec, discriminator: Discriminator, mode: bool | str) -> bool:
    """Compile autoencoder and discriminator by `torch.compile`, in one of its `MODES` (True: the default).

    "reduce-overhead" replays the kernels of a network as one CUDA graph. True if a mode may do so: each step
    then begins with `torch.compiler.cudagraph_mark_step_begin`. ValueError for another mode.
    """
    if isinstance(mode, str) and mode not in MODES:
        raise ValueError(f"compile must be true, false, {' or '.join(MODES)}, got {mode!r}")
    if mode:
        options = {"mode": mode} if isinstance(mode, str) else {}
        codec.autoencoder.compile_networks(**options)
        discriminator.compile(**options)
    return isinstance(mode, str)
