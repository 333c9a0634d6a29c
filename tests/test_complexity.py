"""What a codec costs, against arithmetic on its layers; what its tokens stand, on codecs made to stand it."""

import pytest
import torch
from composed import config
from torch import Tensor, nn

from codec.config import ConfigError
from codec.evaluation.analysis import stage_energy, token_stability
from codec.evaluation.complexity import cost, count_macs, reach
from codec.model.codec import Codec
from codec.model.saving import build_codec

RATE = 16_000
RECURRENT = "autoencoder.bottleneck={_target_:codec.layers.LSTM,_partial_:true,num_layers:2}"


def codec(*overrides: str) -> Codec:
    torch.manual_seed(0)
    return build_codec(config("experiment=tiny", "autoencoder.latent_dim=8", *overrides)["model"]).eval()


def conv_macs(network: nn.Module, work) -> int:
    """Multiplications of convolutions and recurrent layers, from the shapes that pass through them."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv1d):
            total += output.numel() * module.in_channels // module.groups * module.kernel_size[0]
        elif isinstance(module, nn.ConvTranspose1d):
            total += inputs[0].numel() * module.out_channels // module.groups * module.kernel_size[0]
        elif isinstance(module, nn.LSTM):
            frames = inputs[0].shape[0] * inputs[0].shape[1]
            width = module.hidden_size
            total += frames * module.num_layers * 4 * width * (width + width)

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.inference_mode():
        work()
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("overrides", [[], [RECURRENT], ["autoencoder.layers.weight_norm=true"]])
def test_multiplications_are_those_of_the_layers(overrides):
    model = codec(*overrides)
    found = count_macs(model)
    second = torch.zeros(1, 1, RATE)
    frames = torch.zeros(1, 8, RATE // model.hop_length)
    assert found["encoder"] == conv_macs(model.autoencoder, lambda: model.autoencoder.encode(second))
    assert found["decoder"] == conv_macs(model.autoencoder, lambda: model.autoencoder.decode(frames))


def test_attention_multiplies_frames_with_frames():
    attention = "{_target_:codec.layers.Transformer,_partial_:true,num_layers:3,num_heads:2,window:400}"
    model, plain = codec(f"autoencoder.latent_layers={attention}"), codec()
    frames = RATE // model.hop_length
    one_layer = frames * 8 * (3 * 8 + 8 + 4 * 8 + 4 * 8) + 2 * frames * frames * 8
    for side in ("encoder", "decoder"):
        assert count_macs(model)[side] - count_macs(plain)[side] == 3 * one_layer


def test_a_search_multiplies_every_latent_with_every_code():
    model = codec("quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=64")
    assert count_macs(model)["quantizer"] == 3 * 64 * 8 * RATE // model.hop_length


@pytest.mark.parametrize(
    ("name", "rate", "parameters", "megaflops", "latency"),
    [
        ("vocos", 16_000, 6.5e6, 1500, None),
        ("vocos_small", 16_000, 1.4e6, 250, 20),
        ("vocos_large", 16_000, 24e6, 4200, None),
        ("vocos_lrac", 24_000, 3.2e6, 700, 30),  # the limits of LRAC 2025's first track: MFLOP/s, ms
    ],
)
def test_frame_domain_presets_keep_their_limits(name, rate, parameters, megaflops, latency):
    options = [f"autoencoder={name}", "quantizer=rvq_12", f"sample_rate={rate}"]
    model = build_codec(config(*options)["model"]).eval()
    assert 0.7 * parameters < sum(p.numel() for p in model.autoencoder.parameters()) <= parameters
    assert 2 * sum(count_macs(model).values()) <= megaflops * 1e6
    assert model.frame_rate == 50 and model.bitrate() == 6000
    if latency:
        assert reach(model)["latency"] <= model.streaming().latency_ms <= latency


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_a_causal_decoder_waits_for_the_frames_of_its_look_ahead(lookahead):
    model = codec("autoencoder=vocos_small", f"autoencoder.lookahead={lookahead}", "quantizer=rvq")
    assert 20 * (1 + lookahead) - 1 < reach(model)["latency"] <= 20 * (1 + lookahead)
    assert model.streaming().latency_ms == pytest.approx(20 * (1 + lookahead))
    latents = torch.randn(1, 8, 30)
    later = latents.clone()
    later[..., 20:] += 1
    first, second = model.autoencoder.decode(latents), model.autoencoder.decode(later)
    changed = int((first != second).any(1)[0].nonzero()[0])
    assert 0 <= changed - (20 - lookahead) * model.hop_length <= 1  # a window begins with 0


def test_a_look_ahead_that_no_causal_block_has_is_refused():
    for options in (
        ["autoencoder.causal=false", "autoencoder.lookahead=1"],
        ["autoencoder.lookahead=7"],
        ["autoencoder.lookahead=-1"],
        ["autoencoder.lookahead=1", "autoencoder.decoder_blocks=[2,0]"],
    ):
        with pytest.raises(ConfigError, match="lookahead"):
            codec("autoencoder=vocos_small", "quantizer=rvq", *options)


def test_a_causal_codec_waits_for_one_frame():
    model = codec()
    found = reach(model)
    assert found["latency"] == pytest.approx(1000 * model.hop_length / RATE)
    assert found["encoder_field"] > found["latency"] and found["decoder_field"] > found["latency"]


def test_a_centered_codec_waits_as_long_as_changing_the_future_changes_the_past():
    model = codec("autoencoder.layers.causal=false")
    latency = round(reach(model)["latency"] * RATE / 1000)
    model.double()  # the last samples change little
    assert latency > model.hop_length
    torch.manual_seed(1)
    place = 20 * model.hop_length
    early = []
    for start in range(place, place + model.hop_length):
        audio = torch.randn(1, 1, 40 * model.hop_length, dtype=torch.float64)
        later = audio.clone()
        later[..., start:] = torch.randn_like(later[..., start:])
        with torch.inference_mode():
            pair = [model.autoencoder.decode(model.autoencoder.encode(x)) for x in (audio, later)]
        early.append(start - int((pair[0] != pair[1]).any(1)[0].nonzero()[0]))
    # Sample t needs audio up to t + latency - 1: what comes later changes nothing before it.
    assert max(early) == latency - 1


def test_recurrent_layers_see_without_end():
    found = reach(codec(RECURRENT))
    assert found["encoder_field"] is None and found["decoder_field"] is None
    assert found["latency"] == pytest.approx(1000 * 128 / RATE)


def test_packed_frames_are_waited_for():
    model = codec("quantizer=multiscale_rvq")
    assert model.quantizer.stride > 1
    assert reach(model)["latency"] == pytest.approx(1000 * model.hop_length / RATE)


def test_speed_is_positive_and_threads_are_given_back():
    threads = torch.get_num_threads()
    found = cost(codec(), 0.1 * torch.randn(1, 1, RATE))
    assert all(
        getattr(found, f"{part}_speed{all_}") > 0
        for part in ("encode", "decode")
        for all_ in ("", "_all_threads")
    )
    assert torch.get_num_threads() == threads


# Tokens


class Signs(nn.Module):
    """A stand-in whose codes are the signs of the samples: they stand any gain and no shift."""

    class Quantizer:
        codebook_sizes = (2,)

    def __init__(self):
        super().__init__()
        self.quantizer = Signs.Quantizer()

    def encode(self, audio: Tensor) -> Tensor:
        return (audio > 0).long()

    def decode(self, codes: Tensor, length: int) -> Tensor:
        return (2.0 * codes - 1)[..., :length]


def test_shares_are_those_of_codes_that_differ():
    audio = torch.tensor([1.0, -1, -1, 1, 1, -1])[None, None]
    found = token_stability(Signs(), [audio, audio])
    # One sample later: 0 1 -1 -1 1 1 has other signs at 1, 3 and 5 (and 0, which had a 1).
    assert found == {"batch": 0, "shift": pytest.approx(4 / 6), "gain_up": 0, "gain_down": 0, "reencode": 0}


def test_a_trained_codec_s_batches_are_its_single_clips():
    found = token_stability(codec(), [0.1 * torch.randn(1, 1, RATE // 2)])
    assert found["batch"] == 0 and 0 < found["shift"] <= 1
    assert token_stability(codec("quantizer=none"), [torch.randn(1, 1, RATE)]) == {}


def test_every_stage_leaves_less_energy():
    model = codec("quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=8")
    audio = 0.3 * torch.randn(1, 1, RATE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latents = model.latents(audio)
        model.quantizer.initialise(latents.transpose(1, 2).reshape(-1, 8))
        expected = (
            latents - model.quantizer.decode(model.encode(audio))
        ).square().sum() / latents.square().sum()
    left = stage_energy(model, [audio])
    assert 1 > left[0] > left[1] > left[2] == pytest.approx(float(expected), abs=1e-4)
