"""Discriminators against the papers' sizes and shapes, and against the released implementations' numbers."""

import math

import numpy as np
import pytest
import torch
from composed import config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codec.config import build
from codec.discriminators.base import Discriminator
from codec.discriminators.channels import PerChannel
from codec.discriminators.mdct import MultiResolutionMDCTDiscriminator
from codec.discriminators.multi import Discriminators, normalize_peak
from codec.discriminators.period import MultiPeriodDiscriminator
from codec.discriminators.scale import MultiScaleDiscriminator
from codec.discriminators.spectrogram import SpectrogramDiscriminator
from codec.discriminators.stft import ComplexSTFTDiscriminator, MultiScaleSTFTDiscriminator, spectrum

DAC_BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def chirps(length: int) -> Tensor:
    """Two examples `[2, 1, length]` from a formula, so that other implementations can be fed the same."""
    t = torch.arange(length, dtype=torch.float64)
    tones = [torch.sin(2 * math.pi * 0.01 * (1 + b) * t + 1e-5 * t * t) for b in range(2)]
    return torch.stack([0.3 * tone + 0.1 * torch.sin(t * t * 0.37) for tone in tones])[:, None].float()


def fill_by_formula(module: nn.Module) -> None:
    """Set every convolution's weights to values that other implementations can be given too."""

    def values(shape: torch.Size, number: int) -> Tensor:
        k = (torch.arange(math.prod(shape), dtype=torch.float64) + number) % 10007
        return (torch.sin(0.37 * k * k) * math.sqrt(6 * shape[0] / math.prod(shape))).reshape(shape).float()

    convs = [conv for conv in module.modules() if isinstance(conv, nn.Conv1d | nn.Conv2d)]
    with torch.no_grad():
        for number, conv in enumerate(convs):
            conv.weight = values(conv.weight.shape, number)
            conv.bias.copy_(values(conv.bias.shape, number) * 0.1)


def judged_by(discriminator: Discriminator) -> tuple[tuple[int, ...], float, float, float]:
    fill_by_formula(discriminator)
    with torch.no_grad():
        (judgement,) = discriminator(chirps(3001))
    logits = judgement.logits
    return (
        tuple(logits.shape),
        logits.mean().item(),
        logits.std().item(),
        judgement.features[-1].abs().mean().item(),
    )


# Sizes: the papers, and the parameter counts of the released code


def test_soundstream_s_sizes():
    assert size(MultiScaleDiscriminator(scales=1, weight_norm=False)) == 5_637_953
    assert size(MultiScaleDiscriminator(scales=3, weight_norm=False)) == 16_913_859
    assert size(MultiScaleDiscriminator(scales=3)) - 16_913_859 == 3 * 3409  # one scale per output channel
    assert round(size(ComplexSTFTDiscriminator()) / 1e6, 2) == 5.55


def test_encodec_s_sizes():
    assert round(size(MultiScaleSTFTDiscriminator()) / 1e6, 3) == 0.472
    assert round(size(MultiScaleSTFTDiscriminator(windows=[1024, 2048, 512])) / 1e6, 3) == 0.283
    assert round(size(build(config("discriminator=encodec")["discriminator"])) / 1e6, 3) == 0.472


def test_dac_s_sizes():
    assert size(MultiPeriodDiscriminator(periods=[2])) == 8_221_154
    assert size(build(config("discriminator=dac")["discriminator"])) == 42_519_760


def test_sizes_of_mdctcodec_s_release():
    # 64 channels: kernels 7 x 5, 5 x 3 twice, 3 x 3 twice, a 3 x 3 head; biases and weight-norm scales
    weights = 64 * (35 + 64 * (15 + 15 + 9 + 9) + 9)
    assert size(MultiResolutionMDCTDiscriminator([400])) == weights + 2 * (5 * 64 + 1)
    assert size(MultiResolutionMDCTDiscriminator()) == 3 * (weights + 2 * (5 * 64 + 1))


