"""`codec-decode MODEL TOKENS -o WAVS`: tokens, or a .codec file, to recordings of their original lengths."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from operator import lt
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import MAGIC_PREFIX

from codec.audio.errors import check_wav_name
from codec.audio.pipes import write_sink
from codec.audio.reading import AudioError, read_info
from codec.audio.writing import write_wav_blocks
from codec.commands.compress import decompress_main
from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.model.codec import Codec
from codec.model.inference import decode_part, on_device
from codec.model.saving import load
from codec.system.files import OUTPUT_MARK, FileError, only_writer, remove_leftovers
from codec.system.progress import progress_bar
from codec.system.resuming import require_unused, resume
from codec.system.stdio import is_pipe, spooled
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import TokenError, inside, mirrored

MARK = "decoding.json"  # codec, tokens and stages of the wavs in a folder


def decode_dataset(codec: Codec, tokens: TokenDataset, output: Path, any_codec: bool = False) -> list[Path]:
    """Decode every utterance, on the codec's device, to 16-bit wavs below `output`; returns their paths.

    Existing wavs are kept. Raises ConfigError for tokens of another codec (unless `any_codec`), and for an
    `output` with other contents or to which another process writes; TokenError for a damaged file.
    """
    if not any_codec:
        tokens.require_codec(codec, "--any-codec decodes them")
    elif (codec.sample_rate, codec.hop_length) != (tokens.format.sample_rate, tokens.format.hop_length):
        raise ConfigError("--any-codec: this codec has another sample rate or hop length")
    elif codec.quantizer.latent_dim != (0 if tokens.codebook_sizes else tokens.rows):
        raise ConfigError("--any-codec: this codec has other latents, or codes where these are latents")
    elif any(map(lt, codec.quantizer.codebook_sizes, tokens.codebook_sizes)):
        raise ConfigError("--any-codec: this codec has smaller codebooks")
    elif codec.quantizer.num_quantizers < tokens.num_quantizers:
        raise ConfigError(f"--any-codec: this codec has only {codec.quantizer.num_quantizers} quantizers")
    require_unused(output, MARK)
    about = {"codec_id": codec.codec_id(), "tokens": tokens.format.describe()}
    resume(output, MARK, about | {"num_quantizers": tokens.num_quantizers}, "name another folder")
    (output / OUTPUT_MARK).touch()
    paths = [output / name for name in wav_names(tokens)]
    with only_writer(output):
        for folder in {output, *(path.parent for path in paths)}:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        for i, path in enumerate(progress_bar(paths, "decoding", unit="file")):
            length = tokens.length(i, codec.sample_rate)
            if is_whole(path, length):
                continue
            tokens.verify(i)
            blocks = (piece.numpy() for piece in tokens.audio(codec, i) if piece.shape[1])
            write_wav_blocks(path, blocks, codec.sample_rate, length)
    return paths


def wav_names(tokens: TokenDataset) -> list[str]:
    """Unique relative path of every utterance's wav: its recording's, with `.wav` added to other extensions.

    Paths differ even for a.wav, a.flac and a.flac.wav. TokenError for paths that lead outside the folder.
    """
    paths = [inside(tokens.index.text("path", i)) for i in range(len(tokens))]
    names_in_use = {path for path in paths if path.lower().endswith(".wav")}
    if len(set(paths)) != len(paths):
        raise TokenError(f"{tokens.path}: damaged: two utterances have the same path")
    names = []
    for path in paths:
        name = path
        if path not in names_in_use:
            name += ".wav"
            while name in names_in_use:
                name += ".wav"
        names_in_use.add(name)
        names.append(mirrored(name[:-4], name[-4:]))
    return names


def is_whole(path: Path, length: int) -> bool:
    """Test for an existing wav of `length` samples."""
    try:
        return path.is_file() and read_info(path).frames == length
    except AudioError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; ConfigError and DataError have a message for the user."""
    options = parse("decode", argv)
    with spooled(options.tokens) as options.tokens:
        if options.tokens.is_file():
            return decoded_file(options)
    tokens = TokenDataset(options.tokens, options.num_quantizers)
    if options.output.suffix.lower() == ".wav" or is_pipe(options.output):
        raise ConfigError(f"{options.output}: {options.tokens} becomes a folder of wavs: name a folder")
    codec = on_device(load(options.model, options.trust), options.device)
    paths = decode_dataset(codec, tokens, options.output, options.any_codec)
    print(f"{len(paths)} wavs in {options.output}")
    return 0


def decoded_file(options: argparse.Namespace) -> int:
    """Decode one `.npy` or `.codec` file to one wav."""
    check_wav_name(options.output)
    if options.output.exists() and not is_pipe(options.output):
        raise ConfigError(f"{options.output} exists: name another file, or remove it")
    with options.tokens.open("rb") as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX and options.tokens.suffix != ".npy":
            return decompressed(options)
    codec = on_device(load(options.model, options.trust), options.device)
    codes = read_array(codec, options.tokens, options.num_quantizers)
    frames = codes.shape[1]
    parts = decode_part(codec, lambda a, b: codes[:, a:b], frames, 0, frames)
    blocks = (part.cpu().numpy() for part in parts)
    write_sink(options.output, blocks, codec.sample_rate, frames * codec.hop_length)
    if not is_pipe(options.output):
        print(options.output)
    return 0


def read_array(codec: Codec, path: Path, num_quantizers: int | None) -> torch.Tensor:
    """The first codes, or all latents, `[R, F]` of a `.npy` file; FileError unless they are the codec's."""
    kinds, dtype = ("iu", np.int64) if codec.quantizer.codebook_sizes else ("f", np.float32)
    if num_quantizers is not None:
        codec.quantizer.check_depth(num_quantizers)
    try:
        array = np.load(path, allow_pickle=False)
        if array.ndim != 2 or array.dtype.kind not in kinds:
            wanted = "codes must be integers [K, F]" if dtype is np.int64 else "latents must be floats [D, F]"
            raise ValueError(f"{wanted}, got {array.dtype} {list(array.shape)}")
        codes = torch.from_numpy(array[:num_quantizers].astype(dtype))
        codec.quantizer.check_coded(codes[None])
    except (ValueError, EOFError) as error:
        raise FileError(path, str(error)) from error
    return codes


def decompressed(options: argparse.Namespace) -> int:
    """Decode a `.codec` file, as codec-decompress does."""
    options_by_name = {
        "--num-quantizers": options.num_quantizers,
        "--device": options.device,
        "-o": options.output,
    }
    arguments = [str(part) for item in options_by_name.items() if item[1] is not None for part in item]
    arguments += [part for package in options.trust for part in ("--trust", package)]
    return decompress_main([str(options.model), str(options.tokens), *arguments])
