"""What can be evaluated: something that codes audio and gives it back, at one rate or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from codec.bitstream.compression import file_bits
from codec.bitstream.entropy import EntropyTables
from codec.model import Codec, count_parameters


class Point(NamedTuple):
    """One reconstruction `[1, C, T]`: of how many stages (0: no codes), bits of payload and file if known."""

    num_quantizers: int
    estimate: Tensor
    bits: int | None = None
    file_bits: int | None = None


class System(Protocol):
    """A codec of ours, a published or a classical one; audio is `[1, C, T]` at its `sample_rate` in Hz."""

    name: str
    sample_rate: int
    channels: int
    codebook_sizes: Sequence[int]

    def identity(self) -> dict[str, Any]:
        """What its results depend on: those of an equal identity are not computed again."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a summary says of it beside its scores: plain numbers and words."""
        ...

    def bitrate(self, num_quantizers: int) -> float | None:
        """Nominal bit/s of a point; None where only what was spent is known, or where there are no codes."""
        ...

    def code(self, audio: Tensor) -> tuple[Tensor | None, Iterable[Point]]:
        """Codes `[1, K, F]` if it has any, and its reconstructions, the best last."""
        ...


class OwnCodec:
    """A `Codec` at several depths, whose `.codec` files are written with `tables`, or without.

    With a `beam` above 1 every depth is encoded on its own: the best path of few codes is another one.
    """

    def __init__(
        self,
        codec: Codec,
        name: str = "codec",
        depths: Sequence[int] | None = None,
        tables: EntropyTables | None = None,
        beam: int = 1,
    ):
        self.codec, self.name, self.tables, self.beam = codec, name, tables, beam
        self.file_bits = file_bits(codec, tables)
        self.sample_rate, self.channels = codec.sample_rate, codec.audio_channels
        self.codebook_sizes: Sequence[int] = codec.quantizer.codebook_sizes
        self.depths = depths_of(len(self.codebook_sizes), depths)

    def identity(self) -> dict[str, Any]:
        """The codec's id, the depths, the tables' id."""
        tables = self.tables.tables_id if self.tables else None
        beam = {"beam": self.beam} if self.beam > 1 else {}
        return {"codec": self.codec.codec_id(), "depths": self.depths, "tables": tables, **beam}

    def describe(self) -> dict[str, Any]:
        """Rates and sizes."""
        return {
            "frame_rate": self.codec.frame_rate,
            "tokens_per_second": self.codec.frame_rate * len(self.codebook_sizes),
            "parameters": count_parameters(self.codec),
        }

    def bitrate(self, num_quantizers: int) -> float | None:
        """Nominal bit/s; None of a codec without codes."""
        return self.codec.bitrate(num_quantizers) if num_quantizers else None

    def code(self, audio: Tensor) -> tuple[Tensor | None, Iterator[Point]]:
        """Encode, once if the search is greedy, and decode every depth."""
        audio = audio.to(next(self.codec.parameters()).device)
        latents = self.codec.latents(audio)
        codes = self.codec.quantizer.encode(latents, beam=self.beam)
        return codes, self.points(audio, latents, codes)

    def points(self, audio: Tensor, latents: Tensor, codes: Tensor) -> Iterator[Point]:
        """Reconstructions by the first stages; one without quantization where there are no codes."""
        for depth in self.depths:
            if depth:
                kept = codes[:, :depth]
                if self.beam > 1 and depth < codes.shape[1]:
                    kept = self.codec.quantizer.encode(latents, depth, self.beam)
                estimate = self.codec.decode(kept, audio.shape[-1])
                bits = round(self.codec.quantizer.bits_per_frame(depth) * kept.shape[2])
                yield Point(depth, estimate, bits, self.file_bits(kept, audio.shape[-1]))
            else:
                yield Point(0, self.codec(audio)[0])


def depths_of(num_quantizers: int, asked: Sequence[int] | None = None, most: int = 8) -> list[int]:
    """Numbers of stages to decode: those `asked` for that exist, and all; else at most `most`, evenly."""
    if not num_quantizers:
        return [0]
    if asked is not None:
        return sorted({*(k for k in asked if 1 <= k < num_quantizers), num_quantizers})
    number = min(num_quantizers, most)
    return [round(k) for k in np.linspace(1, num_quantizers, number)] if number > 1 else [1]