@pytest.mark.parametrize(
    ("name", "millions", "most_gmacs"),
    [("mdct", 0.15, 0.15), ("mdct_small", 0.04, 0.05), ("spectrogram", 1.88, 0.1)],
)
def test_a_cpu_can_afford_a_second_of_16_khz(name, millions, most_gmacs):
    discriminator = build(config(f"discriminator={name}", "sample_rate=16000")["discriminator"])
    assert round(size(discriminator) / 1e6, 2) == millions
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        discriminator(torch.zeros(1, 1, 16000))
    assert most_gmacs / 2 < counter.get_total_flops() / 2e9 <= most_gmacs  # half: all is counted


# Values: computed with encodec 0.1.1 and descript-audio-codec 1.0.0 for the same weights and audio


def test_values_of_encodec_s_release():
    shape, mean, deviation, features = judged_by(MultiScaleSTFTDiscriminator(windows=[256]))
    assert shape == (2, 1, 47, 17)
    assert (mean, deviation, features) == pytest.approx((-0.385309, 0.492761, 0.265157), rel=1e-4)


def test_values_of_dac_s_release_by_period():
    shape, mean, deviation, features = judged_by(MultiPeriodDiscriminator(periods=[3]))
    assert shape == (2, 1, 13, 3)
    assert (mean, deviation, features) == pytest.approx((-1.894958, 0.734544, 0.487830), rel=1e-4)


def test_values_of_dac_s_release_by_band():
    discriminator = MultiScaleSTFTDiscriminator([512], DAC_BANDS, (1, 1, 1), slope=0.1, normalized=False)
    shape, mean, deviation, features = judged_by(discriminator)
    assert shape == (2, 1, 24, 34)
    assert (mean, deviation, features) == pytest.approx((0.025935, 7.004964, 1.054814), rel=1e-3)


# Structure


def test_wave_discriminator_s_layers_are_melgan_s():
    discriminator = MultiScaleDiscriminator(scales=3)
    convs = [m for m in discriminator.networks[0].modules() if isinstance(m, nn.Conv1d)]
    assert [conv.groups for conv in convs] == [1, 4, 16, 64, 256, 1, 1]
    with torch.no_grad():
        judgements = discriminator(torch.randn(2, 1, 8192))
    assert [tuple(f.shape[1:]) for f in judgements[0].features] == [
        (16, 8192), (64, 2048), (256, 512), (1024, 128), (1024, 32), (1024, 32),
    ]  # fmt: skip
    assert [tuple(judgement.logits.shape) for judgement in judgements] == [(2, 1, 32), (2, 1, 16), (2, 1, 8)]


def test_wave_discriminator_s_scales_average_four_samples_of_every_two():
    audio = torch.randn(1, 1, 64)
    full, half, quarter = MultiScaleDiscriminator(scales=3).inputs(audio)
    assert torch.equal(full, audio)
    assert half.shape[-1] == 32 and quarter.shape[-1] == 16
    torch.testing.assert_close(half[..., 5], audio[..., 9:13].mean(dim=-1))
    torch.testing.assert_close(quarter[..., 3], half[..., 5:9].mean(dim=-1))
    torch.testing.assert_close(half[..., 0], audio[..., :3].mean(dim=-1))  # the edge counts no padding


def test_stft_discriminator_s_logits_are_one_per_eight_hops():
    discriminator = ComplexSTFTDiscriminator()
    with torch.no_grad():
        (judgement,) = discriminator(torch.randn(2, 1, 3 * 256 * 8))
    assert judgement.logits.shape == (2, 1, 3, 1)
    assert [tuple(f.shape[1:]) for f in judgement.features] == [
        (32, 24, 512), (64, 24, 256), (128, 12, 128), (128, 12, 64), (256, 6, 32), (256, 6, 16), (512, 3, 8),
    ]  # fmt: skip


