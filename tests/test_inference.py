"""Batches, pieces and parts give what each whole signal gives alone, for every network there is."""

import pytest
import torch
from composed import causality, config, options
from tokenized import noise, require_same_codes, small_codec
from torch.nn import functional

from codec.layers.base import looks_ahead
from codec.layers.conv import Conv1d
from codec.model.inference import decode_part, decoder_reach, encode_batch, encode_long, exact_float32

NETWORKS = [
    (name, causal)
    for name in options("autoencoder")
    for causal in (True, False)
    if name in ("tiny", "soundstream", "encodec", "dac_44khz", "vocos") or not causal
]


def signals(codec, lengths=(7.3, 1, 12.9, 5, 12.9)):
    return [torch.from_numpy(noise(round(n * codec.hop_length), i)) for i, n in enumerate(lengths)]


def network(name, causal, *more):
    waits = not causal and "lookahead" in config(f"autoencoder={name}")["autoencoder"]
    overrides = ["autoencoder.lookahead=0"] if waits else []
    return small_codec(f"autoencoder={name}", causality(name, causal), *overrides, *more)


def patched():
    """A codec whose frames of codes are two latents each."""
    small = ["quantizer.quantizer.num_groups=2", "quantizer.quantizer.quantizer.codebook.codebook_size=64"]
    codec = small_codec("quantizer=blockwise_vq", *small)
    assert codec.hop_length == 2 * codec.autoencoder.hop_length
    return codec


@pytest.mark.parametrize(("name", "causal"), NETWORKS)
def test_a_batch_of_any_lengths_has_the_codes_of_each_signal_alone(name, causal):
    codec = network(name, causal)
    audio = signals(codec)
    with exact_float32():
        together = encode_batch(codec, audio)
    assert [one.shape[1] for one in together] == [8, 1, 13, 5, 13]
    for codes, one in zip(together, audio, strict=True):
        require_same_codes(codec, codes, one)


@pytest.mark.parametrize("name", ["tiny", "encodec", "dac_44khz"])
def test_zeros_at_the_end_alone_would_change_codes_of_centered_networks(name):
    codec = network(name, False)
    short, long = signals(codec, (20, 40))
    with exact_float32():
        padded = functional.pad(short, (0, long.shape[1] - short.shape[1]))
        naive = codec.encode(torch.stack([padded, long]))[0, :, :20]
    with pytest.raises(AssertionError):
        require_same_codes(codec, naive, short)


def test_only_convolutions_that_look_ahead_are_masked():
    assert not any(looks_ahead(m) for m in network("tiny", True).modules() if isinstance(m, Conv1d))
    centered = [m for m in network("tiny", False).autoencoder.encoder.modules() if isinstance(m, Conv1d)]
    assert [looks_ahead(m) for m in centered] == [m.conv.kernel_size[0] > 1 for m in centered]


def test_masks_end_with_a_batch_and_with_a_failure():
    codec = network("tiny", False)
    audio = signals(codec)
    encode_batch(codec, audio)
    with pytest.raises(ValueError, match="num_quantizers"):
        encode_batch(codec, audio, num_quantizers=99)
    with pytest.raises(RuntimeError, match="channels"):  # within the encoder
        codec.autoencoder.encode_ragged(torch.zeros(2, 3, 640), torch.tensor([640, 320]))
    fresh = network("tiny", False)
    assert torch.equal(codec.latents(audio[0][None]), fresh.latents(audio[0][None]))


@pytest.mark.parametrize("name", ["patches", "encodec"])
@pytest.mark.parametrize("sizes", [[1], [1000, 1, 4000], [100_000]])
def test_a_signal_in_blocks_has_the_codes_of_the_whole(name, sizes):
    codec = patched() if name == "patches" else network(name, False)
    audio = torch.from_numpy(noise(3001, 3))
    blocks, start = [], 0
    while start < audio.shape[1]:
        blocks.append(audio[:, start : start + sizes[len(blocks) % len(sizes)]])
        start += blocks[-1].shape[1]
    with exact_float32():
        pieces = list(encode_long(codec, iter(blocks), num_quantizers=None, beam=1))
        if name == "encodec":
            require_same_codes(codec, torch.cat(pieces, 1), audio)
        else:
            assert torch.equal(torch.cat(pieces, 1), codec.encode(audio[None])[0])


def test_beam_and_stages_reach_the_batch_and_the_stream():
    codec = small_codec("quantizer.num_quantizers=4")
    audio = torch.from_numpy(noise(4000))
    with exact_float32():
        expected = codec.encode(audio[None], 3, beam=4)[0]
        assert not torch.equal(expected, codec.encode(audio[None], 3)[0])
        assert torch.equal(encode_batch(codec, [audio], 3, 4)[0], expected)
        assert torch.equal(torch.cat(list(encode_long(codec, iter([audio]), 3, 4)), 1), expected)


@pytest.mark.parametrize(
    ("name", "causal"), [("tiny", True), ("tiny", False), ("encodec", True), ("dac_44khz", False)]
)
@pytest.mark.parametrize("piece_seconds", [10.0, 0.02])
def test_a_part_sounds_as_in_the_whole(name, causal, piece_seconds, monkeypatch):
    monkeypatch.setattr("codec.model.inference.PIECE_SECONDS", piece_seconds)
    codec = network(name, causal)
    codes = codec.encode(torch.from_numpy(noise(60 * codec.hop_length, 5))[None])
    whole = codec.decode(codes)[0]
    asked = []

    def read(a, b):
        asked.append((a, b))
        return codes[0][:, a:b]

    for start, stop in [(0, 60), (0, 1), (59, 60), (30, 33)]:
        with exact_float32():
            part = torch.cat(list(decode_part(codec, read, 60, start, stop)), 1)
        expected = whole[:, start * codec.hop_length : stop * codec.hop_length]
        assert part.shape == expected.shape and (part - expected).abs().max() < 1e-5
    before, after = decoder_reach(codec)
    first = 0 if before is None else max(0, 30 - before)
    assert asked[-1][1] == min(60, 33 + after) and first in [a for a, _ in asked]
    assert (before is None) == (name == "encodec")
