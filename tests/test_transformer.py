"""The transformer against attention written out frame by frame: blocks, streams, ragged batches."""

import pytest
import torch
from torch.nn import functional

from codec.autoencoders import SEANet, Vocos
from codec.config import ConfigError, build
from codec.layers import LSTM, Transformer
from codec.layers.base import Context, context_of
from codec.layers.resample import Downsample, Upsample
from codec.layers.streaming import NotStreamable
from codec.testing import check_autoencoder


def small(causal: bool = True, window: int = 5, num_layers: int = 3) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        12, num_layers=num_layers, num_heads=2, window=window, layer_scale=0.7, causal=causal
    ).requires_grad_(False)


def by_hand(transformer: Transformer, x: torch.Tensor) -> torch.Tensor:
    """One signal `[C, F]`, in float64: rotations are products with complex numbers, windows are loops."""
    double = Transformer(
        12, num_layers=len(transformer.layers), num_heads=2, window=transformer.window
    ).double()
    double.load_state_dict(transformer.state_dict())
    frames = x.double().T
    turn = 10000 ** (-torch.arange(3, dtype=torch.float64) / 3)
    for layer in double.layers:
        heads = layer.qkv(layer.attention_norm(frames)).unflatten(1, (3, 2, 6))  # [F, 3, H, D]
        turned = torch.complex(heads[..., :3], heads[..., 3:])
        mixed = torch.zeros(len(frames), 2, 6, dtype=torch.float64)
        for i in range(len(frames)):
            first = max(0, i - transformer.window + 1)
            last = i + 1 if transformer.causal else min(len(frames), i + transformer.window)
            for head in range(2):
                scores = [
                    (turned[i, 0, head] * torch.polar(torch.ones(()).double(), turn * (i - j)))
                    .mul(turned[j, 1, head].conj())
                    .real.sum()
                    / 6**0.5
                    for j in range(first, last)
                ]
                weights = torch.stack(scores).softmax(0)
                mixed[i, head] = weights @ heads[first:last, 2, head]
        frames = frames + layer.out(mixed.flatten(1)) * layer.attention_scale
        inner = functional.gelu(layer.expand(layer.mlp_norm(frames)))
        frames = frames + layer.project(inner) * layer.mlp_scale
    return frames.T


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("frames", [1, 9, 23])  # one block of all, or several
@torch.no_grad()
def test_attention_is_that_written_out(causal, frames):
    transformer, x = small(causal, num_layers=2), torch.randn(2, 12, frames)
    for signal, output in zip(x, transformer(x), strict=True):
        torch.testing.assert_close(output.double(), by_hand(transformer, signal), atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("longest", [8, 40])  # below and above two windows
def test_padding_is_not_attended_to_and_gives_finite_gradients(causal, longest):
    transformer = small(causal)
    x = torch.randn(3, 12, longest, requires_grad=True)
    lengths = torch.tensor([longest, 7, 1])
    valid = torch.arange(longest) < lengths[:, None]
    output = transformer(x, valid=valid)
    for signal, one, length in zip(x, output, lengths.tolist(), strict=True):
        alone = transformer(signal[None, :, :length])[0]
        torch.testing.assert_close(one[:, :length], alone, atol=1e-5, rtol=0)
    output.masked_fill(~valid[:, None], 0).square().sum().backward()
    assert x.grad.isfinite().all() and not x.grad.masked_fill(valid[:, None], 0).any()


def test_a_stream_is_the_whole_with_a_cache_that_does_not_grow():
    transformer, x = small(), torch.randn(2, 12, 41)
    whole, step = transformer(x), transformer.stream()
    for sizes in ([1] * 41, [3, 0, 7, 31], [41]):
        state, outputs = step.initial(2), []
        shapes = [tensor.shape for tensor in state]
        for chunk in x.transpose(1, 2).split(sizes, 1):
            output, state = step(chunk, state)
            outputs.append(output)
            assert [tensor.shape for tensor in state] == shapes
        torch.testing.assert_close(torch.cat(outputs, 1).transpose(1, 2), whole, atol=1e-5, rtol=0)


def test_a_stream_of_years_is_as_exact_as_one_of_seconds():
    transformer, x = small(), torch.randn(1, 12, 30).transpose(1, 2)
    step = transformer.stream()
    outputs = []
    for begin in (0, 10**9):
        state, found = step.initial(1), []
        state[0] += begin
        for frame in x.split(1, 1):
            output, state = step(frame, state)
            found.append(output)
        outputs.append(torch.cat(found, 1)[:, 12:])  # without those that depend on frames before the first
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)


