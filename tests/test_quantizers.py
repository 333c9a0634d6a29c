"""Every quantizer of the family against an independent calculation, and against its literature's defects."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from codec.codebooks import nearest as search
from codec.codebooks.ema import CosineCodebook, EMACodebook
from codec.codebooks.estimators import rotation_trick, straight_through
from codec.codebooks.factorized import FactorizedCodebook
from codec.codebooks.fsq import FSQCodebook, ScaledFSQCodebook
from codec.codebooks.gradient import GradientCodebook, SimVQCodebook
from codec.codebooks.gumbel import GumbelCodebook
from codec.codebooks.lfq import BSQCodebook, LFQCodebook
from codec.codebooks.random_projection import RandomProjectionCodebook
from codec.codebooks.regularized import RegularizedCodebook
from codec.quantizers.continuous import Variational
from codec.quantizers.grouped import Grouped
from codec.quantizers.patches import Patches
from codec.quantizers.projected import Projected
from codec.quantizers.residual import Residual
from codec.quantizers.split import Split


def ema(size: int = 16, **options) -> partial:
    return partial(EMACodebook, codebook_size=size, **options)


def residual(dim: int, codebook=None, **options) -> Residual:
    options = {"loss_weights": {"commitment": 1.0}, **options}
    return Residual(dim, codebook or ema(), **options)


def nearest_by_force(points: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return (points[:, None].double() - vectors[None].double()).square().sum(-1).argmin(1)


# Search


@pytest.mark.parametrize("size", [2, 7, 256, 1024, 1000, 4096])
def test_search_is_brute_force_at_any_size_and_in_tiles(size, monkeypatch):
    points, vectors = torch.randn(300, 12), torch.randn(size, 12)
    expected = nearest_by_force(points, vectors)
    assert torch.equal(search.nearest(points, vectors), expected)
    monkeypatch.setattr(search, "TILE", 3 * size)
    assert torch.equal(search.nearest(points, vectors), expected)
    distances, order = (points[:, None].double() - vectors.double()).square().sum(-1).sort(1)
    for count in (2, min(size, 9)):
        few, errors = search.nearest_few(points, *search.with_half_norms(vectors), count)
        assert torch.equal(few, order[:, :count])
        torch.testing.assert_close(errors.double(), distances[:, :count], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [7, 256, 1024])
@pytest.mark.parametrize("count", [1, 4, 8, 12])
def test_the_best_of_several_paths_are_those_of_all_their_scores(size, count, monkeypatch):
    monkeypatch.setattr(search, "TILE", 4096)  # so that there are several
    points, vectors, offsets = torch.randn(50, 3, 5), torch.randn(size, 5), torch.randn(50, 3)
    bias = search.half_norms(vectors)
    indices, values = search.best_few(points, vectors, bias, count, offsets)
    scores = ((points.double() @ vectors.T.double() + bias) + offsets[..., None]).flatten(1)
    expected = scores.topk(count, dim=1)
    # Two scores may differ by less than float32 resolves; then either order is right.
    torch.testing.assert_close(scores.gather(1, indices), expected.values, rtol=0, atol=1e-5)
    assert all(len(set(row)) == count for row in indices.tolist())
    torch.testing.assert_close(values.double(), expected.values, rtol=0, atol=1e-5)


def test_a_codebook_of_2_to_the_18_is_searched_without_all_scores(monkeypatch):
    sizes = []
    original = search.linear
    monkeypatch.setattr(search, "linear", lambda *a: sizes.append(original(*a).numel()) or original(*a))
    codebook = EMACodebook(4, 2**18)
    points = codebook.vectors[torch.randint(2**18, (40,))]
    assert torch.equal(codebook.lookup(codebook.encode(points)), points)
    assert max(sizes) <= search.TILE and sum(sizes) == 40 * 2**18


def test_ties_go_to_the_lowest_code_in_every_block():
    few = torch.randn(64, 4)
    across, within = few.repeat(16, 1), few.repeat_interleave(16, 0)
    assert torch.equal(search.nearest(few, across), torch.arange(64))
    assert torch.equal(search.nearest(few, within), 16 * torch.arange(64))


# Gradients


def test_commitment_s_gradient_is_that_of_the_naive_cascade():
    quantizer = residual(6, num_quantizers=4)
    latents = torch.randn(3, 6, 10, requires_grad=True)
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[1, 4:] = False
    depths = torch.tensor([4, 2, 1])
    quantizer(latents, depths, mask).losses["commitment"].backward()
    twin = latents.detach().clone().requires_grad_()
    left, total = twin.permute(0, 2, 1), torch.zeros(())
    for index, stage in enumerate(quantizer.stages):
        codes = nearest_by_force(left.detach().reshape(-1, 6), stage.vectors)
        left = left - stage.vectors[codes].view(3, 10, 6)
        used = mask & (depths > index)[:, None]
        total = total + (left.square().mean(-1) * used).sum() / mask.sum()
    total.backward()
    torch.testing.assert_close(latents.grad, twin.grad)


@pytest.mark.parametrize("strides", [None, [4, 2, 1]])
def test_commitment_s_gradient_is_its_finite_difference(strides):
    torch.manual_seed(1)  # latents that the step brings from no code to another
    quantizer = residual(3, ema(4), num_quantizers=3, strides=strides)
    latents = torch.randn(2, 3, 4, dtype=torch.float32).requires_grad_()
    loss = quantizer(latents).losses["commitment"]
    loss.backward()
    direction = torch.randn_like(latents)
    step = 1e-3
    with torch.no_grad():
        one, other = (quantizer(latents + sign * step * direction) for sign in (1, -1))
    assert torch.equal(one.codes, other.codes)
    ahead, behind = float(one.losses["commitment"]), float(other.losses["commitment"])
    assert float((latents.grad * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-2)


@pytest.mark.parametrize("strides", [None, [4, 2, 1]])
def test_the_gradient_passes_unchanged_whatever_the_strides(strides):
    quantizer = residual(6, num_quantizers=3, strides=strides)
    latents, outward = torch.randn(2, 6, 8, requires_grad=True), torch.randn(2, 6, 8)
    (quantizer(latents).latents * outward).sum().backward()
    torch.testing.assert_close(latents.grad, outward, rtol=0, atol=0)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_gain_through_projections_does_not_grow_with_the_depth(depth):
    # The residual keeps the gradient of what was taken off it, so that all stages together have the gain of
    # one, here 1; with a residual that forgot it the gain would be the depth.
    codebook = partial(FactorizedCodebook, codebook_size=16, codebook_dim=6)
    quantizer = residual(6, codebook, num_quantizers=depth).requires_grad_(False)
    for stage in quantizer.stages:
        turn = torch.linalg.qr(torch.randn(6, 6)).Q
        stage.in_proj.weight, stage.out_proj.weight = turn, turn.T
    latents, outward = torch.randn(2, 6, 10, requires_grad=True), torch.randn(2, 6, 10)
    (quantizer(latents).latents * outward).sum().backward()
    torch.testing.assert_close(latents.grad, outward, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codebook", [FactorizedCodebook, LFQCodebook, GumbelCodebook, SimVQCodebook])
def test_every_stage_s_commitment_reaches_the_input_of_any_codebook(codebook):
    torch.manual_seed(0)
    quantizer = residual(8, codebook, num_quantizers=3)
    latents = torch.randn(1, 8, 50, requires_grad=True)
    gradients = [
        torch.autograd.grad(quantizer(latents, depth).losses["commitment"], latents)[0] for depth in (1, 2, 3)
    ]
    for earlier, later in itertools.pairwise(gradients):
        assert float((later - earlier).abs().max()) > 1e-4 * float(earlier.abs().max())


@pytest.mark.parametrize("make", [FactorizedCodebook, RandomProjectionCodebook])
def test_projected_look_ups_have_the_gradients_of_the_projection(make):
    torch.manual_seed(0)
    codebook = make(6, 16, codebook_dim=3)
    inputs, outward = torch.randn(20, 6, requires_grad=True), torch.randn(20, 6)
    sources = [inputs, *codebook.out_proj.parameters()]
    vectors, codes, _ = codebook(inputs, torch.ones(20, dtype=torch.bool))
    projected = codebook.project(inputs) if make is RandomProjectionCodebook else codebook.in_proj(inputs)
    plain = codebook.out_proj(projected + (codebook.vectors[codes] - projected).detach())
    torch.testing.assert_close(vectors, plain)
    got, expected = (torch.autograd.grad((one * outward).sum(), sources) for one in (vectors, plain))
    torch.testing.assert_close(got, expected)


def test_the_rotation_trick_rotates_and_scales_the_gradient():
    inputs, quantized = torch.randn(20, 5, requires_grad=True), torch.randn(20, 5)
    output = rotation_trick(inputs, quantized, max_scale=1e6)
    assert torch.equal(output, quantized)
    outward = torch.randn(20, 5)
    (output * outward).sum().backward()
    for x, q, given, got in zip(inputs.detach(), quantized, outward, inputs.grad, strict=True):
        # The rotation in the plane of x and q by the angle between them, from its definition.
        u = x / x.norm()
        w = functional.normalize(q - (q @ u) * u, dim=0)
        cos = (x @ q) / (x.norm() * q.norm())
        sin = math.sqrt(max(0.0, 1 - float(cos) ** 2))
        plane = torch.stack([u, w])
        turn = torch.eye(5) + plane.T @ (torch.tensor([[cos, -sin], [sin, cos]]) - torch.eye(2)) @ plane
        torch.testing.assert_close(turn @ u, q / q.norm(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got, q.norm() / x.norm() * turn.T @ given, rtol=1e-3, atol=1e-4)


def test_the_rotation_trick_is_bounded_for_near_silence_and_opposites():
    # One library's scale reaches 542 for inputs 60 dB below the codebook, and its gradient 2000.
    inputs = torch.cat([1e-3 * torch.randn(50, 8), torch.zeros(1, 8), -torch.ones(1, 8)]).requires_grad_()
    quantized = torch.cat([torch.randn(51, 8), torch.ones(1, 8)])
    outward = functional.normalize(torch.randn(52, 8), dim=1)
    (rotation_trick(inputs, quantized) * outward).sum().backward()
    assert torch.isfinite(inputs.grad).all()
    assert float(inputs.grad.norm(dim=1).max()) <= 2.0 + 1e-4
    torch.testing.assert_close(inputs.grad[-1], outward[-1])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_rotation_s_gain_does_not_grow_with_the_depth(depth):
    quantizer = residual(8, num_quantizers=depth, estimator=partial(rotation_trick, max_scale=1.0))
    latents = torch.randn(2, 8, 10, requires_grad=True)
    outward = torch.randn(2, 8, 10)
    (quantizer(latents).latents * outward).sum().backward()
    assert float(latents.grad.norm()) <= float(outward.norm()) * 1.001


@pytest.mark.parametrize(
    "codebook",
    [FactorizedCodebook, RandomProjectionCodebook, FSQCodebook, LFQCodebook, BSQCodebook],
)
def test_any_codebook_takes_either_estimator(codebook):
    gradients = []
    for estimator in (straight_through, rotation_trick):
        torch.manual_seed(0)
        latents = torch.randn(2, 8, 10, requires_grad=True)
        quantizer = residual(8, partial(codebook, estimator=estimator), num_quantizers=1)
        quantizer(latents).latents.square().sum().backward()
        gradients.append(latents.grad)
    assert not torch.allclose(*gradients)


# Codebooks


def test_a_gradient_codebook_s_loss_is_the_mean_squared_error():
    quantizer = residual(6, partial(GradientCodebook, codebook_size=16), num_quantizers=2)
    quantizer.loss_weights = {"commitment": 0.25, "codebook": 1.0}
    latents = torch.randn(2, 6, 10)
    quantized = quantizer(latents)
    torch.testing.assert_close(quantized.losses["codebook"], quantized.losses["commitment"])
    quantized.losses["codebook"].backward()
    used = quantized.codes[:, 0].unique()
    touched = quantizer.stages[0].vectors.grad.abs().sum(1) > 0
    assert set(touched.nonzero().flatten().tolist()) == set(used.tolist())


def test_dead_factorized_codes_are_revived_with_projected_frames():
    # DAC, SNAC and BigCodec have nothing for dead codes.
    torch.manual_seed(0)
    weights = {"commitment": 0.25, "codebook": 1.0}
    quantizer = residual(
        6,
        partial(FactorizedCodebook, codebook_size=64, codebook_dim=3),
        num_quantizers=1,
        loss_weights=weights,
    )
    (stage,) = quantizer.stages
    quantizer.initialise(torch.randn(2000, 6))
    with torch.no_grad():
        stage.vectors[32:] = stage.vectors[0]  # twins never win
    for step in range(300):
        with torch.no_grad():
            quantized = quantizer(torch.randn(1, 6, 500))
        quantizer.update(quantized)
        if step % 10 == 9:
            quantizer.revive(quantized, step)
    assert len(quantizer.encode(torch.randn(1, 6, 4000)).unique()) >= 60


@pytest.mark.parametrize("scale", [0.02, 50.0])
def test_a_factorized_codebook_starts_in_its_own_units(scale):
    # Adam's first steps are as long for codes of any length: they must not be nothing, nor all, beside them.
    torch.manual_seed(0)
    pool = scale * (5 + torch.randn(2000, 6))
    codebook = FactorizedCodebook(6, 64, codebook_dim=3)
    with torch.no_grad():
        codebook.initialise(pool)
        projected = codebook.in_proj(pool)
        assert float(projected.norm(dim=1).median()) == pytest.approx(1, rel=1e-3)
        torch.testing.assert_close(codebook.vectors.norm(dim=1), torch.ones(64))
        kept = codebook.out_proj(projected)
    # The way back undoes the way in: what is left has no part in the projected directions.
    torch.testing.assert_close(codebook.in_proj(kept), projected, rtol=1e-3, atol=1e-3)


def test_only_the_codebook_loss_moves_a_factorized_codebook():
    # As in DAC, whose decoder's gradient goes past the codes to the projections.
    weights = {"commitment": 0.25, "codebook": 1.0}
    quantizer = residual(
        6, partial(FactorizedCodebook, codebook_size=16), num_quantizers=2, loss_weights=weights
    )
    quantized = quantizer(torch.randn(2, 6, 10, requires_grad=True))
    (quantized.latents.square().sum() + quantized.losses["commitment"]).backward(retain_graph=True)
    for stage in quantizer.stages:
        assert stage.vectors.grad is None or not stage.vectors.grad.any()
        assert stage.out_proj.parametrizations.weight.original1.grad.any()
        assert stage.in_proj.parametrizations.weight.original1.grad.any()
    quantized.losses["codebook"].backward()
    assert all(stage.vectors.grad.any() for stage in quantizer.stages)


def test_a_cosine_codebook_ignores_the_length_of_its_inputs():
    codebook = CosineCodebook(6, 32)
    inputs = torch.randn(200, 6)
    codes = codebook.encode(inputs)
    cosines = functional.cosine_similarity(inputs[:, None], codebook.vectors[None], dim=-1)
    assert torch.equal(codes, cosines.argmax(1))
    assert torch.equal(codebook.encode(inputs * torch.rand(200, 1)), codes)
    torch.testing.assert_close(codebook.lookup(codes).norm(dim=1), torch.ones(200))
    codebook.initialise(inputs)
    for _ in range(30):
        codebook.update(*codebook.statistics(inputs, codebook.encode(inputs)))
    directions = functional.normalize(inputs, dim=1)
    codes = codebook.encode(inputs)
    for code in codes.unique():
        mean = functional.normalize(directions[codes == code].mean(0), dim=0)
        assert float(mean @ codebook.table()[code]) > 0.97


def test_one_gradient_step_of_simvq_moves_codes_that_nobody_uses():
    torch.manual_seed(0)
    codebook = SimVQCodebook(6, 64)
    inputs = torch.randn(5, 6)
    before = codebook.table().detach().clone()
    _, codes, losses = codebook(inputs, torch.ones(5, dtype=torch.bool))
    losses["codebook"].mean().backward()
    with torch.no_grad():
        codebook.map.weight -= 0.1 * codebook.map.weight.grad
    moved = (codebook.table() - before).norm(dim=1) > 1e-4
    assert len(codes.unique()) <= 5 and moved.all()


def test_a_shared_codebook_decays_once_a_step_and_learns_from_all_stages():
    # One library applies the moving average once per stage: decay^8.
    quantizer = residual(6, ema(decay=0.9), num_quantizers=8, shared=True)
    (stage,) = quantizer.codebooks
    quantizer.initialise(torch.randn(500, 6))
    usage = stage.usage.clone()
    quantized = quantizer(torch.randn(4, 6, 30))
    quantizer.update(quantized)
    shares = torch.bincount(quantized.codes.flatten(), minlength=16) / quantized.codes.numel()
    torch.testing.assert_close(stage.usage, 0.9 * usage + 0.1 * shares)
    assert len(quantizer.state_dict()) == 3


def test_twins_share_the_load_of_an_overused_code():
    torch.manual_seed(0)
    quantizer = residual(4, ema(8, revive_from="overused", dead_threshold=0.2), num_quantizers=1)
    stage = quantizer.stages[0]
    stage.vectors.copy_(torch.randn(8, 4) * 100)
    stage.vectors[5] = 0
    for step in range(300):
        quantized = quantizer(torch.randn(1, 4, 200))
        quantizer.update(quantized)
        quantizer.revive(quantized, step)
    shares = torch.bincount(quantizer.encode(torch.randn(1, 4, 4000)).flatten(), minlength=8) / 4000
    assert float(shares.max()) < 0.4 and float(shares.min()) > 0.02


def test_a_decay_of_one_freezes_a_codebook():
    quantizer = residual(4, ema(8, decay=1.0), num_quantizers=2)
    for stage in quantizer.stages:
        stage.usage[0] = 1  # and all others are out of use
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantized = quantizer(torch.randn(2, 4, 30))
    quantizer.update(quantized)
    assert int(quantizer.revive(quantized, 0).sum()) == 0
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


def test_stochastic_codes_follow_the_softmax_of_the_distances():
    codebook = EMACodebook(3, 5, temperature=2.0)
    point = torch.randn(1, 3)
    expected = (-(point - codebook.vectors).square().sum(1) / 2.0).softmax(0)
    inputs = point.expand(20_000, 3)
    used = torch.ones(20_000, dtype=torch.bool)
    _, codes, _ = codebook(inputs, used, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.bincount(codes, minlength=5) / 20_000, expected, rtol=0, atol=0.015)


def test_stochastic_codes_of_a_cosine_codebook_ignore_the_length_of_their_inputs():
    codebook = CosineCodebook(3, 5, temperature=1.0)
    point = functional.normalize(torch.randn(1, 3), dim=1)
    expected = (-(point - codebook.table()).square().sum(1)).softmax(0)
    used = torch.ones(20_000, dtype=torch.bool)
    for length in (0.01, 100):
        inputs = length * point.expand(20_000, 3)
        _, codes, _ = codebook(inputs, used, torch.Generator().manual_seed(0))
        torch.testing.assert_close(torch.bincount(codes, minlength=5) / 20_000, expected, rtol=0, atol=0.015)


@pytest.mark.parametrize("make", [EMACodebook, CosineCodebook, GradientCodebook, FactorizedCodebook])
def test_no_iterations_leave_the_random_start_and_a_threshold_of_zero_revives_nothing(make):
    codebook = partial(make, codebook_size=8, kmeans_iterations=0, dead_threshold=0.0)
    quantizer = residual(4, codebook, num_quantizers=2)
    assert quantizer.pool_size() == 0
    for stage in quantizer.stages:
        stage.usage[0] = 1
    assert not quantizer.revive(quantizer(torch.randn(2, 4, 30)), 0).any()
    assert residual(4, partial(make, codebook_size=8), num_quantizers=2).pool_size() == 16 * 8


def test_gumbel_codes_follow_the_softmax_of_the_scores_and_get_the_soft_gradient():
    torch.manual_seed(0)
    codebook = GumbelCodebook(4, 5)
    inputs = torch.randn(1, 4).expand(20_000, 4)
    used = torch.ones(20_000, dtype=torch.bool)
    vectors, codes, _ = codebook(inputs, used, torch.Generator().manual_seed(0))
    keys = codebook.memories @ codebook.to_keys.weight.T
    expected = (10 * functional.cosine_similarity(inputs[:1], keys, dim=1)).softmax(0).detach()
    torch.testing.assert_close(torch.bincount(codes, minlength=5) / 20_000, expected, rtol=0, atol=0.015)
    assert torch.equal(vectors, codebook.to_values(codebook.memories)[codes])
    assert codebook(inputs[:1], used[:1])[1] == expected.argmax()
    vectors.sum().backward()
    assert float(codebook.to_keys.weight.grad.abs().sum()) > 0


def test_a_gumbel_codebook_starts_by_saying_what_it_was_given():
    torch.manual_seed(0)
    codebook = GumbelCodebook(4, 256).requires_grad_(False)
    pool = 0.01 * functional.normalize(torch.randn(4096, 4), dim=1) + 3
    codebook.initialise(pool)
    used = torch.ones(len(pool), dtype=torch.bool)
    drawn, _, _ = codebook(pool, used, torch.Generator().manual_seed(0))
    spread = pool.var(0).sum()
    best, noisy = (
        (vectors - pool).square().sum(1).mean() / spread
        for vectors in (codebook.lookup(codebook.encode(pool)), drawn)
    )
    assert float(best) < 0.06 and float(best) < float(noisy) < 4 * float(best)


def test_orthogonality_and_diversity_are_zero_where_they_should_be():
    codebook = RegularizedCodebook(8, 8).requires_grad_(False)
    used = torch.ones(800, dtype=torch.bool)
    codebook.vectors.copy_(3 * torch.eye(8))
    everywhere, one = codebook.vectors.detach().repeat(100, 1), codebook.vectors[:1].detach().expand(800, 8)
    assert float(codebook.orthogonality()) == pytest.approx(0, abs=1e-6)
    assert float(codebook.diversity(everywhere, used)) == pytest.approx(0, abs=1e-4)
    assert float(codebook.diversity(one, used)) == pytest.approx(1, abs=1e-3)
    codebook.vectors.copy_(torch.ones(8, 8))
    assert float(codebook.orthogonality()) == pytest.approx(1, rel=1e-5)


# Grids


def test_fsq_codes_beyond_2_to_the_24_are_exact():
    # In float32 arithmetic 39 % of the codes of [9] * 8 come out wrong.
    codebook = FSQCodebook(18, [9] * 18)
    inputs = 5 * torch.randn(5000, 18)
    codes = codebook.encode(inputs)
    assert int(codes.max()) > 2**53
    digits = codebook.bound(inputs).round().long() + 4
    expected = [sum(int(d) * 9**i for i, d in enumerate(row)) for row in digits]
    assert codes.tolist() == expected
    assert torch.equal(codebook.lookup(codes), (digits - 4) / 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_grids_have_the_same_codes_in_every_precision(dtype):
    quantizers = [
        residual(9, partial(FSQCodebook, levels=[9] * 9), num_quantizers=1, loss_weights={}),
        residual(9, partial(LFQCodebook, codebook_bits=40), num_quantizers=1),
    ]
    for quantizer in quantizers:
        latents = (3 * torch.randn(1, 9, 400)).to(dtype)
        codes = quantizer.encode(latents.float())
        assert int(codes.max()) > 2**24
        expected = quantizer.decode(codes)
        with torch.autocast("cpu", dtype):
            assert torch.equal(quantizer.encode(latents), codes)
            assert torch.equal(quantizer(latents).codes, codes)
            assert torch.equal(quantizer.decode(codes), expected)


def test_the_entropy_of_more_codes_than_memory_is_finite_for_any_latents():
    # One library holds a number for each frame and code; others report infinite and negative losses.
    codebook = LFQCodebook(4, 40)
    joint = codebook.joint
    bits = []
    codebook.joint = lambda logits: bits.append(logits.shape[1]) or joint(logits[:, :10])
    for scale in (0.0, 1.0, 1e6):
        inputs = (scale * torch.randn(50, 4)).requires_grad_()
        _, _, losses = codebook(inputs, torch.ones(50, dtype=torch.bool))
        losses["entropy"].backward()
        assert 0 <= float(losses["entropy"].detach()) < math.inf
        assert torch.isfinite(inputs.grad).all()
    assert max(bits) <= 10 and sum(bits) == 3 * 40


@pytest.mark.parametrize("levels", [[3], [2, 2], [8, 5, 5, 5], [4, 7, 3]])
def test_every_point_of_a_grid_is_its_own_code(levels):
    for codebook in (FSQCodebook(len(levels), levels), ScaledFSQCodebook(len(levels), levels)):
        codes = torch.arange(math.prod(levels))
        vectors = codebook.lookup(codes)
        assert len(vectors.unique(dim=0)) == len(codes)
        if isinstance(codebook, ScaledFSQCodebook):
            assert torch.equal(codebook.encode(vectors), codes)


def test_a_scaled_grid_starts_near_the_best_step_and_refines_what_is_left():
    torch.manual_seed(0)
    pool = torch.randn(20_000, 3)
    quantizer = residual(3, partial(ScaledFSQCodebook, levels=[8, 8, 8]), num_quantizers=3)
    quantizer.initialise(pool)
    # The best uniform 8-level quantizer of a Gaussian has a step of 0.586 (Max 1960, table II).
    torch.testing.assert_close(quantizer.stages[0].steps, torch.full((3,), 0.586), rtol=0.08, atol=0)
    latents = pool.T[None]
    errors = [float((quantizer(latents, k).latents - latents).square().mean()) for k in (1, 2, 3)]
    assert errors[0] == pytest.approx(0.0374, rel=0.05)  # Max's distortion of that quantizer
    assert errors[1] < errors[0] / 8 and errors[2] < errors[1] / 3  # the tails come last


def test_candidates_of_a_grid_are_its_nearest_points():
    codebook = ScaledFSQCodebook(3, [4, 3, 5])
    inputs = 0.6 * torch.randn(200, 3)
    points = codebook.lookup(torch.arange(60))
    distances, nearest = (inputs[:, None] - points).square().sum(-1).sort(1)
    codes, errors = codebook.candidates(inputs, 2)
    assert torch.equal(codes, nearest[:, :2])
    torch.testing.assert_close(errors, distances[:, :2])


def test_bits_are_the_signs_and_bsq_is_bounded():
    for codebook in (LFQCodebook(6, 40), BSQCodebook(6, 40)):
        inputs = torch.randn(500, 6)
        codes = codebook.encode(inputs)
        signs = codebook.in_proj(inputs) > 0
        assert codes.tolist() == [sum(int(bit) << i for i, bit in enumerate(row)) for row in signs]
        bits = (2.0 * signs - 1) * codebook.size
        torch.testing.assert_close(codebook.lookup(codes), codebook.out_proj(bits))
    embedded = codebook.embed(inputs).detach()
    # arXiv 2406.07548: the error of binarising a point of the sphere is at most sqrt(2 - 2 / sqrt(L)).
    assert float((embedded - bits).norm(dim=1).max()) <= math.sqrt(2 - 2 / math.sqrt(40)) + 1e-5


def test_the_entropy_of_a_frame_is_that_of_the_softmax_over_all_codes():
    codebook = LFQCodebook(4, 5, inverse_temperature=0.3, diversity=0.0)
    inputs = torch.randn(50, 4)
    embedded = codebook.embed(inputs)
    every = 2.0 * torch.tensor(list(itertools.product((0, 1), repeat=5))) - 1
    logits = -0.3 * (embedded[:, None] - every).square().sum(-1)
    expected = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    got = codebook.entropy_loss(embedded, torch.ones(50, dtype=torch.bool))
    torch.testing.assert_close(got, expected)


def test_the_entropy_loss_is_least_for_sure_and_evenly_used_codes():
    codebook = LFQCodebook(2, 2)
    used = torch.ones(4, dtype=torch.bool)
    good = 9 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert float(codebook.entropy_loss(good, used)) == pytest.approx(0, abs=1e-4)
    assert float(codebook.entropy_loss(good.abs(), used)) == pytest.approx(math.log(4), abs=1e-3)
    assert float(codebook.entropy_loss(0 * good, used)) == pytest.approx(math.log(4), abs=1e-3)
    # Both bits evenly used, but always alike: two of four codes.
    assert float(codebook.entropy_loss(good[[0, 0, 3, 3]], used)) == pytest.approx(math.log(2), abs=1e-3)


def test_the_entropy_of_the_mean_frame_is_exact_within_a_group_of_bits():
    codebook = LFQCodebook(4, 4, inverse_temperature=0.2)
    codebook.LARGEST = 3
    embedded = torch.randn(50, 4)
    total = 4 * math.log(2)
    for half in (embedded[:, :2], embedded[:, 2:]):
        every = 2.0 * torch.tensor(list(itertools.product((0, 1), repeat=2))) - 1
        share = (-0.2 * (half[:, None] - every).square().sum(-1)).softmax(1)
        total += float((torch.xlogy(share.mean(0), share.mean(0)) - torch.xlogy(share, share).mean(0)).sum())
    got = codebook.entropy_loss(embedded, torch.ones(50, dtype=torch.bool))
    assert float(got) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("make", [LFQCodebook, BSQCodebook])
@pytest.mark.parametrize("dim", [5, 16])
def test_bits_start_evenly_used_whatever_the_latents_have_in_common(make, dim):
    # Latents of a young encoder: far from 0, and one direction louder than all others together.
    torch.manual_seed(0)
    pool = 30 + torch.randn(8192, dim) @ torch.randn(dim, dim) + 20 * torch.randn(8192, 1)
    codebook = make(dim, 8)
    codebook.initialise(pool)
    counts = codebook.encode(pool).bincount(minlength=256).double() / len(pool)
    entropy = -float(torch.xlogy(counts, counts).sum()) / math.log(2)
    assert entropy > (7.5 if dim >= 8 else 5.5)
    left = (codebook.lookup(codebook.encode(pool)).detach() - pool).square().mean()
    assert float(left) < 0.6 * float(pool.var(0).mean())


# Combinations


def test_groups_are_quantized_as_if_alone_and_interleaved_by_stage():
    torch.manual_seed(0)
    quantizer = Grouped(8, partial(residual, num_quantizers=3), num_groups=2)
    latents = torch.randn(2, 8, 10)
    quantized = quantizer(latents)
    for group, part in enumerate(quantizer.quantizers):
        alone = part(latents[:, 4 * group : 4 * group + 4])
        assert torch.equal(quantized.codes[:, group::2], alone.codes)
        assert torch.equal(quantized.latents[:, 4 * group : 4 * group + 4], alone.latents)
    assert not quantizer(latents, 1).latents[:, 4:].any()


def test_channelwise_vq_is_one_codebook_over_patches_of_every_channel():
    quantizer = Patches(
        4, partial(Grouped, quantizer=partial(residual, num_quantizers=1), num_groups=4, shared=True), 5
    )
    latents = torch.randn(2, 4, 15)
    quantized = quantizer(latents)
    (vectors,) = [part.vectors for part in quantizer.modules() if isinstance(part, EMACodebook)]
    assert quantized.codes.shape == (2, 4, 3)
    for channel, patch in itertools.product(range(4), range(3)):
        cut = latents[:, channel, 5 * patch : 5 * patch + 5]
        codes = nearest_by_force(cut, vectors)
        assert torch.equal(quantized.codes[:, channel, patch], codes)
        assert torch.equal(quantized.latents[:, channel, 5 * patch : 5 * patch + 5], vectors[codes])


def test_multi_scale_stages_code_the_means_of_what_is_left():
    quantizer = residual(3, num_quantizers=3, strides=[4, 2, 1])
    latents = torch.randn(1, 3, 8)
    quantized = quantizer(latents)
    assert quantized.codes.shape == (1, 7, 2) and quantizer.stride == 4
    left, column = latents[0].clone(), 0
    for stage, stride in zip(quantizer.stages, (4, 2, 1), strict=True):
        means = left.unfold(1, stride, stride).mean(-1)  # [D, 8 / stride]
        codes = nearest_by_force(means.T, stage.vectors)
        per_frame = 4 // stride
        for index, code in enumerate(codes.tolist()):
            assert int(quantized.codes[0, column + index % per_frame, index // per_frame]) == code
        left = left - stage.vectors[codes].T.repeat_interleave(stride, 1)
        column += per_frame
    torch.testing.assert_close(quantized.latents[0], latents[0] - left, rtol=0, atol=1e-6)


def test_the_acoustic_branch_codes_the_latents_not_what_the_semantic_one_left():
    quantizer = Split(6, partial(residual, num_quantizers=1), partial(residual, num_quantizers=3))
    latents = torch.randn(2, 6, 9)
    quantized = quantizer(latents)
    assert torch.equal(quantized.codes[:, 1:], quantizer.acoustic(latents).codes)
    expected = quantizer.semantic(latents).latents + quantizer.acoustic(latents).latents
    assert torch.equal(quantized.latents, expected)
    assert quantizer.draw_num_quantizers(50, torch.Generator().manual_seed(0)).min() == 2


def test_both_branches_losses_are_added_whatever_weights_they_were_given():
    # What one branch computes and its weights do not name must not vanish: training refuses it then.
    semantic = partial(residual, num_quantizers=1, loss_weights={"commitment": 1.0, "comitment": 1.0})
    acoustic = partial(residual, codebook=partial(GradientCodebook, codebook_size=8), num_quantizers=2)
    quantizer = Split(6, semantic, acoustic)
    latents = torch.randn(2, 6, 9)
    losses = [part(latents).losses for part in (quantizer.semantic, quantizer.acoustic, quantizer)]
    assert losses[2].keys() == {"commitment", "codebook"} != quantizer.loss_weights.keys()
    expected = losses[0]["commitment"] + losses[1]["commitment"]
    torch.testing.assert_close(losses[2]["commitment"], expected)


def test_a_projection_wraps_the_quantizer_it_was_given():
    quantizer = Projected(6, partial(residual, num_quantizers=2), 3)
    latents = torch.randn(2, 6, 9)
    inner = quantizer.quantizer(quantizer.in_proj(latents))
    assert torch.equal(quantizer(latents).codes, inner.codes)
    torch.testing.assert_close(quantizer(latents).latents, quantizer.out_proj(inner.latents))


def test_stages_may_have_codebooks_of_different_sizes():
    sizes = [32, 8, 4]
    assert Residual(4, lambda dim, **given: EMACodebook(dim, **given), num_quantizers=3, codebook_sizes=sizes)
    quantizer = residual(4, num_quantizers=3, codebook_sizes=sizes)
    assert quantizer.codebook_sizes == (32, 8, 4) and quantizer.bits_per_frame() == 10
    assert [stage.vectors.shape[0] for stage in quantizer.stages] == [32, 8, 4]


def test_a_variational_bottleneck_draws_around_the_mean_and_its_loss_is_the_divergence():
    quantizer = Variational(4, 2)
    latents = torch.randn(3, 4, 7)
    mean, log_variance = quantizer.to_moments(latents).chunk(2, 1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    quantized = quantizer(latents)
    torch.testing.assert_close(quantized.losses["kl"], expected)
    torch.testing.assert_close(quantized.latents, quantizer.out_proj(mean))
    quiet = float((0.5 * log_variance.detach()).exp().mean())
    assert quiet < 0.1  # the latents are heard over the noise before anything is learned
    assert quantizer.loss_weights == {"kl": 0.01} and Variational(4, 2, {}).loss_weights == {}
    drawn = quantizer(latents.expand(3, 4, 7), generator=torch.Generator().manual_seed(0)).latents
    assert not torch.allclose(drawn, quantized.latents)


# Beam search


def test_a_beam_as_wide_as_all_paths_is_exhaustive():
    torch.manual_seed(0)
    quantizer = residual(3, ema(4), num_quantizers=3)
    latents = torch.randn(1, 3, 30)
    tables = [stage.vectors for stage in quantizer.stages]
    paths = torch.tensor(list(itertools.product(range(4), repeat=3)))
    sums = sum(table[paths[:, index]] for index, table in enumerate(tables))
    best = paths[nearest_by_force(latents[0].T, sums)]
    assert torch.equal(quantizer.encode(latents, beam=16)[0].T, best)


def test_a_beam_is_worth_half_a_decibel_and_more():
    # arXiv 2509.19186 and our own measurement: +0.5 dB for 2 paths, +0.8 dB for 4, at the same bits.
    torch.manual_seed(0)
    mixing = torch.randn(16, 16)
    quantizer = residual(16, ema(64), num_quantizers=6)
    quantizer.initialise(torch.randn(4096, 16) @ mixing)
    latents = (torch.randn(600, 16) @ mixing).T[None]
    snr = {}
    for beam in (1, 2, 4):
        error = latents - quantizer.decode(quantizer.encode(latents, beam=beam))
        snr[beam] = 10 * math.log10(float(latents.square().sum() / error.square().sum()))
    assert snr[2] - snr[1] > 0.35 and snr[4] - snr[1] > 0.6


def test_a_codebook_without_alternatives_refuses_a_beam_by_name():
    quantizer = residual(4, FSQCodebook, num_quantizers=2, loss_weights={})
    with pytest.raises(ValueError, match=r"beam: FSQCodebook .* use beam=1"):
        quantizer.encode(torch.randn(1, 4, 5), beam=2)


# Bad options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMACodebook(4, 1), "codebook_size must be at least 2"),
        (lambda: EMACodebook(4, 8, decay=1.1), "decay must be 0 to 1"),
        (lambda: EMACodebook(4, 8, temperature=-1), "temperature must be at least 0"),
        (lambda: FactorizedCodebook(4, 0), "codebook_size must be at least 2"),
        (lambda: EMACodebook(4, 8, temperature=math.nan), "temperature must be at least 0"),
        (lambda: GumbelCodebook(4, 8, temperature=0), "temperature must be positive"),
        (lambda: GumbelCodebook(4, 8, kmeans_iterations=-1), "kmeans_iterations at least 0"),
        (
            lambda: rotation_trick(torch.ones(2, 4), torch.ones(2, 4), max_scale=0),
            "max_scale must be positive",
        ),
        (lambda: FSQCodebook(4, [8, 1]), "levels must be at least 2"),
        (lambda: FSQCodebook(4, [9] * 20), "product of levels must be below"),
        (lambda: ScaledFSQCodebook(4, [8, 8]), "levels must name all 4 dimensions"),
        (lambda: LFQCodebook(4, 0), "codebook_bits must be 1 to 62"),
        (lambda: Grouped(10, residual, 4), "num_groups must divide the 10"),
        (lambda: Patches(10, residual, 0), "patch_length must be at least 1"),
        (lambda: Projected(10, residual, 0), "quantizer_dim must be at least 1"),
        (lambda: residual(4, num_quantizers=0), "num_quantizers must be at least 1"),
        (lambda: residual(4, num_quantizers=2, strides=[4, 3]), "strides must divide the largest"),
        (lambda: residual(4, num_quantizers=2, strides=[4]), "strides must be num_quantizers = 2 numbers"),
        (lambda: residual(4, num_quantizers=2, codebook_sizes=[4]), "codebook_sizes must be num_quantizers"),
        (lambda: residual(4, num_quantizers=2, depths=[3]), "depths must be 1 to 2"),
        (lambda: residual(4, shared=True, codebook_sizes=[4] * 8), "a shared codebook has one size"),
        (lambda: Variational(4, 0), "latent_dim must be at least 1"),
    ],
)
def test_impossible_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
