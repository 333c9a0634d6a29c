"""An autoencoder from elsewhere, of layers that this package has never seen, is slow but never wrong."""

import math

import numpy as np
import pytest
import torch
from composed import config, small_quantizer
from tokenized import noise
from torch import nn

from codec.audio.reading import read_audio
from codec.audio.writing import write_wav
from codec.autoencoders.base import Autoencoder, LayeredAutoencoder
from codec.autoencoders.vocos import Vocos
from codec.bitstream.compress import compress, decompress
from codec.evaluation.complexity import count_macs
from codec.layers.base import Context, context_of
from codec.layers.convnext import ConvNeXtBlock
from codec.layers.streaming import NotStreamable
from codec.model.codec import Codec
from codec.model.inference import decode_part, decoder_reach, encode_batch, encode_long, exact_float32
from codec.model.saving import build_codec

RATE = 16_000


class Attention(nn.Module):
    """Attention over all frames, `[B, D, F]`: nothing bounds its context."""

    def __init__(self, dim: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(1, 2)
        return x + self.attention(y, y, y, need_weights=False)[0].transpose(1, 2)


class Foreign(Autoencoder):
    """Plain torch convolutions that look ahead, and attention."""

    def __init__(self):
        super().__init__()
        self.audio_channels, self.latent_dim, self.hop_length = 1, 16, 40
        self.analysis = nn.Sequential(
            nn.Conv1d(1, 16, 120, 40, 40), nn.Conv1d(16, 16, 9, padding=4), nn.Tanh()
        )
        self.mix = Attention(16)
        self.synthesis = nn.Sequential(
            nn.Conv1d(16, 16, 9, padding=4), nn.ConvTranspose1d(16, 1, 120, 40, 40)
        )

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        return self.mix(self.analysis(audio))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.synthesis(self.mix(latents))


class ForeignLayers(LayeredAutoencoder):
    """Our skeleton around layers that are not ours."""

    def __init__(self):
        super().__init__()
        self.audio_channels, self.latent_dim, self.hop_length = 1, 16, 40
        self.encoder = nn.Sequential(nn.Conv1d(1, 16, 120, 40, 40), nn.Conv1d(16, 16, 9, padding=4))
        self.decoder = nn.Sequential(nn.Conv1d(16, 16, 9, padding=4), nn.ConvTranspose1d(16, 1, 120, 40, 40))


@pytest.fixture(params=[Foreign, ForeignLayers])
def codec(request) -> Codec:
    torch.manual_seed(0)
    codec = Codec(request.param(), small_quantizer("rvq", 16, most_stages=3), RATE).eval()
    with torch.inference_mode():
        codec.quantizer.initialise(codec.latents(torch.from_numpy(noise(40 * 800))[None])[0].T.clone())
    return codec


def test_a_ragged_batch_has_the_codes_of_each_signal_alone(codec):
    signals = [torch.from_numpy(noise(samples, samples)) for samples in (801, 2000, 39, 2000)]
    with exact_float32():
        for codes, signal in zip(encode_batch(codec, signals), signals, strict=True):
            assert torch.equal(codes, codec.encode(signal[None])[0])


def test_a_part_is_cut_from_the_whole(codec, monkeypatch):
    codes = codec.encode(torch.from_numpy(noise(40 * 90, 5))[None])[0]
    whole = codec.decode(codes[None])[0]
    assert decoder_reach(codec) == (None, None)
    for seconds in (10.0, 0.05):
        monkeypatch.setattr("codec.model.inference.PIECE_SECONDS", seconds)
        for start, stop in ((0, 90), (50, 51), (89, 90)):
            part = torch.cat(list(decode_part(codec, lambda a, b: codes[:, a:b], 90, start, stop)), 1)
            torch.testing.assert_close(part, whole[:, 40 * start : 40 * stop], atol=1e-6, rtol=0)


def test_a_long_file_and_a_compressed_one_are_coded_as_a_whole(codec, tmp_path):
    samples = noise(5555, 3)
    write_wav(tmp_path / "a.wav", samples, RATE)
    with exact_float32():
        codes = codec.encode(torch.from_numpy(samples)[None])[0]
        pieces = list(encode_long(codec, iter(torch.from_numpy(samples).split(700, dim=1))))
    assert torch.equal(torch.cat(pieces, 1), codes)
    compress(codec, tmp_path / "a.wav", tmp_path / "a.codec", chunk_seconds=0.1)
    assert decompress(codec, tmp_path / "a.codec", tmp_path / "b.wav") == []
    decoded = codec.decode(codes[None])[0, :, :5555].detach().numpy()
    assert np.abs(read_audio(tmp_path / "b.wav")[0] - decoded).max() < 2 / 32768


def test_streaming_is_refused_by_name(codec):
    with pytest.raises(NotStreamable, match=r"(Foreign|Conv1d) has no streaming form"):
        codec.streaming()


def test_contexts_are_counted_at_each_rate():
    codec = build_codec(config("autoencoder=vocos", "autoencoder.causal=true", "sample_rate=16000")["model"])
    # One window of 320 samples every 80, two blocks of 7 taps at 200 Hz, two at 50 Hz: all before.
    assert codec.autoencoder.encoder_context == Context(240 + 2 * 6 * 80 + 2 * 6 * 320, 0)
    assert codec.autoencoder.decoder_context.before == 2 * 6 + (4 * 6 + 3) / 4
    assert codec.autoencoder.decoder_context.after == 0
    assert context_of(nn.Sequential(ConvNeXtBlock(8), nn.Conv1d(8, 8, 3))) == Context(None, None)


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_the_stated_context_of_the_frame_domain_holds_and_is_tight(causal):
    torch.manual_seed(0)
    network = Vocos(1, 8, channels=(8, 16), causal=causal).eval().double()
    before, after = network.decoder_context
    latents, place = torch.randn(1, 8, 80).double(), 40
    changed = latents.clone()
    changed[..., place] += 1
    reached = (network.decode(latents) != network.decode(changed))[0, 0].nonzero()
    hops = reached // network.hop_length
    assert (int(hops.min()), int(hops.max())) == (place - math.ceil(after), place + math.ceil(before))
    audio = torch.randn(1, 1, 80 * network.hop_length).double()
    changed = audio.clone()
    sample = 40 * network.hop_length
    changed[..., sample] += 1
    reached = (network.encode(audio) != network.encode(changed)).any(1)[0].nonzero()
    before, after = network.encoder_context
    assert int(reached.min()) == 40 - math.ceil(after / network.hop_length)
    assert int(reached.max()) == 40 + before // network.hop_length


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": (100, 320)}, "multiple of its hop.*got window 100, hop 80: try 160"),
        ({"windows": (320, 80)}, "at least two hops"),
        ({"windows": (320,)}, "two windows"),
        ({"strides": (2, 2)}, "2 strides need 3 channels, encoder_blocks and decoder_blocks"),
        ({"channels": (8, 0)}, "channels must be at least 1"),
        ({"hop": 0}, "hop must be at least 1"),
        ({"encoder_blocks": (-1, 2)}, "strides need"),
    ],
)
def test_impossible_frame_domains_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        Vocos(**options)


def test_the_fourier_transforms_are_counted():
    codec = build_codec(config("autoencoder=vocos", "quantizer=rvq_12", "sample_rate=16000")["model"]).eval()
    network = codec.autoencoder
    linear = sum(
        module.weight.numel() * rate
        for part in network.encoder
        for module in part.modules()
        if isinstance(module, nn.Linear)
        for rate in [50 if max(module.weight.shape) > 1000 or 384 in module.weight.shape else 200]
    )
    depthwise = 2 * 7 * 224 * 200 + 2 * 7 * 384 * 50
    transform = 200 * 2.5 * 320 * np.log2(320) / 2
    assert count_macs(codec)["encoder"] == pytest.approx(linear + depthwise + transform, rel=0.01)