def test_the_context_is_that_of_all_windows():
    assert context_of(small(window=5, num_layers=3)) == Context(12, 0)
    assert context_of(small(causal=False, window=5, num_layers=3)) == Context(12, 12)
    with pytest.raises(NotStreamable, match="would wait for 12 frames"):
        small(causal=False).stream()


def test_replicated_padding_and_depthwise_upsampling_are_those_of_torch():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8)
    down, up = Downsample(6, 2), Upsample(6, 2)
    repeated = torch.cat([x[..., :1], x[..., :1], x], 2)
    torch.testing.assert_close(down(x), functional.conv1d(repeated, down.conv.weight, stride=2))
    expected = functional.conv_transpose1d(x, up.conv.weight, stride=2, groups=6)[..., :-2]
    torch.testing.assert_close(up(x), expected)


ATTENTION = {"_target_": "codec.layers.Transformer", "_partial_": True, "num_layers": 1, "num_heads": 2}
CENTERED = {"_target_": "codec.layers.Layers", "causal": False}
BLOCKS = {"encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}
RECURRENT = {"_target_": "codec.layers.LSTM", "_partial_": True, "num_layers": 1}


@pytest.mark.parametrize(
    "bottleneck",
    [ATTENTION | {"window": 3}, ATTENTION | {"window": 3, "causal": False}, RECURRENT],
)
@pytest.mark.parametrize(
    "options",
    [
        {"strides": [2, 3], "latent_stride": 2},
        {
            "strides": [2, 3],
            "latent_stride": 3,
            "layers": {"_target_": "codec.layers.Layers", "causal": False},
        },
        {
            "hop": 8,
            "windows": [16, 16],
            "channels": [8, 8],
            "encoder_blocks": [1, 1],
            "decoder_blocks": [1, 1],
        },
    ],
)
def test_every_autoencoder_takes_every_bottleneck(bottleneck, options):
    torch.manual_seed(0)
    kind = Vocos if "hop" in options else SEANet
    widths = {} if kind is Vocos else {"encoder_channels": 4, "decoder_channels": 4}
    if kind is SEANet:
        widths["latent_layers"] = bottleneck
    node = {"_target_": f"codec.autoencoders.{kind.__name__}", "latent_dim": 8, "bottleneck": bottleneck}
    autoencoder = build(node | widths | options)
    parts = [type(module) for module in autoencoder.modules()]
    made = Transformer if bottleneck is not RECURRENT else LSTM
    assert parts.count(made) == (2 if kind is Vocos else 4)
    check_autoencoder(autoencoder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide the 8 channels"),
        ({"num_heads": 8}, "heads of an even number of channels, got 8: 1 channels per head"),
        ({"num_heads": 0}, "must be at least 1"),
        ({"window": 0}, "window and expansion"),
        ({"window": -2}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"expansion": 0.0}, "must be at least 1"),
        ({"rotary_base": 0.0}, "rotary_base above 0"),
    ],
)
def test_impossible_transformers_are_refused(options, message):
    node = {"_target_": "codec.autoencoders.SEANet", "latent_dim": 8, "latent_layers": ATTENTION | options}
    with pytest.raises(ConfigError, match=message):
        build(node)
    for name, wrong in (("bottleneck", RECURRENT | {"num_layers": 0}), ("latent_stride", 0)):
        with pytest.raises(ConfigError, match="must be at least 1"):
            build({"_target_": "codec.autoencoders.SEANet", name: wrong})