def test_stft_discriminator_hears_dc_and_leaves_out_the_nyquist_frequency():
    (view,) = ComplexSTFTDiscriminator(window=128, channels=4).inputs(torch.ones(1, 1, 512))
    assert view.shape[-1] == 64
    hann = view[0, 0, 5, :4] / view[0, 0, 5, 0]  # a Hann window's spectrum: bins 0, 1 and nothing else
    torch.testing.assert_close(hann, torch.tensor([1, -0.5, 0, 0]), atol=1e-5, rtol=0)


def test_mdct_discriminator_keeps_an_eighth_of_the_frames_and_a_32nd_of_the_bins():
    discriminator = MultiResolutionMDCTDiscriminator(windows=[128, 40], channels=4)
    with torch.no_grad():
        long, short = discriminator(torch.randn(2, 1, 64 * 16))
    assert [tuple(f.shape[1:]) for f in long.features] == [
        (4, 8, 32), (4, 8, 16), (4, 4, 8), (4, 4, 4), (4, 2, 2),
    ]  # fmt: skip
    assert long.logits.shape == (2, 1, 2, 2)
    # Two bins stay two
    assert [tuple(f.shape[2:]) for f in short.features] == [(26, 10), (26, 5), (13, 3), (13, 2), (7, 2)]


def test_mdct_discriminator_sees_each_hop_in_the_middle_of_a_frame():
    audio = torch.randn(1, 2, 150)
    (view,) = MultiResolutionMDCTDiscriminator(windows=[32], channels=4, audio_channels=2).inputs(audio)
    assert view.shape == (1, 2, 10, 16)
    padded = np.pad(audio.numpy(), ((0, 0), (0, 0), (8, 18)), mode="reflect")
    n, k = np.arange(32)[:, None] + 0.5, np.arange(16) + 0.5
    basis = np.sin(np.pi * n / 32) * np.cos(np.pi / 16 * (n + 8) * k) / np.sqrt(8)
    for frame in (0, 4, 9):
        np.testing.assert_allclose(
            view[..., frame, :], padded[..., 16 * frame : 16 * frame + 32] @ basis, atol=1e-5
        )


def test_mdct_discriminator_compresses_above_the_floor_and_keeps_signs():
    audio = 0.1 * torch.randn(1, 1, 640)
    (linear,) = MultiResolutionMDCTDiscriminator(windows=[32], channels=4).inputs(audio)
    discriminator = MultiResolutionMDCTDiscriminator(windows=[32], channels=4, floor=0.01)
    (view,) = discriminator.inputs(audio)
    loud, quiet = linear.abs() > 0.1, linear.abs() < 0.001
    assert loud.any() and quiet.any()
    logarithms = linear.sign() * (2 * linear.abs() / 0.01).log()
    torch.testing.assert_close(view[loud], logarithms[loud], atol=0.01, rtol=0)
    torch.testing.assert_close(view[quiet], linear[quiet] / 0.01, atol=0.001, rtol=0)


def test_spectrogram_discriminator_s_channels_are_log_magnitudes():
    audio = 0.1 * torch.randn(1, 2, 64)
    (view,) = SpectrogramDiscriminator(windows=[32], channels=4, audio_channels=2).inputs(audio)
    assert view.shape == (1, 2 * 17, 1, 9)
    padded = np.pad(audio.numpy(), ((0, 0), (0, 0), (16, 16)), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(32) / 32)
    for frame in range(9):
        magnitudes = np.abs(np.fft.rfft(padded[..., 8 * frame : 8 * frame + 32] * window))
        expected = np.log1p(100 * magnitudes / np.sqrt(np.sum(window**2))).reshape(1, 34)
        np.testing.assert_allclose(view[..., 0, frame], expected, atol=1e-4)


