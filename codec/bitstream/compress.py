"""Compression of recordings to `.codec` files and back, of any length in constant memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.audio.levels import within_range
from codec.audio.pipes import read_source, write_sink
from codec.audio.reading import AudioError
from codec.bitstream.entropy_model import EntropyTables, TablesError
from codec.bitstream.range_coder import CorruptError
from codec.bitstream.writer import (
    BitstreamError,
    BitstreamReader,
    BitstreamWriter,
    Chunk,
    Header,
    check_target,
    new_file,
)
from codec.config import ConfigError
from codec.model.codec import Codec
from codec.model.inference import encode_long, exact_float32, stream_or_whole
from codec.system.stdio import is_pipe

SILENT_FRAMES = 64  # frames per block of silence in place of lost codes


class Compressed(NamedTuple):
    """Statistics of a compressed file: duration, bytes in total, and bytes of each stage's codes."""

    seconds: float
    bytes: int
    stage_bytes: tuple[int, ...]
    nominal: float

    @property
    def bitrate(self) -> float:
        """Bitrate of the whole file in bit/s; `nominal` is the bitrate of codes of fixed width."""
        return 8 * self.bytes / self.seconds


def compress(
    codec: Codec,
    source: str | Path,
    target: str | Path,
    tables: EntropyTables | None = None,
    num_quantizers: int | None = None,
    chunk_seconds: float = 10.0,
    overwrite: bool = False,
    beam: int = 1,
) -> Compressed:
    """Compress a recording, resampled and mixed for the codec, to a `.codec` file.

    Codes are found by a beam search with `beam` paths. The path `-` is standard input or output. AudioError
    for an unreadable recording, TablesError for tables of another codec, FileExistsError for an existing
    target, ConfigError for an invalid number of stages or seconds.
    """
    header = make_header(codec, tables, num_quantizers, chunk_seconds)
    samples = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal samples
        read = read_source(source, codec.sample_rate, codec.audio_channels)
        for block in within_range(read, source):
            samples += block.shape[1]
            yield torch.from_numpy(block)
        if samples == 0:
            raise AudioError(source, f"too short: no whole sample at {codec.sample_rate} Hz")

    with new_file(target, overwrite) as file:
        writer = BitstreamWriter(file, header, tables)
        for codes in encode_long(codec, blocks(), num_quantizers, beam):
            writer.write(codes.numpy())
        writer.finish(samples)
    nominal = codec.bitrate(num_quantizers)
    return Compressed(samples / codec.sample_rate, writer.bytes, tuple(writer.stage_bytes), nominal)


def make_header(
    codec: Codec, tables: EntropyTables | None, num_quantizers: int | None, chunk_seconds: float
) -> Header:
    """Build the header of a codec's files; ConfigError for codes that the format cannot represent."""
    sizes = codec.quantizer.codebook_sizes[: codec.quantizer.check_depth(num_quantizers)]
    codec.quantizer.require_codes("write")
    frames = round(chunk_seconds * codec.frame_rate) if np.isfinite(chunk_seconds) else 0
    if not 1 <= frames <= 2**16:
        shortest, longest = 1 / codec.frame_rate, 2**16 / codec.frame_rate
        raise ConfigError(f"chunks must be {shortest:.3g} to {longest:.3g} seconds long, got {chunk_seconds}")
    if tables is not None:
        require_codec(tables, codec)
    header = Header(
        codec_id=codec.codec_id(),
        tables_id=tables.tables_id if tables else "",
        sample_rate=codec.sample_rate,
        channels=codec.audio_channels,
        hop_length=codec.hop_length,
        chunk_frames=frames,
        codebook_sizes=tuple(sizes),
    )
    try:
        header.check()
    except CorruptError as error:
        raise ConfigError(f".codec files cannot hold this codec's codes: {error}") from error
    return header


def file_bits(codec: Codec, tables: EntropyTables | None) -> Callable[[Tensor, int], int | None]:
    """Function of codes `[1, k, F]` and a number of samples that returns the size of their file in bits.

    The size is None for codes that the format cannot represent.
    """

    @cache
    def header(stages: int) -> Header | None:
        try:
            return make_header(codec, tables, stages, 10.0)
        except ConfigError:
            return None

    def bits(codes: Tensor, samples: int) -> int | None:
        stream_header = header(codes.shape[1])
        if stream_header is None:
            return None
        file = io.BytesIO()
        writer = BitstreamWriter(file, stream_header, tables)
        writer.write(codes[0].cpu().numpy())
        writer.finish(samples)
        return 8 * len(file.getvalue())

    return bits


