"""Lost frames: which they are, and what is decoded instead, against a loop over the frames."""

from itertools import groupby

import pytest
import torch
from tokenized import noise, small_codec

from codec.config import ConfigError
from codec.evaluation.packet_loss import CONCEALMENTS, conceal, lossy_codecs, lost_frames, parse_percentages
from codec.evaluation.systems import NeuralCodec


def clip(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(noise(samples, seed))[None]


@pytest.mark.parametrize("quantizer", ["rvq", "sigma_vae"])
@pytest.mark.parametrize("concealment", CONCEALMENTS)
@torch.inference_mode()
def test_each_lost_frame_is_the_last_received_one_or_zero(quantizer, concealment):
    codec = small_codec(f"quantizer={quantizer}")
    codes = codec.encode(clip(20 * codec.hop_length))
    lost = torch.zeros(20, dtype=torch.bool)
    lost[[0, 1, 5, 9, 10, 11, 19]] = True
    frames, last = [], torch.zeros_like(codec.quantizer.decode(codes[..., :1]))
    for number in range(20):
        received = codec.quantizer.decode(codes[..., number : number + 1])
        instead = last if concealment == "repeat" else torch.zeros_like(received)
        frames.append(instead if lost[number] else received)
        last = last if lost[number] else received
    expected = codec.autoencoder.decode(torch.cat(frames, -1))
    assert torch.allclose(conceal(codec, codes, lost, concealment), expected, atol=1e-6)


def test_losses_have_their_share_and_length_and_follow_from_the_audio():
    clips = [clip(800, seed) for seed in range(100)]
    for burst in (1, 5):
        losses = [lost_frames(audio, 203, 0.1, burst) for audio in clips]
        assert 0.085 < torch.stack(losses).float().mean() < 0.115
        assert len({tuple(lost.tolist()) for lost in losses}) == 100
        assert torch.equal(lost_frames(clips[3].clone(), 203, 0.1, burst), losses[3])
        more = [lost_frames(audio, 203, 0.2, burst) for audio in clips]
        assert all((a <= b).all() for a, b in zip(losses, more, strict=True))
        runs = [[(value, len(list(run))) for value, run in groupby(lost.tolist())] for lost in losses]
        assert all(length % burst == 0 for inner in runs for value, length in inner[1:-1] if value)


@pytest.mark.parametrize("quantizer", ["rvq", "kl", "none"])
@torch.inference_mode()
def test_a_codec_that_loses_nothing_is_the_codec(quantizer):
    own, audio = NeuralCodec(small_codec(f"quantizer={quantizer}"), beam=2), clip(4001)
    expected_codes, expected = own.code(audio)
    expected = list(expected)
    for lossy in lossy_codecs(own, [1e-9]):
        codes, points = lossy.code(audio)
        assert codes is expected_codes is None or torch.equal(codes, expected_codes)
        for point, lossless in zip(points, expected, strict=True):
            assert torch.equal(point.estimate, lossless.estimate) and point.bits == lossless.bits


def test_a_percentage_that_is_repeated_is_measured_once():
    assert parse_percentages("5,1,5.0") == [5, 1]
    with pytest.raises(ConfigError, match="expected percentages between 0 and 100"):
        parse_percentages("5%")
