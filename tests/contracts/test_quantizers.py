"""The contract of `Quantizer`, for every yaml in configs/quantizer."""

import math

import pytest
import torch
from composed import options, small_quantizer

from codec.quantizers.base import Quantizer

DIM, FRAMES, BATCH = 16, 24, 4
EVERY = pytest.mark.parametrize("name", options("quantizer"))


def latents(seed: int = 0, batch: int = BATCH, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(batch, DIM, frames, generator=torch.Generator().manual_seed(seed))


def trained(name: str) -> Quantizer:
    torch.manual_seed(0)
    quantizer = small_quantizer(name, DIM)
    if quantizer.pool_size():
        quantizer.initialise(latents(1, 32, 32).permute(0, 2, 1).reshape(-1, DIM))
    return quantizer.eval()


def coded(name: str) -> Quantizer:
    quantizer = trained(name)
    if not quantizer.codebook_sizes:
        pytest.skip("this quantizer has no codes")
    return quantizer


@EVERY
def test_codes_have_the_contract_s_shape_dtype_and_range(name):
    quantizer = coded(name)
    codes = quantizer.encode(latents())
    assert codes.shape == (BATCH, quantizer.num_quantizers, FRAMES)
    assert codes.dtype == torch.int64
    for stage, size in enumerate(quantizer.codebook_sizes):
        assert int(codes[:, stage].min()) >= 0 and int(codes[:, stage].max()) < size


@EVERY
def test_decoded_codes_are_exactly_the_quantized_latents(name):
    quantizer = coded(name)
    quantized = quantizer(latents())
    assert torch.equal(quantizer.decode(quantized.codes), quantized.latents)
    assert torch.equal(quantizer.encode(latents()), quantized.codes)


@EVERY
def test_fewer_quantizers_give_a_prefix_of_the_codes(name):
    quantizer = coded(name)
    codes = quantizer.encode(latents())
    for depth in range(1, quantizer.num_quantizers + 1):
        assert torch.equal(quantizer.encode(latents(), depth), codes[:, :depth])
        prefix = quantizer(latents(), depth)
        assert torch.equal(quantizer.decode(codes[:, :depth]), prefix.latents)


@EVERY
def test_every_example_may_use_another_number_of_quantizers(name):
    quantizer = coded(name)
    depths = torch.arange(BATCH) % quantizer.num_quantizers + 1
    quantized = quantizer(latents(), depths)
    for example, depth in enumerate(depths.tolist()):
        alone = quantizer(latents()[example : example + 1], depth)
        torch.testing.assert_close(quantized.latents[example], alone.latents[0], rtol=0, atol=1e-6)
        assert torch.equal(quantized.codes[example, :depth], alone.codes[0])
        assert (quantized.codes[example, depth:] == -1).all()


@EVERY
def test_more_quantizers_lose_less(name):
    quantizer = coded(name)
    if quantizer.num_quantizers == 1 or quantizer.loss_weights.keys() == {"commitment", "codebook"}:
        pytest.skip("one stage, or codebooks that only gradients teach")
    errors = [float((quantizer(latents(), k).latents - latents()).square().mean()) for k in range(1, 9)]
    assert errors == sorted(errors, reverse=True)


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_forward_encode_and_decode_change_no_state(name, training):
    quantizer = trained(name).train(training)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantized = quantizer(latents())
    if quantizer.codebook_sizes:
        quantizer.decode(quantizer.encode(latents()))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    assert quantized.inputs is not None and not quantized.inputs.requires_grad


@EVERY
def test_a_saved_state_continues_identically(name):
    one, other = trained(name).train(), small_quantizer(name, DIM).train()
    other.load_state_dict(one.state_dict())
    for step in range(3):
        for quantizer in (one, other):
            quantized = quantizer(latents(step))
            quantizer.update(quantized)
            quantizer.revive(quantized, step)
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in other.state_dict().items())


@EVERY
def test_bfloat16_autocast_gives_the_codes_of_float32(name):
    quantizer = coded(name)
    expected = quantizer(latents())
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(latents())
        assert torch.equal(quantizer.encode(latents()), expected.codes)
    assert torch.equal(quantized.codes, expected.codes)
    assert torch.equal(quantized.latents, expected.latents)


