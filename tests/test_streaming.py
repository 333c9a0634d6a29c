"""A stream is the whole: same codes, same audio, whatever the pieces."""

import itertools

import pytest
import torch
from composed import config, options, small_autoencoder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from codec.layers.base import stream_of
from codec.layers.conv import Conv1d
from codec.layers.streaming import NotStreamable
from codec.model.codec import Codec
from codec.model.saving import build_codec
from codec.quantizers import Identity

CENTERED = "autoencoder.layers.causal=false"
RECURRENT = "autoencoder.bottleneck={_target_:codec.layers.LSTM,_partial_:true,num_layers:2}"
WAIT = ("wavtokenizer", "wavtokenizer_40hz")  # their attention is to all frames
STREAMED = [name for name in options("autoencoder") if name not in WAIT]
MODELS = {name: [f"autoencoder={name}"] for name in STREAMED} | {
    "centered": ["autoencoder=tiny", CENTERED],
    "odd strides": ["autoencoder=tiny", CENTERED, "autoencoder.strides=[3,2]"],
    "centered, recurrent": ["autoencoder=tiny", CENTERED, RECURRENT],
    "centered, several rates": ["autoencoder=tiny", CENTERED, "quantizer=multiscale_rvq"],
    "stereo": ["autoencoder=tiny", "channels=2"],
    "frames, causal": ["autoencoder=vocos", "autoencoder.causal=true"],
    "frames, one ahead": ["autoencoder=vocos", "autoencoder.causal=true", "autoencoder.lookahead=1"],
    "frames, three rates": [
        *("autoencoder=vocos", "autoencoder.strides=[2,3]", "autoencoder.channels=[8,8,8]"),
        *("autoencoder.encoder_blocks=[1,0,1]", "autoencoder.decoder_blocks=[1,2,0]", "channels=2"),
    ],
    "no codes between": ["autoencoder=tiny", "quantizer=fsq"],
}


@torch.no_grad()
def model(name: str) -> Codec:
    """A small codec whose latents, and with them its codes, differ from frame to frame."""
    torch.manual_seed(0)
    # Few codes for many latents: stages that are left with nothing but rounding errors would code those.
    few = [] if "quantizer=fsq" in MODELS[name] else ["quantizer.codebook.codebook_size=16"]
    small = small_autoencoder(MODELS[name][0].removeprefix("autoencoder="), width=2)
    wide = ["autoencoder.decoder_channels=32"] if "autoencoder.decoder_channels=2" in small else []
    codec = build_codec(config(*small, *wide, *MODELS[name], *few)["model"]).eval()
    latents = codec.latents(noise(codec, 200 * codec.hop_length, batch=1))
    convolutions = [layer for layer in codec.autoencoder.encoder if isinstance(layer, Conv1d)]
    for last in convolutions[-1:]:
        last.conv.bias -= latents.mean((0, 2))
        for key, parameter in last.named_parameters():
            parameter *= 1 if key.endswith("original1") else 1 / latents.std(2).mean()
    pool = codec.latents(noise(codec, 400 * codec.hop_length, batch=1))[0].T
    codec.quantizer.initialise(pool.clone())
    return codec


def noise(codec: Codec, samples: int, batch: int = 2) -> torch.Tensor:
    return 0.1 * torch.randn(batch, codec.audio_channels, samples)


