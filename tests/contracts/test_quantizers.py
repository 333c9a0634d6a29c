"""The contract of `Quantizer`, for every yaml in configs/quantizer."""

import math
import re

import pytest
import torch
from composed import NO_CODES, distinct, small_quantizer

from codec.codebooks.fsq import ScaledFSQCodebook
from codec.quantizers.base import Quantizer
from codec.quantizers.residual import Residual

DIM, FRAMES, BATCH = 16, 24, 4
EVERY = pytest.mark.parametrize("name", distinct("quantizer"))
WITH_CODES = sorted(set(distinct("quantizer")) - NO_CODES)
CODED = pytest.mark.parametrize("name", WITH_CODES)
# One stage; codebooks that only gradients teach; a map or projections that start random.
WITHOUT_ORDER = re.compile("(factorized_)?vq(_[a-z]+)?|.*(bsq|fsq|lfq|gumbel|random|simvq|split).*")


def latents(quantizer: Quantizer, seed: int = 0, batch: int = BATCH, frames: int = FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, DIM, frames * quantizer.stride, generator=generator)


def trained(name: str, most_stages: int = 32) -> Quantizer:
    torch.manual_seed(0)
    quantizer = small_quantizer(name, DIM, most_stages)
    if wanted := quantizer.pool_size():
        quantizer.initialise(torch.randn(wanted, DIM, generator=torch.Generator().manual_seed(1)))
    assert quantizer.pool_size() == 0
    return quantizer.eval()


def coded(name: str, most_stages: int = 32) -> Quantizer:
    quantizer = trained(name, most_stages)
    assert quantizer.codebook_sizes
    return quantizer


def cascades(quantizer: Quantizer) -> list[Residual]:
    return [part for part in quantizer.modules() if isinstance(part, Residual)]