def test_a_logit_of_the_spectrogram_discriminator_hears_all_bins_of_its_frames():
    discriminator = SpectrogramDiscriminator(windows=[64], channels=8)
    view = torch.rand(1, 33, 1, 40, requires_grad=True)
    logits = discriminator.networks[0](view).logits
    assert logits.shape == (1, 1, 1, 10)
    (gradient,) = torch.autograd.grad(logits[..., 5].sum(), view)
    heard = gradient[0, :, 0] != 0
    # Frame 4 * 5 and, for each layer, its stride more to both sides: 1 + 2 + 4 + 4
    assert heard.any(dim=0).nonzero().flatten().tolist() == list(range(9, 32))
    assert heard[:, 11:30].float().mean() > 0.9


@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiResolutionMDCTDiscriminator(windows=[64], channels=8, floor=0.01),
        lambda: SpectrogramDiscriminator(windows=[64], channels=8),
    ],
)
def test_silence_gets_a_bounded_gradient_through_logarithms(make):
    discriminator = make()
    for level in (0.0, 1e-12, 1e-6):
        audio = (level * torch.randn(1, 1, 640)).requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(audio)[0].logits.sum(), audio)
        assert gradient.abs().max() < 100


@pytest.mark.parametrize("length", [1, 40, 700])
@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiResolutionMDCTDiscriminator(windows=[40, 32], channels=4),
        lambda: SpectrogramDiscriminator(windows=[1024, 64], channels=4),
    ],
)
def test_no_strided_convolution_has_one_output_a_row(make, length):
    # oneDNN computes them wrongly in bf16 with AMX: https://github.com/pytorch/pytorch/issues/169688
    found = []

    def note(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((conv.stride[1], output.shape[3]))

    discriminator = make()
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        discriminator(torch.randn(1, 1, length))
    assert max(stride for stride, _ in found) == 2
    assert all(stride == 1 or columns > 1 for stride, columns in found)


def test_a_period_s_columns_are_every_pth_sample():
    audio = torch.randn(2, 1, 22)
    two, five = MultiPeriodDiscriminator(periods=[2, 5], channels=[4]).inputs(audio)
    assert torch.equal(two[..., 1], audio[..., 1::2])  # 22 is a whole number of twos: nothing is added
    assert torch.equal(five[..., :4, 3], audio[..., 3:20:5])
    assert torch.equal(five[0, 0, -1], audio[0, 0, [20, 21, 20, 19, 18]])  # the end is reflected


def test_spectrum_is_numpy_s_fourier_transform():
    audio = torch.randn(2, 2, 64)
    view = spectrum(audio, window=32, normalized=False)
    assert view.shape == (2, 4, 8, 17)
    padded = np.pad(audio.numpy(), ((0, 0), (0, 0), (12, 12)), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(32) / 32)
    for frame in range(8):
        expected = np.fft.rfft(padded[..., 8 * frame : 8 * frame + 32] * window)
        for channel in range(2):
            np.testing.assert_allclose(view[:, 2 * channel, frame], expected[:, channel].real, atol=1e-4)
            np.testing.assert_allclose(view[:, 2 * channel + 1, frame], expected[:, channel].imag, atol=1e-4)


def test_a_normalized_spectrum_keeps_the_level_of_noise():
    audio = torch.randn(1, 1, 100_000, generator=torch.Generator().manual_seed(0))
    for window in (128, 2048):
        real, imaginary = spectrum(audio, window, normalized=True)[0, :, 4:-4, 1:-1]
        assert (real.square() + imaginary.square()).mean() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("norm", ["none", "weight", "layer"])
def test_stft_discriminator_s_norms_differ(norm):
    discriminator = ComplexSTFTDiscriminator(window=128, channels=4, norm=norm)
    kinds = {type(module).__name__ for module in discriminator.modules()}
    assert ("GroupNorm" in kinds) == (norm == "layer")
    assert ("ParametrizedConv2d" in kinds) == (norm == "weight")
    with torch.no_grad():
        assert discriminator(torch.randn(1, 1, 300))[0].logits.isfinite().all()


def test_normalized_audio_is_judged_without_its_level_and_dc():
    body = MultiPeriodDiscriminator(periods=[2], channels=[4])
    plain, normalizing = Discriminators([body]), Discriminators([body], normalize=True)
    audio = torch.randn(2, 1, 100)
    with torch.no_grad():
        assert torch.equal(plain(audio)[0].logits, body(audio)[0].logits)
        torch.testing.assert_close(normalizing(0.01 * audio + 0.3)[0].logits, normalizing(audio)[0].logits)
    assert normalize_peak(audio).abs().amax(dim=-1) == pytest.approx(0.8)


def test_silence_gets_a_bounded_gradient_through_the_normalization():
    silence = torch.zeros(1, 1, 50, requires_grad=True)
    (gradient,) = torch.autograd.grad(normalize_peak(silence)[..., 7].sum(), silence)
    assert gradient.abs().max() <= 0.8 / 1e-4


def test_joined_discriminators_keep_their_order():
    one, two = MultiPeriodDiscriminator([2], [4]), MultiPeriodDiscriminator([3, 5], [4])
    with torch.no_grad():
        judgements = Discriminators([one, two])(torch.randn(1, 1, 60))
    assert [judgement.logits.shape[-1] for judgement in judgements] == [2, 3, 5]


@pytest.mark.slow
def test_compiling_leaves_the_fourier_transform_out():
    graphs = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(str(graph.code))
        return graph.forward

    discriminator = Discriminators(
        [
            MultiScaleSTFTDiscriminator([64, 32], channels=4),
            ComplexSTFTDiscriminator(128, 4),
            MultiPeriodDiscriminator([2], [4]),
            MultiResolutionMDCTDiscriminator([32], channels=4),
            SpectrogramDiscriminator([64], channels=4),
        ],
    )
    audio = torch.randn(1, 1, 300)
    with torch.no_grad():
        eager = discriminator(audio)
        discriminator.compile(fullgraph=True, dynamic=False, backend=record)
        compiled = discriminator(audio)
    assert len(graphs) == 6
    assert all("conv" in code and "stft" not in code for code in graphs)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a.logits, b.logits)
        assert len(a.features) == len(b.features)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiPeriodDiscriminator(periods=[]), "periods"),
        (lambda: MultiPeriodDiscriminator(periods=[0]), "periods"),
        (lambda: MultiScaleDiscriminator(scales=0), "scales"),
        (lambda: MultiScaleSTFTDiscriminator(windows=[1022]), "windows"),
        (lambda: MultiScaleSTFTDiscriminator(bands=[0.0, 0.5, 0.5]), "bands"),
        (lambda: MultiScaleSTFTDiscriminator(bands=[0.0, 10.0]), "bands"),
        (lambda: MultiScaleSTFTDiscriminator(windows=[32], bands=[0.0, 0.01, 1.0]), "holds no bin"),
        (lambda: MultiResolutionMDCTDiscriminator(windows=[130]), "windows"),
        (lambda: MultiResolutionMDCTDiscriminator(floor=0.0), "floor"),
        (lambda: SpectrogramDiscriminator(windows=[]), "windows"),
        (lambda: SpectrogramDiscriminator(floor=-1.0), "floor"),
        (lambda: ComplexSTFTDiscriminator(window=1000), "128"),
        (lambda: ComplexSTFTDiscriminator(norm="batch"), "none, weight or layer"),  # type: ignore[arg-type]
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_each_channel_is_judged_by_itself():
    torch.manual_seed(0)
    mono = MultiScaleSTFTDiscriminator([64, 128], channels=4)
    audio = torch.randn(3, 2, 700)
    with torch.no_grad():
        judgements = PerChannel(mono)(audio)
        for channel in (0, 1):
            for both, alone in zip(judgements, mono(audio[:, channel : channel + 1]), strict=True):
                torch.testing.assert_close(both.logits[:, channel], alone.logits, rtol=1e-4, atol=1e-5)
                for pair, one in zip(both.features, alone.features, strict=True):
                    torch.testing.assert_close(pair[:, channel], one, rtol=1e-4, atol=1e-5)