@EVERY
def test_masked_frames_change_nothing(name):
    quantizer = trained(name)
    clean, dirty = latents(), latents()
    mask = torch.ones(BATCH, FRAMES, dtype=torch.bool)
    mask[1, 10:] = mask[3, 3:] = False
    dirty.permute(0, 2, 1)[~mask] = 1e6
    one, other = quantizer(clean, mask=mask), quantizer(dirty, mask=mask)
    assert torch.equal(one.latents, other.latents) and torch.equal(one.codes, other.codes)
    assert one.losses == other.losses
    assert not one.latents.permute(0, 2, 1)[~mask].any()
    assert (one.codes.permute(0, 2, 1)[~mask] == -1).all()
    states = []
    for quantized in (one, other):
        learner = trained(name).train()
        learner.update(quantized)
        states.append(learner.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@EVERY
def test_a_frame_that_is_not_a_number_leaves_the_state_finite(name):
    quantizer = trained(name).train()
    broken = latents()
    broken[2, :, 5] = math.nan
    quantized = quantizer(broken)
    quantizer.update(quantized)
    quantizer.revive(quantized, 0)
    assert all(torch.isfinite(value).all() for value in quantizer.state_dict().values())


@EVERY
def test_every_loss_has_a_weight_and_reaches_the_input_or_the_codebook(name):
    quantizer = trained(name).train()
    inputs = latents().requires_grad_()
    quantized = quantizer(inputs)
    assert quantized.losses.keys() == quantizer.loss_weights.keys()
    for loss in quantized.losses.values():
        assert loss.ndim == 0 and loss.requires_grad and float(loss.detach()) > 0
    quantized.latents.square().sum().backward()
    assert inputs.grad is not None and float(inputs.grad.abs().sum()) > 0


@EVERY
def test_bits_per_frame_are_the_logarithm_of_the_codebooks(name):
    quantizer = small_quantizer(name, DIM)
    if not quantizer.codebook_sizes:
        assert quantizer.bits_per_frame() == math.inf
        return
    assert quantizer.bits_per_frame() == pytest.approx(math.log2(math.prod(quantizer.codebook_sizes)))
    assert quantizer.bits_per_frame(1) == pytest.approx(math.log2(quantizer.codebook_sizes[0]))


@EVERY
def test_bad_codes_and_depths_are_refused(name):
    quantizer = coded(name)
    codes = quantizer.encode(latents())
    wrong = [codes.float(), codes - 10_000, codes + 10**6, codes[0], codes.repeat(1, 3, 1)]
    for bad in wrong:
        with pytest.raises(ValueError, match="codes must be"):
            quantizer.check_codes(bad)
    for depth in (0, quantizer.num_quantizers + 1):
        with pytest.raises(ValueError, match="num_quantizers must be"):
            quantizer.encode(latents(), depth)


@EVERY
def test_quantizer_dropout_is_uniform_over_the_stages(name):
    quantizer = small_quantizer(name, DIM)
    drawn = quantizer.draw_num_quantizers(4000, torch.Generator().manual_seed(0))
    dropout = getattr(quantizer, "dropout", 0)
    if not dropout:
        assert drawn is None
        return
    shares = torch.bincount(drawn, minlength=quantizer.num_quantizers + 1) / len(drawn)
    assert shares[0] == 0
    uniform = dropout / quantizer.num_quantizers
    torch.testing.assert_close(
        shares[1:-1], torch.full((quantizer.num_quantizers - 1,), uniform), rtol=0, atol=0.02
    )


@EVERY
def test_forward_is_one_graph_for_the_exporter(name):
    class Encode(torch.nn.Module):
        def __init__(self, quantizer):
            super().__init__()
            self.quantizer = quantizer

        def forward(self, x):
            return self.quantizer.encode(x), self.quantizer(x).latents

    quantizer = trained(name)
    frames = torch.export.Dim("frames", min=2, max=4096)
    program = torch.export.export(Encode(quantizer), (latents(),), dynamic_shapes={"x": {2: frames}})
    longer = latents(frames=57)
    codes, quantized = program.module()(longer)
    assert torch.equal(codes, quantizer.encode(longer))
    torch.testing.assert_close(quantized, quantizer(longer).latents)
