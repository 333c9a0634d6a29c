"""`codec-stream MODEL [IN] [-o OUT]`: stream from microphone or file through a codec to speakers or file."""

from __future__ import annotations

import argparse
import importlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from codec.audio.conversion import resampled_length
from codec.audio.errors import check_wav_name
from codec.audio.levels import within_range
from codec.audio.pipes import read_source, write_sink
from codec.audio.reading import AudioError, read_info
from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.model.codec import Codec
from codec.model.saving import load
from codec.system.stdio import is_pipe


class Clock:
    """Compute times of the last pushes, and the duration of audio per push, in seconds."""

    def __init__(self, seconds_per_push: float, latency_ms: float):
        self.seconds_per_push, self.latency_ms = seconds_per_push, latency_ms
        self.taken: deque[float] = deque(maxlen=1000)  # bounded, as quantiles are computed after every push

    def measure(self, work: Callable[[], Any]) -> Any:
        """Call `work` and record its duration."""
        start = time.perf_counter()
        result = work()
        self.taken.append(time.perf_counter() - start)
        return result

    def __str__(self) -> str:
        """Format latency and speed."""
        middle, late = (1000 * np.quantile(self.taken, share) for share in (0.5, 0.95))
        speed = self.seconds_per_push / np.mean(self.taken)
        return (
            f"latency {self.latency_ms:.1f} ms + {middle:.1f} ms of computing (95 %: {late:.1f} ms), "
            f"{speed:.2g} times real time"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Stream until the end of the file or Ctrl-C."""
    options = parse("stream", argv)
    if min(options.frames, options.threads) < 1:
        raise ConfigError("--frames and --threads must be at least 1")
    if options.output:
        check_wav_name(options.output)
    has_path = options.output and not is_pipe(options.output)
    if has_path and options.output.exists() and not options.force:
        raise ConfigError(f"{options.output} exists: name another --output, or add --force")
    codec = load(options.model, options.trust, options.condition)
    dim = codec.quantizer.latent_dim
    rate = f"{dim} latents" if dim else f"{codec.bitrate(options.num_quantizers) / 1000:.3g} kbit/s"
    print(
        f"{codec.sample_rate} Hz, {codec.hop_length} samples ({1000 / codec.frame_rate:.1f} ms) a frame, "
        f"{rate}"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        run(codec, options)
    finally:
        torch.set_num_threads(threads)
    return 0


def run(codec: Codec, options: argparse.Namespace) -> None:
    """Connect source, codec and sink."""
    pushed = options.frames * codec.hop_length
    duration = None
    if options.input and not is_pipe(options.input):
        info = read_info(options.input)
        length = resampled_length(info.frames, info.sample_rate, codec.sample_rate)
        if length == 0:
            raise AudioError(options.input, f"too short: no whole sample at {codec.sample_rate} Hz")
        duration = length / codec.sample_rate
    if options.input:
        read = read_source(options.input, codec.sample_rate, codec.audio_channels)
        blocks = rechunked(within_range(read, options.input), pushed)
    else:
        blocks = microphone(codec, pushed)
    extra = (options.frames - 1) * 1000 / codec.frame_rate
    latency_ms = codec.streaming().require("encoder", "decoder").latency_ms
    clock = Clock(pushed / codec.sample_rate, latency_ms + extra)
    audio = coded(codec, blocks, options.num_quantizers, clock, duration)
    try:
        if options.output:
            write_sink(options.output, audio, codec.sample_rate)
        else:
            play(codec, audio)
    finally:
        if clock.taken:
            print(clock)


def coded(
    codec: Codec,
    blocks: Iterable[np.ndarray],
    num_quantizers: int | None,
    clock: Clock,
    duration: float | None = None,
) -> Iterator[np.ndarray]:
    """Encode and decode blocks of audio `[C, n]` as they arrive; the total length is unchanged."""
    read = written = 0
    bar = tqdm(total=duration, unit="s", bar_format="{elapsed}{postfix}", dynamic_ncols=True, disable=None)
    with codec.streaming() as stream, bar:

        def push(block: np.ndarray, final: bool = False) -> np.ndarray:
            audio = torch.from_numpy(block)[None]
            return stream.decode(stream.encode(audio, final, num_quantizers), final)[0].numpy()

        for block in blocks:
            output = clock.measure(lambda block=block: push(block))
            read, written = read + block.shape[1], written + output.shape[1]
            bar.set_postfix_str(str(clock), refresh=False)
            bar.update(block.shape[1] / codec.sample_rate)
            if output.shape[1]:
                yield output
        rest = push(np.zeros((codec.audio_channels, 0), np.float32), final=True)[:, : read - written]
        if rest.shape[1]:
            yield rest


def rechunked(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Regroup blocks `[C, n]` to `size` samples each; the last one may be shorter."""
    waiting: np.ndarray | None = None
    for block in blocks:
        waiting = block if waiting is None else np.concatenate([waiting, block], 1)
        end = waiting.shape[1] // size * size
        yield from (waiting[:, start : start + size] for start in range(0, end, size))
        waiting = waiting[:, end:]
    if waiting is not None and waiting.shape[1]:
        yield waiting


def devices() -> Any:
    """Import the library for microphones and speakers; ConfigError with install instructions if missing."""
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise ConfigError(
            "microphone and speakers need sounddevice: pip install 'neural-audio-codec[live]'; "
            "or name an input file and an --output"
        ) from error
    except OSError as error:  # the Linux wheel does not include PortAudio
        raise ConfigError(f"{error}: install it (on Debian: apt install libportaudio2)") from error


def microphone(codec: Codec, size: int) -> Iterator[np.ndarray]:
    """Yield blocks `[C, size]` from the default input device; Ctrl-C ends the signal without an error."""
    library = devices()
    stopped = threading.Event()
    handler = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    try:
        with library.InputStream(codec.sample_rate, size, channels=codec.audio_channels) as source:
            while not stopped.is_set():
                block, late = source.read(size)
                if late:
                    tqdm.write("the computer is too slow: samples were lost; try --frames 2 or --threads 2")
                yield np.ascontiguousarray(block.T)
    except library.PortAudioError as error:
        raise ConfigError(f"microphone: {error}") from error
    finally:
        signal.signal(signal.SIGINT, handler)


def play(codec: Codec, blocks: Iterable[np.ndarray]) -> None:
    """Play blocks `[C, n]` on the default output device; blocks while its buffer is full."""
    library = devices()
    try:
        with library.OutputStream(codec.sample_rate, channels=codec.audio_channels) as sink:
            for block in blocks:
                sink.write(np.ascontiguousarray(block.T))
    except library.PortAudioError as error:
        raise ConfigError(f"speakers: {error}") from error