def require_codec(tables: EntropyTables, codec: Codec) -> None:
    """Raise TablesError unless the tables were fitted to this codec, or to its first stages."""
    sizes = codec.quantizer.codebook_sizes[: len(tables.codebook_sizes)]
    if (tables.codec_id, tables.codebook_sizes) != (codec.codec_id(), sizes):
        raise TablesError(
            f"the entropy tables are of codec {tables.codec_id[:16]}..., the model is codec "
            f"{codec.codec_id()[:16]}...: fit them again with codec-fit-entropy"
        )


def decompress(
    codec: Codec,
    source: str | Path,
    target: str | Path,
    tables: EntropyTables | None = None,
    num_quantizers: int | None = None,
    salvage: bool = False,
    overwrite: bool = False,
) -> list[Chunk]:
    """Decompress a `.codec` file to a wav; with `salvage`, lost chunks become silence and are returned.

    `target` may be `-`, standard output. BitstreamError for a damaged file or one of another codec,
    TablesError for other tables than the file was written with, FileExistsError for an existing target.
    """
    check_target(target, overwrite)
    lost: list[Chunk] = []
    with BitstreamReader(source, salvage) as reader:
        require_same(reader, codec)
        chunks = reader.chunks(tables, num_quantizers)
        audio = decode_chunks(codec, chunks, lost)
        samples = reader.end.samples if reader.end else reader.most_frames * reader.header.hop_length
        samples = samples * codec.sample_rate // reader.header.sample_rate
        announced_samples = (
            samples if reader.end or not is_pipe(target) else 0
        )  # otherwise only an upper bound
        write_sink(target, cut(audio, samples), codec.sample_rate, announced_samples)
    return lost


def require_same(reader: BitstreamReader, codec: Codec) -> None:
    """Raise BitstreamError unless this codec wrote the file, or one of the same codes (`Halves`)."""
    header, quantizer, codes_of = reader.header, codec.quantizer, codec.autoencoder.codes_of
    if header.codec_id not in (codec.codec_id(), codes_of):
        reason = (
            f"written by codec {header.codec_id[:16]}..., the model is codec {codec.codec_id()[:16]}...: "
            "take the model that wrote it. A new decoder for a codec's codes reads that codec's files, "
            "not the reverse"
        )
        raise BitstreamError(reader.path, reason)
    settings = (codec.audio_channels, codec.frame_rate, quantizer.codebook_sizes[: header.depth])
    frame_rate = header.sample_rate / header.hop_length
    same_rate = header.codec_id == codes_of or header.sample_rate == codec.sample_rate
    if (header.channels, frame_rate, header.codebook_sizes) != settings or not same_rate:
        raise BitstreamError(reader.path, "its header contradicts the codec that it names")


def decode_chunks(codec: Codec, chunks: Iterable[Chunk], lost: list[Chunk]) -> Iterator[np.ndarray]:
    """Decode chunks in order to audio `[C, n]`; lost ones are appended to `lost` and become silence."""
    stream, device = stream_or_whole(codec, "decoder"), next(codec.parameters()).device
    no_codes, running = np.zeros((1, 0), np.int64), False

    def decode(codes: np.ndarray, final: bool = False) -> np.ndarray:
        with exact_float32():  # not around `yield`: it would also apply to the caller's code
            return stream.decode(torch.from_numpy(codes)[None].to(device), final)[0].cpu().numpy()

    for chunk in chunks:
        if chunk.codes is not None:
            yield decode(chunk.codes)
            running = True
            continue
        lost.append(chunk)
        if running:  # the next chunk does not continue this stream
            yield decode(no_codes, final=True)
            running = False
        for start in range(0, chunk.frames, SILENT_FRAMES):
            frames = min(SILENT_FRAMES, chunk.frames - start)
            yield np.zeros((codec.audio_channels, frames * codec.hop_length), np.float32)
    if running:
        yield decode(no_codes, final=True)


def cut(blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Cut blocks `[C, n]` to `length` samples in total."""
    for block in blocks:
        yield block[:, :length]
        length -= min(length, block.shape[1])