def cut(signal: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """A signal in pieces of these lengths, over and over."""
    ends = [0]
    for length in itertools.cycle(lengths):
        if ends[-1] >= signal.shape[-1]:
            break
        ends.append(ends[-1] + length)
    return [signal[..., a:b] for a, b in itertools.pairwise(ends)]


def streamed(push, pieces: list[torch.Tensor]) -> torch.Tensor:
    last = len(pieces) - 1
    return torch.cat([push(piece, final=number == last) for number, piece in enumerate(pieces)], 2)


ONE_OF_A_KIND = ("encodec", "mimi", "vocos", "centered")


@pytest.mark.parametrize(
    "name",
    [n if n in ONE_OF_A_KIND else pytest.param(n, marks=pytest.mark.exhaustive) for n in MODELS],
)
@torch.no_grad()
def test_a_stream_in_bfloat16_is_as_exact_as_the_whole(name):
    network = model(name)
    audio = noise(network, 40 * network.autoencoder.hop_length)
    codec = Codec(network.autoencoder, Identity(network.autoencoder.latent_dim), 16000)
    exact = codec.latents(audio)
    decoded = codec.decode(exact)
    codec.to(torch.bfloat16)
    lengths = [3 * codec.hop_length, codec.hop_length]
    with codec.streaming(2) as stream:
        results = [
            (exact, codec.encode(audio), streamed(stream.encode, cut(audio, lengths))),
            (decoded, codec.decode(exact), streamed(stream.decode, cut(exact, [3, 1]))),
        ]
    for expected, whole, pieces in results:
        error, own = (float((result.float() - expected).norm()) for result in (whole, pieces))
        assert pieces.dtype == whole.dtype and own < 1.3 * error < 0.1 * float(expected.norm())


@pytest.mark.parametrize("name", WAIT)
def test_attention_to_all_frames_has_no_stream(name):
    codec = build_codec(config(f"autoencoder={name}", *small_autoencoder(name, width=2))["model"])
    stream = codec.streaming().require("encoder")  # before the transformer, which is the decoder's
    with pytest.raises(NotStreamable, match=r"no stream \(PositionNet has no streaming form"):
        stream.decode(codec.encode(noise(codec, 1000, batch=1)))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_pieces_of_every_size_give_the_codes_and_audio_of_the_whole(name):
    codec = model(name)
    audio = noise(codec, 9 * codec.hop_length + 5)
    codes = codec.encode(audio)
    assert len(codes[:, 0].unique()) > 2
    decoded = codec.decode(codes)
    for lengths in ([codec.hop_length], [1, 0, 3 * codec.hop_length - 1, 17], [audio.shape[2]]):
        with codec.streaming(batch=2) as stream:
            assert torch.equal(streamed(stream.encode, cut(audio, lengths)), codes)
            frames = [-(-length // codec.hop_length) for length in lengths]
            torch.testing.assert_close(
                streamed(stream.decode, cut(codes, frames)), decoded, atol=1e-5, rtol=0
            )


CENTERED_MODEL = model("centered, recurrent")


def check_but_for_ties(codec: Codec, audio: torch.Tensor, codes: torch.Tensor, whole: torch.Tensor) -> None:
    """Codes are those of the whole, but where two vectors are equally far: rounding decides there."""
    assert codes.shape == whole.shape
    latents = codec.latents(audio)
    for frame in (codes != whole).any(1)[0].nonzero()[:, 0]:
        first = int((codes != whole)[0, :, frame].nonzero()[0])
        errors = [
            (codec.quantizer.decode(found[:, : first + 1, frame : frame + 1])[0, :, 0] - latents[0, :, frame])
            .square()
            .sum()
            for found in (codes, whole)
        ]
        torch.testing.assert_close(*errors, rtol=1e-4, atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 700), min_size=1, max_size=6).filter(any),
    st.integers(1, 3000),
    st.integers(0, 99),
)
@torch.no_grad()
def test_no_way_of_cutting_makes_a_difference(lengths, samples, seed):
    torch.manual_seed(seed)
    audio = noise(CENTERED_MODEL, samples, batch=1)
    codes = CENTERED_MODEL.encode(audio)
    with CENTERED_MODEL.streaming() as stream:
        check_but_for_ties(CENTERED_MODEL, audio, streamed(stream.encode, cut(audio, lengths)), codes)
        decoded = streamed(stream.decode, cut(codes, lengths))
    torch.testing.assert_close(decoded, CENTERED_MODEL.decode(codes), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["soundstream", "encodec", "dac_16khz", "centered", "odd strides"])
@torch.no_grad()
def test_the_latency_is_how_long_a_sample_takes(name):
    codec = model(name)
    hop, frames = codec.hop_length, 60
    with codec.streaming() as stream:
        came, delays = 0, []
        for number in range(1, frames + 1):
            came += stream.decode(stream.encode(noise(codec, hop, batch=1))).shape[2]
            delays.append(number * hop - came)
        # Of a frame its first sample waits longest: for the frame's end and for what is looked ahead at.
        assert delays[-1] + hop == stream.latency
        assert stream.latency_ms == pytest.approx(1000 * stream.latency / codec.sample_rate)
    if MODELS[name] == [f"autoencoder={name}"] and name != "dac_16khz":
        assert max(delays) == 0 and stream.latency == hop


@torch.no_grad()
def test_a_stream_goes_on_from_its_saved_state():
    codec = model("centered, recurrent")
    audio = noise(codec, 12000)  # a part in which the LSTM runs frame by frame, and one in which it does not
    codes = codec.encode(audio)
    first, second = codec.streaming(2), codec.streaming(2)
    found = [first.encode(audio[..., :2345])]
    heard = [first.decode(found[0])]
    second.load_state(load(save(first.state())))
    first.encode(audio)  # what the first does from here on is nothing to the second
    found.append(second.encode(audio[..., 2345:], final=True))
    heard.append(second.decode(found[1], final=True))
    assert torch.equal(torch.cat(found, 2), codes)
    torch.testing.assert_close(torch.cat(heard, 2), codec.decode(codes), atol=1e-5, rtol=0)


def test_a_state_of_another_model_or_batch_is_refused():
    stream = model("centered").streaming()
    for other in (model("centered").streaming(2), model("encodec").streaming(), model("stereo").streaming()):
        with pytest.raises(ValueError, match="another model or batch"):
            stream.load_state(other.state())


@torch.no_grad()
def test_after_the_end_or_a_reset_a_new_signal_begins():
    codec = model("encodec")
    audio = noise(codec, 3000, batch=1)
    with codec.streaming() as stream:
        codes = stream.encode(audio, final=True)
        assert torch.equal(stream.encode(audio, final=True), codes)
        heard = stream.decode(codes, final=True)
        stream.encode(audio)
        stream.decode(codes)
        stream.reset()
        assert torch.equal(stream.encode(audio, final=True), codes)
        assert torch.equal(stream.decode(codes, final=True), heard)


@torch.no_grad()
def test_fewer_stages_and_a_wider_search_work_as_offline():
    codec = model("tiny")
    audio = noise(codec, 2000)
    with codec.streaming(2) as stream:
        assert torch.equal(stream.encode(audio, True, num_quantizers=3), codec.encode(audio, 3))
        assert torch.equal(stream.encode(audio, True, beam=4), codec.encode(audio, beam=4))
        codes = codec.encode(audio, 2)
        torch.testing.assert_close(stream.decode(codes, True), codec.decode(codes), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("audio", "codes"),
    [
        (torch.zeros(1, 1, 10), torch.zeros(1, 4, 2, dtype=torch.int64)),
        (torch.zeros(2, 2, 10), torch.full((2, 4, 2), 10**6)),
        (torch.zeros(2, 1, 10, dtype=torch.int16), torch.zeros(2, 4, 2)),
    ],
)
def test_what_does_not_fit_the_stream_is_refused(audio, codes):
    stream = model("tiny").streaming(2)
    with pytest.raises(ValueError, match="audio must be"):
        stream.encode(audio)
    with pytest.raises(ValueError, match="codes must be"):
        stream.decode(codes)


def test_impossible_streams_say_why():
    with pytest.raises(ValueError, match="batch must be at least 1"):
        model("tiny").streaming(0)
    with pytest.raises(NotStreamable, match="PReLU has no streaming form"):
        stream_of(nn.Sequential(nn.PReLU()))


@torch.no_grad()
def test_a_piece_that_is_refused_has_not_been_heard():
    codec = model("tiny")
    audio = noise(codec, 20 * codec.hop_length, batch=1)
    with codec.streaming() as stream:
        found = [stream.encode(audio[..., :1000])]
        with pytest.raises(ValueError, match="beam"):
            stream.encode(audio[..., 1000:], beam=0)
        with pytest.raises(ValueError, match="NaN"):
            stream.encode(audio[..., 1000:] * torch.nan)
        found.append(stream.encode(audio[..., 1000:], final=True))
    assert torch.equal(torch.cat(found, 2), codec.encode(audio))
