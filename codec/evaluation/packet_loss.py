"""Packet loss: codecs whose frames are lost, singly or in bursts, and the concealment of lost frames."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec.config import ConfigError
from codec.evaluation.records import Summary
from codec.evaluation.systems import NeuralCodec, Reconstruction
from codec.model.codec import Codec

SEED = 0
BURST_SECONDS = 0.1
CONCEALMENTS = ("repeat", "zero")


class LossyCodec:
    """`NeuralCodec` of which `percent` of the frames are lost, singly or in bursts, and concealed.

    `repeat` decodes the codes of the last received frame again. `zero` decodes latents of zero: the decoder
    fills the gap from the frames around it. Frames of a codec without codes are its continuous latents.
    """

    def __init__(self, own: NeuralCodec, percent: float, bursts: bool, concealment: str):
        self.own, self.percent, self.concealment = own, percent, concealment
        self.burst = max(2, round(BURST_SECONDS * own.codec.frame_rate)) if bursts else 1
        self.name = f"{own.name}, {percent:g}% {'bursts' if bursts else 'single'}, {concealment}"
        self.sample_rate, self.channels = own.sample_rate, own.channels
        self.codebook_sizes: Sequence[int] = own.codebook_sizes

    def identity(self) -> dict[str, Any]:
        """The codec's identity, and the parameters of the loss."""
        loss = {"percent": self.percent, "burst": self.burst, "concealment": self.concealment, "seed": SEED}
        return self.own.identity() | {"packet_loss": loss}

    def describe(self) -> Summary:
        """The codec's entries, as a curve of its own that is paired with models only."""
        return replace(self.own.describe(), family=self.name, ceiling=None)

    def bitrate(self, num_quantizers: int) -> float | None:
        """Nominal bitrate in bit/s of all frames, the lost ones included."""
        return self.own.bitrate(num_quantizers)

    def code(self, audio: Tensor) -> tuple[Tensor | None, Iterator[Reconstruction]]:
        """Encode, and decode the received frames with each number of quantizers."""
        codec = self.own.codec
        latents, frames = self.own.encode(audio)
        lost = lost_frames(audio, frames.shape[2], self.percent / 100, self.burst).to(frames.device)
        prefixes = self.own.prefixes(latents, frames) if self.codebook_sizes else [(0, frames)]
        points = (
            Reconstruction(
                depth,
                conceal(codec, prefix, lost, self.concealment)[..., : audio.shape[-1]],
                round(codec.quantizer.bits_per_frame(depth) * prefix.shape[2]) if depth else None,
            )
            for depth, prefix in prefixes
        )
        return frames if self.codebook_sizes else None, points


def lossy_codecs(own: NeuralCodec, percentages: Sequence[float]) -> list[LossyCodec]:
    """All patterns and concealments of a codec at each percentage."""
    return [
        LossyCodec(own, percent, bursts, concealment)
        for percent in percentages
        for bursts in (False, True)
        for concealment in CONCEALMENTS
    ]


def parse_percentages(text: str) -> list[float]:
    """Parse percentages, as `1,5,10`; ConfigError unless they are between 0 and 100."""
    try:
        percentages = [float(word) for word in text.split(",") if word]
    except ValueError:
        percentages = [0.0]
    if not all(0 < percent < 100 for percent in percentages):
        raise ConfigError(f"--packet-loss {text}: expected percentages between 0 and 100, as 1,5,10")
    return list(dict.fromkeys(percentages))


def lost_frames(audio: Tensor, frames: int, share: float, burst: int) -> Tensor:
    """Lost frames, bool `[F]`: packets of `burst` frames are lost independently with probability `share`.

    They follow from the samples of the audio alone, so that all codecs of one frame rate lose the same ones,
    and a higher share loses more beside them.
    """
    content = (audio * 2**15).round().to(torch.int32).cpu().numpy().tobytes()
    random = np.random.default_rng([SEED, zlib.crc32(content)])
    places = (np.arange(frames) + random.integers(burst)) // burst
    return torch.from_numpy(random.random(frames // burst + 2)[places] < share)


def conceal(codec: Codec, codes: Tensor, lost: Tensor, concealment: str) -> Tensor:
    """Audio `[B, C, F * hop_length]` of codes `[B, k, F]` of which the frames `lost` `[F]` are concealed.

    Codes are the latents `[B, D, F]` of a codec without codes. Without a frame to repeat at the beginning,
    latents are zero.
    """
    numbers = torch.arange(len(lost), device=lost.device).masked_fill(lost, -1)
    sources = numbers.cummax(0).values if concealment == "repeat" else numbers
    latents = codec.quantizer.decode(codes[..., sources.clamp(min=0)])
    decoded = (sources >= 0).repeat_interleave(latents.shape[-1] // len(lost))
    return codec.autoencoder.decode((latents * decoded).to(codec.dtype))
