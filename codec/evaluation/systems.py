"""Systems under evaluation: interface of codecs with one or several bitrates, and this package's codec."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from codec.bitstream.compress import file_bits
from codec.bitstream.entropy_model import EntropyTables
from codec.evaluation.records import Summary
from codec.model.codec import Codec, count_parameters
from codec.quantizers.continuous import Identity


class Reconstruction(NamedTuple):
    """Audio `[1, C, T]` of a number of quantizers (0: no codes), bits of payload and file if known."""

    num_quantizers: int
    estimate: Tensor
    bits: int | None = None
    file_bits: int | None = None


class System(Protocol):
    """Interface of a codec under evaluation; audio is `[1, C, T]` at its `sample_rate` in Hz."""

    name: str
    sample_rate: int
    channels: int
    codebook_sizes: Sequence[int]

    def identity(self) -> dict[str, Any]:
        """Values on which the results depend; results of an equal identity are reused."""
        ...

    def describe(self) -> Summary:
        """Summary with the entries of the system alone."""
        ...

    def bitrate(self, num_quantizers: int) -> float | None:
        """Nominal bitrate of a point in bit/s; None without codes, or if only the spent bits are known."""
        ...

    def code(self, audio: Tensor) -> tuple[Tensor | None, Iterable[Reconstruction]]:
        """Codes `[1, K, F]`, None without any, and the reconstructions, the best last."""
        ...


class NeuralCodec:
    """`Codec` with several numbers of quantizers; `.codec` files use the entropy `tables`, if given.

    With a `beam` above 1 each number is encoded separately, because the best path of fewer codes differs.
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
        """Codec's id, depths, tables' id, beam if above 1, and condition if not the first."""
        tables = self.tables.tables_id if self.tables else None
        beam = {"beam": self.beam} if self.beam > 1 else {}
        chosen = {"condition": self.codec.condition} if self.codec.condition else {}
        return {"codec": self.codec.codec_id(), "depths": self.depths, "tables": tables, **beam, **chosen}

    def describe(self) -> Summary:
        """Frame rate, token rate, number of parameters by part; `quantizer=none` is a ceiling."""
        rate = self.codec.frame_rate
        tokens, parameters = rate * len(self.codebook_sizes), count_parameters(self.codec)
        ceiling = isinstance(self.codec.quantizer, Identity) or None
        return Summary(frame_rate=rate, tokens_per_second=tokens, parameters=parameters, ceiling=ceiling)

    def bitrate(self, num_quantizers: int) -> float | None:
        """Nominal bitrate in bit/s; None without codes."""
        return self.codec.bitrate(num_quantizers) if num_quantizers else None

    def code(self, audio: Tensor) -> tuple[Tensor | None, Iterator[Reconstruction]]:
        """Encode, once if the search is greedy, and decode with each number of quantizers, or latents."""
        if not self.codebook_sizes:
            return None, iter([Reconstruction(0, self.codec(self.on_device(audio))[0])])
        latents, codes = self.encode(audio)
        return codes, self.points(audio.shape[-1], latents, codes)

    def on_device(self, audio: Tensor) -> Tensor:
        """Audio on the codec's device."""
        return audio.to(next(self.codec.parameters()).device)

    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Latents, and codes of all quantizers."""
        latents = self.codec.latents(self.on_device(audio))
        return latents, self.codec.quantizer.encode(latents, beam=self.beam)

    def prefixes(self, latents: Tensor, codes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield each number of quantizers and its codes `[1, k, F]`."""
        for depth in self.depths:
            if self.beam > 1 and depth < codes.shape[1]:
                yield depth, self.codec.quantizer.encode(latents, depth, self.beam)
            else:
                yield depth, codes[:, :depth]

    def points(self, length: int, latents: Tensor, codes: Tensor) -> Iterator[Reconstruction]:
        """Yield the reconstructions from the first quantizers."""
        for depth, prefix in self.prefixes(latents, codes):
            bits = round(self.codec.quantizer.bits_per_frame(depth) * prefix.shape[2])
            yield Reconstruction(
                depth, self.codec.decode(prefix, length), bits, self.file_bits(prefix, length)
            )


def depths_of(num_quantizers: int, depths: Sequence[int] | None = None, most: int = 8) -> list[int]:
    """Numbers of quantizers to decode: the valid `depths` and all; by default up to `most`, evenly spaced."""
    if not num_quantizers:
        return [0]
    if depths is not None:
        return sorted({*(k for k in depths if 1 <= k < num_quantizers), num_quantizers})
    number = min(num_quantizers, most)
    return [round(k) for k in np.linspace(1, num_quantizers, number)] if number > 1 else [1]