def some_depths(quantizer: Quantizer) -> list[int]:
    last = quantizer.num_quantizers
    return sorted({*range(1, min(last, 9) + 1), last // 2 + 1, last - 1 or 1, last})


@CODED
def test_codes_have_the_contract_s_shape_dtype_and_range(name):
    quantizer = coded(name)
    codes = quantizer.encode(latents(quantizer))
    assert codes.shape == (BATCH, quantizer.num_quantizers, FRAMES)
    assert codes.dtype == torch.int64
    for stage, size in enumerate(quantizer.codebook_sizes):
        assert int(codes[:, stage].min()) >= 0 and int(codes[:, stage].max()) < size


@CODED
@pytest.mark.parametrize("gradients", [True, False])
def test_decoded_codes_are_exactly_the_quantized_latents(name, gradients):
    quantizer = coded(name)
    inputs = latents(quantizer)
    with torch.set_grad_enabled(gradients):
        quantized = quantizer(inputs)
        assert torch.equal(quantizer.decode(quantized.codes), quantized.latents)
        assert torch.equal(quantizer.encode(inputs), quantized.codes)
    with torch.no_grad():
        assert torch.equal(quantizer.decode(quantized.codes), quantized.latents)


@CODED
def test_fewer_quantizers_give_a_prefix_of_the_codes(name):
    quantizer = coded(name)
    inputs = latents(quantizer)
    codes = quantizer.encode(inputs)
    for depth in some_depths(quantizer):
        assert torch.equal(quantizer.encode(inputs, depth), codes[:, :depth])
        prefix = quantizer(inputs, depth)
        assert torch.equal(prefix.codes, codes[:, :depth])
        assert torch.equal(quantizer.decode(codes[:, :depth]), prefix.latents)


@CODED
@pytest.mark.parametrize("training", [True, False])
def test_every_example_may_use_another_number_of_quantizers(name, training):
    quantizer = coded(name).train(training)
    inputs = latents(quantizer)
    depths = torch.arange(BATCH) % quantizer.num_quantizers + 1
    quantized = quantizer(inputs, depths)
    for example, depth in enumerate(depths.tolist()):
        alone = quantizer(inputs[example : example + 1], depth)
        torch.testing.assert_close(quantized.latents[example], alone.latents[0], rtol=0, atol=1e-6)
        assert torch.equal(quantized.codes[example, :depth], alone.codes[0])
        assert (quantized.codes[example, depth:] == -1).all()


@CODED
def test_one_example_has_the_codes_that_it_has_in_a_batch(name):
    quantizer = coded(name)
    inputs = latents(quantizer)
    codes = quantizer.encode(inputs)
    for example in range(BATCH):
        assert torch.equal(quantizer.encode(inputs[example : example + 1]), codes[example : example + 1])


@pytest.mark.parametrize("name", [name for name in WITH_CODES if not WITHOUT_ORDER.fullmatch(name)])
def test_more_quantizers_lose_less(name):
    quantizer = coded(name)
    inputs = latents(quantizer)
    with torch.no_grad():
        depths = some_depths(quantizer)
        errors = [float((quantizer(inputs, k).latents - inputs).square().mean()) for k in depths]
    assert errors == sorted(errors, reverse=True)


@CODED
def test_a_wider_beam_never_loses_more(name):
    quantizer = coded(name)
    depth = max(len(cascade.strides) for cascade in cascades(quantizer))
    with torch.no_grad():
        if depth > 1 and any(isinstance(part, torch.nn.Conv1d) for part in quantizer.modules()):
            # The search sees projected latents: what it minimizes is measured there.
            quantizer = next(part for part in cascades(quantizer) if len(part.strides) == depth)
        inputs = torch.randn(BATCH, quantizer.dim, FRAMES * quantizer.stride)
        errors = []
        for beam in (1, 2, 4):
            codes = quantizer.encode(inputs, beam=beam)
            quantizer.check_codes(codes)
            errors.append(float((quantizer.decode(codes) - inputs).square().mean()))
    if depth == 1:
        assert errors[0] == errors[1] == errors[2]
    else:
        # A grid of equal steps is decided dimension by dimension, and greedily is almost best.
        strictly = 1e-6 if any(isinstance(part, ScaledFSQCodebook) for part in quantizer.modules()) else -1e-3
        assert errors[1] < errors[0] * (1 + strictly) and errors[2] < errors[1] * (1 + strictly)


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_forward_encode_and_decode_change_no_state(name, training):
    quantizer = trained(name).train(training)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    inputs = latents(quantizer)
    quantized = quantizer(inputs, generator=torch.Generator().manual_seed(0) if training else None)
    quantizer.decode(quantizer.encode(inputs))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    assert quantized.inputs is not None and not quantized.inputs.requires_grad


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_only_initialise_starts_the_codebooks(name, training):
    # Libraries that start by k-means in their forward do so from a sanity check's validation data, too.
    quantizer = small_quantizer(name, DIM, most_stages=3).train(training)
    before, wanted = (
        {key: value.clone() for key, value in quantizer.state_dict().items()},
        quantizer.pool_size(),
    )
    quantizer(latents(quantizer), generator=torch.Generator().manual_seed(0) if training else None)
    quantizer.decode(quantizer.encode(latents(quantizer)))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    assert quantizer.pool_size() == wanted


@CODED
def test_latents_of_any_memory_layout_have_the_same_codes(name):
    quantizer = coded(name)
    inputs = latents(quantizer)
    codes = quantizer.encode(inputs)
    wide = torch.zeros(BATCH, 2 * DIM, inputs.shape[2])
    wide[:, ::2] = inputs
    for layout in (inputs.mT.contiguous().mT, wide[:, ::2], inputs.flip(0).contiguous().flip(0)):
        assert torch.equal(quantizer.encode(layout), codes)
        assert torch.equal(quantizer(layout).codes, codes)


@EVERY
def test_the_same_generator_gives_the_same_and_no_generator_the_codes_of_encode(name):
    quantizer = trained(name).train()
    inputs = latents(quantizer)
    one, other = (quantizer(inputs, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.latents, other.latents) and torch.equal(one.codes, other.codes)
    plain, coded_frames = quantizer(inputs), quantizer.encode(inputs)
    if quantizer.codebook_sizes:
        assert torch.equal(plain.codes, coded_frames)
    else:
        assert torch.equal(plain.latents, quantizer.decode(coded_frames))


@EVERY
def test_a_saved_state_continues_identically(name):
    one, other = trained(name).train(), small_quantizer(name, DIM).train()
    other.load_state_dict(one.state_dict())
    assert other.pool_size() == 0
    for step in range(3):
        for quantizer in (one, other):
            quantized = quantizer(latents(quantizer, step))
            quantizer.update(quantized)
            quantizer.revive(quantized, step)
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in other.state_dict().items())


@CODED
def test_what_is_derived_from_the_weights_follows_them(name):
    quantizer = coded(name)
    with torch.no_grad():
        quantizer.decode(quantizer.encode(latents(quantizer)))
        for tensor in [*quantizer.parameters(), *quantizer.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1.1)
        fresh = small_quantizer(name, DIM).eval()
        fresh.load_state_dict(quantizer.state_dict())
        codes = quantizer.encode(latents(quantizer))
        assert torch.equal(codes, fresh.encode(latents(fresh)))
        assert torch.equal(quantizer.decode(codes), fresh.decode(codes))


@CODED
def test_bfloat16_autocast_gives_the_codes_of_float32(name):
    quantizer = coded(name)
    inputs = latents(quantizer)
    expected = quantizer(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(inputs)
        assert torch.equal(quantizer.encode(inputs), expected.codes)
    assert torch.equal(quantized.codes, expected.codes)
    assert torch.equal(quantized.latents, expected.latents)


@EVERY
def test_an_update_before_the_gradients_changes_none(name):
    gradients = []
    for early in (True, False):
        quantizer = trained(name, most_stages=3).train()
        inputs = latents(quantizer).requires_grad_()
        quantized = quantizer(inputs)
        if early:
            quantizer.update(quantized)
        (quantized.latents.square().sum() + sum(quantized.losses.values())).backward()
        gradients.append(inputs.grad)
    assert torch.equal(*gradients)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_learned_under_autocast_is_what_float32_learns(name, dtype):
    states = []
    for enabled in (True, False):
        quantizer = trained(name, most_stages=3).train()
        quantized = quantizer(10 * latents(quantizer, frames=200))
        with torch.autocast("cpu", dtype, enabled=enabled):
            quantizer.update(quantized)
            quantizer.revive(quantized, 0)
        states.append(quantizer.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@CODED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_quantizer_of_a_half_precision_codec_stays_float32(name, dtype):
    quantizer = coded(name)
    inputs = latents(quantizer).to(dtype)
    expected = quantizer(inputs.float())
    torch.nn.Sequential(quantizer).to(dtype)
    quantized = quantizer(inputs)
    assert torch.equal(quantized.codes, expected.codes) and torch.equal(
        quantizer.encode(inputs), expected.codes
    )
    assert torch.equal(quantized.latents, expected.latents)
    assert torch.equal(quantizer.decode(expected.codes), expected.latents)


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_masked_frames_change_nothing(name, training):
    quantizer = trained(name).train(training)
    clean = latents(quantizer)
    mask = torch.ones(BATCH, FRAMES, dtype=torch.bool)
    mask[1, 10:] = mask[3, 3:] = False
    covered = mask.repeat_interleave(quantizer.stride, 1)
    dirty = clean.clone()
    dirty.permute(0, 2, 1)[~covered] = 1e6
    one, other = quantizer(clean, mask=mask), quantizer(dirty, mask=mask)
    assert torch.equal(one.latents, other.latents) and torch.equal(one.codes, other.codes)
    assert one.losses == other.losses
    assert not one.latents.permute(0, 2, 1)[~covered].any()
    assert (one.codes.permute(0, 2, 1)[~mask] == -1).all()
    nothing = quantizer(clean, mask=torch.zeros_like(mask))  # one library's loss is NaN then
    assert all(torch.isfinite(loss) for loss in nothing.losses.values()) and not nothing.latents.any()
    states = []
    for quantized in (one, other):
        learner = trained(name).train()
        learner.update(quantized)
        learner.revive(quantized, 0)
        states.append(learner.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@EVERY
def test_losses_are_means_over_frames(name):
    # Twice the same batch has the same losses: nothing depends on the batch size.
    quantizer = trained(name).train()
    inputs = latents(quantizer)
    once, twice = quantizer(inputs), quantizer(torch.cat([inputs, inputs]))
    for loss, value in once.losses.items():
        torch.testing.assert_close(twice.losses[loss], value, rtol=1e-5, atol=1e-7)


@EVERY
def test_a_frame_that_is_not_a_number_leaves_the_state_finite(name):
    quantizer = trained(name).train()
    broken = latents(quantizer)
    broken[2, :, 5] = math.nan
    quantized = quantizer(broken)
    quantizer.update(quantized)
    quantizer.revive(quantized, 0)
    assert all(torch.isfinite(value).all() for value in quantizer.state_dict().values())
    # A good batch teaches it all the same.
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.update(quantizer(latents(quantizer, 1)))
    changed = any((value != before[key]).any() for key, value in quantizer.state_dict().items())
    assert changed == any(any(stage.learns for stage in cascade.stages) for cascade in cascades(quantizer))


@EVERY
def test_every_loss_has_a_weight_and_reaches_the_input_or_the_codebook(name):
    quantizer = trained(name).train()
    inputs = latents(quantizer).requires_grad_()
    quantized = quantizer(inputs)
    assert quantized.losses.keys() == quantizer.loss_weights.keys()
    for loss in quantized.losses.values():
        assert loss.ndim == 0 and loss.requires_grad and float(loss.detach()) > 0
        loss.backward(retain_graph=True)
    quantized.latents.square().sum().backward()
    assert inputs.grad is not None and float(inputs.grad.abs().sum()) > 0
    for key, parameter in quantizer.named_parameters():
        # What is trained gets a gradient: a parameter without one stops DistributedDataParallel.
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


@EVERY
def test_bits_per_frame_are_the_logarithm_of_the_codebooks(name):
    quantizer = small_quantizer(name, DIM)
    if not quantizer.codebook_sizes:
        assert quantizer.bits_per_frame() == math.inf
        return
    assert quantizer.bits_per_frame() == pytest.approx(math.log2(math.prod(quantizer.codebook_sizes)))
    assert quantizer.bits_per_frame(1) == pytest.approx(math.log2(quantizer.codebook_sizes[0]))


@CODED
def test_bad_codes_and_depths_are_refused(name):
    quantizer = coded(name)
    codes = quantizer.encode(latents(quantizer))
    wrong = [codes.float(), codes - 2**40, codes + 2**40, codes[0], codes.repeat(1, 3, 1)]
    for bad in wrong:
        with pytest.raises(ValueError, match="codes must be"):
            quantizer.decode(bad)
    for depth in (0, quantizer.num_quantizers + 1, 1.5, torch.ones(BATCH + 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="num_quantizers must be"):
            (quantizer if isinstance(depth, torch.Tensor) else quantizer.encode)(latents(quantizer), depth)
    with pytest.raises(ValueError, match="beam must be at least 1"):
        quantizer.encode(latents(quantizer), beam=0)


@EVERY
def test_bad_latents_are_refused(name):
    quantizer = trained(name)
    good = latents(quantizer)
    for bad in (
        good[0],
        good[:, :-1],
        good[:0],
        good[..., :0],
        good[..., 1:] if quantizer.stride > 1 else good[0],
    ):
        with pytest.raises(ValueError, match=r"latents must be \[B, 16, F"):
            quantizer(bad)
        with pytest.raises(ValueError, match=r"latents must be \[B, 16, F"):
            quantizer.encode(bad)
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantizer.encode(torch.full_like(good, math.nan))
    for mask in (torch.ones(BATCH, FRAMES + 1, dtype=torch.bool), torch.ones(BATCH, FRAMES)):
        with pytest.raises(ValueError, match="mask must be bool"):
            quantizer(good, mask=mask)


@EVERY
def test_quantizer_dropout_is_uniform_over_the_depths(name):
    quantizer = small_quantizer(name, DIM)
    drawn = quantizer.draw_num_quantizers(4000, torch.Generator().manual_seed(0))
    dropout = max((cascade.dropout for cascade in cascades(quantizer)), default=0)
    if not dropout:
        assert drawn is None
        return
    depths, counts = drawn.unique(return_counts=True)
    assert depths.min() >= 1 and depths.max() == quantizer.num_quantizers
    uniform = torch.full((len(depths) - 1,), dropout / len(depths))
    torch.testing.assert_close(counts[:-1] / len(drawn), uniform, rtol=0, atol=0.02)


@CODED
def test_encode_and_decode_are_one_graph_for_the_exporter(name):
    class Both(torch.nn.Module):
        def __init__(self, quantizer):
            super().__init__()
            self.quantizer = quantizer

        def forward(self, x):
            codes = self.quantizer.encode(x)
            return codes, self.quantizer.decode(codes)

    quantizer = coded(name, most_stages=3)
    frames = torch.export.Dim("frames", min=2, max=4096)
    dynamic = {"x": {2: quantizer.stride * frames}}
    program = torch.export.export(Both(quantizer), (latents(quantizer),), dynamic_shapes=dynamic)
    longer = latents(quantizer, frames=57)
    codes, quantized = program.module()(longer)
    expected = quantizer.encode(longer)
    assert torch.equal(codes, expected)
    torch.testing.assert_close(quantized, quantizer.decode(expected))


@pytest.mark.slow
@EVERY
def test_forward_and_encode_compile_without_a_graph_break(name):
    quantizer = trained(name, most_stages=3).train()
    inputs = latents(quantizer)
    torch.compiler.reset()
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")(inputs)
    torch.testing.assert_close(compiled.latents, quantizer(inputs).latents)
    assert torch.equal(compiled.codes, quantizer(inputs).codes)
    if quantizer.codebook_sizes:
        encode = torch.compile(quantizer.encode, fullgraph=True, backend="eager")
        assert torch.equal(encode(inputs), compiled.codes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # in torch's own compiler
@pytest.mark.parametrize(
    "name",
    [
        "factorized_rvq",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("rvq", "grouped_bsq")),
    ],
)
def test_compiled_machine_code_gives_the_codes_and_gradients_of_eager(name):
    quantizer = trained(name, most_stages=3).train()
    torch.compiler.reset()
    found = []
    for forward in (quantizer, torch.compile(quantizer, fullgraph=True)):
        inputs = latents(quantizer).requires_grad_()
        quantized = forward(inputs)
        losses = sum(quantizer.loss_weights[key] * loss for key, loss in quantized.losses.items())
        (quantized.latents.square().sum() + losses).backward()
        found.append((quantized.codes, quantized.latents, losses, inputs.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    encode = torch.compile(quantizer.encode, fullgraph=True)
    assert torch.equal(encode(latents(quantizer)), found[0][0])
