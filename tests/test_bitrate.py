"""Equal bitrate: what the solver makes of a config has the bitrate that was asked for, and stays itself."""

import math
from functools import partial

import pytest
import torch
from composed import NO_CODES, config, options
from omegaconf import OmegaConf
from torch import nn

from codec.config import ConfigError, build
from codec.sweep.bitrate import Knob, at_bitrate, closest_levels, with_count
from codec.training.resolve import resolve

FRAME_RATE = 16000 / 128  # of experiment=tiny


class Stages(nn.Module):
    """Stands for a residual quantizer: with strides, the coarsest stage is a frame."""

    stride = 1

    def __init__(self, dim, codebook, num_quantizers=1, strides=None, codebook_sizes=None):
        super().__init__()
        self.dim = dim
        sizes = codebook_sizes or [2 ** codebook(dim).bits] * num_quantizers
        strides = strides or [1] * len(sizes)
        if len(strides) != len(sizes):
            raise ValueError(f"{len(strides)} strides for {len(sizes)} stages")
        bits = sum(math.log2(size) * max(strides) / s for size, s in zip(sizes, strides, strict=True))
        self.bits = bits / max(strides)  # of a latent frame

    def bits_per_frame(self, num_quantizers=None):
        return self.bits


class Signs(nn.Module):
    """Stands for LFQ and BSQ."""

    def __init__(self, dim, codebook_bits):
        super().__init__()
        self.bits = codebook_bits


class Entries(nn.Module):
    def __init__(self, dim, codebook_size=1024):
        super().__init__()
        self.bits = math.log2(codebook_size)


class Groups(Stages):
    def __init__(self, dim, quantizer, num_groups=2):
        nn.Module.__init__(self)
        self.dim = dim
        if dim % num_groups:
            raise ValueError(f"num_groups {num_groups} does not divide {dim}")
        self.bits = sum(quantizer(dim=dim // num_groups).bits for _ in range(num_groups))


class Branches(Stages):
    def __init__(self, dim, quantizers):
        nn.Module.__init__(self)
        self.dim, self.bits = dim, sum(quantizer(dim=dim).bits for quantizer in quantizers)


class Patches(Stages):
    def __init__(self, dim, quantizer, patch_length):
        nn.Module.__init__(self)
        self.dim, self.bits = dim, quantizer(dim=dim * patch_length).bits / patch_length


def model(quantizer: dict) -> dict:
    return {**config("experiment=tiny")["model"], "quantizer": {"dim": 32, **quantizer}}


def target(name: str, **arguments: object) -> dict:
    return {"_target_": f"test_bitrate.{name}", **arguments}


def stages(codebook: dict | None = None, **arguments: object) -> dict:
    codebook = codebook or target("Entries", _partial_=True, codebook_size=1024)
    return target("Stages", codebook=codebook, **arguments)


SIGNS = target("Signs", _partial_=True, codebook_bits=10)
COUNT = Knob(("num_quantizers",), 32, {})
EIGHT = stages(_partial_=True, num_quantizers=8)


def kbps(node: dict, quantizer: dict) -> float:
    return build({**node, "quantizer": quantizer}).bitrate() / 1000


def reaches(quantizer: dict, rate: float) -> dict:
    node = model(quantizer)
    solved = at_bitrate(node, rate)
    assert kbps(node, solved) == pytest.approx(rate, rel=0.01)
    return solved


@pytest.mark.parametrize("rate", [1.25, 2.5, 6, 10, 24])
def test_stages_change_first_and_books_stay(rate):
    solved = reaches({**config("quantizer=rvq")["quantizer"], "dim": 32}, rate)
    if rate % 1.25 == 0:
        assert solved["num_quantizers"] * 10 * FRAME_RATE == rate * 1000
        assert solved["codebook"]["codebook_size"] == 1024
    else:
        assert math.log2(solved["codebook"]["codebook_size"]) % 1 == 0


def test_an_odd_size_is_better_than_another_quantizer():
    solved = reaches({**config("quantizer=rvq")["quantizer"], "dim": 32}, 9.3)
    assert solved["num_quantizers"] == 7 and 1024 < solved["codebook"]["codebook_size"] < 2048


def test_depths_that_training_draws_stay_within_the_stages():
    node = with_count({"num_quantizers": 32, "depths": [2, 4, 8, 16, 32]}, COUNT, 12)
    assert node == {"num_quantizers": 12, "depths": [2, 4, 8, 12]}


def test_a_quantizer_that_is_there_already_is_left_alone():
    node = config("experiment=tiny")["model"]
    assert at_bitrate(node, 8.0) == node["quantizer"]


@pytest.mark.parametrize("rate", [0.5, 1, 1.7, 2, 2.2])
def test_levels_of_one_fsq_follow_and_it_stays_one(rate):
    solved = reaches(config("experiment=tiny", "quantizer=fsq")["quantizer"], rate)
    assert solved["num_quantizers"] == 1
    assert math.log2(math.prod(solved["codebook"]["levels"])) * FRAME_RATE == pytest.approx(
        rate * 1000, rel=0.01
    )


def test_residual_fsq_keeps_its_levels():
    fsq = {**config("experiment=tiny", "quantizer=fsq")["quantizer"], "num_quantizers": 4}
    fsq["codebook"]["levels"] = [8, 5, 5, 5]
    solved = reaches(fsq, 6.2)
    assert (solved["num_quantizers"], solved["codebook"]["levels"]) == (5, [8, 5, 5, 5])
    other = reaches(fsq, 6.8)
    assert other["num_quantizers"] == 5 and other["codebook"]["levels"] != [8, 5, 5, 5]


@pytest.mark.parametrize(
    ("quantizer", "rate", "path", "value"),
    [
        (stages(SIGNS, num_quantizers=1), 2.0, "codebook_bits", 16),
        (stages(SIGNS, num_quantizers=4), 2.5, "codebook_bits", 10),
        (stages(num_quantizers=1), 1.0, "codebook_size", 256),
        (stages(num_quantizers=3, strides=[4, 2, 1]), 1.96875, "codebook_size", 512),
        (stages(num_quantizers=3, strides=[4, 2, 1]), 2.0, "codebook_size", 565),
        (stages(num_quantizers=3, strides=[4, 2, 1]), 4.6875, "strides", [4, 2, 1, 1, 1]),
        (stages(num_quantizers=2, codebook_sizes=[1024, 256]), 2.5, "codebook_sizes", [2048, 512]),
        (target("Groups", quantizer=stages(_partial_=True), num_groups=2), 5.0, "num_groups", 4),
        (target("Groups", quantizer=stages(_partial_=True, num_quantizers=2)), 7.5, "num_quantizers", 3),
        (target("Patches", quantizer=EIGHT, patch_length=4), 2.5, "num_quantizers", 8),
    ],
)  # fmt: skip
def test_every_shape_of_quantizer_is_solved(quantizer, rate, path, value):
    found = reaches(quantizer, rate)
    assert f"{path!r}: {value}" in str(found), found


def test_the_branch_with_most_stages_gives_way():
    branches = [stages(_partial_=True, num_quantizers=1), stages(_partial_=True, num_quantizers=7)]
    solved = reaches(target("Branches", quantizers=branches), 5.0)
    assert [branch["num_quantizers"] for branch in solved["quantizers"]] == [1, 3]


def test_groups_that_do_not_divide_are_passed_over():
    quantizer = target("Groups", quantizer=stages(_partial_=True), num_groups=2)
    assert reaches(quantizer, 3.75)["num_groups"] in (2, 4)  # three groups of ten bits would fit, but 32 / 3


def test_what_cannot_be_reached_says_what_can():
    node = config("experiment=tiny", "quantizer=fsq")["model"]
    with pytest.raises(ConfigError, match=r"6 kbit/s; the nearest is 2\.25 .* residual") as caught:
        at_bitrate(node, 6.0)
    assert "quantizer.num_quantizers=2" in str(caught.value)


def test_no_codes_are_the_ceiling_only_if_asked_for():
    node = config("quantizer=none")["model"]
    with pytest.raises(ConfigError, match=r"sweep\.unlimited=true"):
        at_bitrate(node, 6.0)
    assert at_bitrate(node, 6.0, unlimited=True) == node["quantizer"]


@pytest.mark.parametrize("options", [{"kbps": 0.0}, {"kbps": -1.0}, {"kbps": 6.0, "tolerance": 1.0}])
def test_impossible_targets_are_refused(options):
    with pytest.raises(ValueError, match="kbps"):
        at_bitrate(config()["model"], **options)


@pytest.mark.parametrize("bits", [1, 2.5, 4, 7.97, 10, 12.3, 16, 18])
def test_levels_are_close_to_any_number_of_bits(bits):
    levels = min(closest_levels(bits, 4), key=lambda found: abs(sum(map(math.log2, found)) - bits))
    assert min(levels) >= 2
    tolerance = 0.01 if bits % 1 == 0 or bits > 4 else 0.08  # few products are small
    assert sum(map(math.log2, levels)) == pytest.approx(bits, rel=tolerance)


def test_the_solved_quantizer_is_the_model_s():
    composed = partial(OmegaConf.create, config("experiment=tiny", "sweep=equal_bitrate", "sweep.kbps=2"))()
    composed.model.quantizer = "${quantizer}"
    found = resolve(composed)
    assert found["quantizer"] == found["model"]["quantizer"]
    with torch.device("meta"):
        assert build(found["model"]).bitrate() == 2000
    assert composed.quantizer.num_quantizers == 8  # what was composed is as it was


SINGLE = {"bsq", "factorized_vq", "fsq", "fsq_65536", "lfq", "random_projection", "simvq", "vq", "vq_4096"}
SINGLE |= {"vq_cosine", "vq_gradient", "vq_regularized"}  # 18 bits a frame at most, here 1.35 kbit/s
WHOLE_BITS = {"bsq", "lfq", "grouped_bsq", "grouped_lfq"}  # no number of groups divides 53 bits or 107


@pytest.fixture(scope="module")
def with_codes() -> dict[str, dict]:
    names = sorted(set(options("quantizer")) - NO_CODES)
    return {name: config(f"quantizer={name}")["model"] for name in names}


@pytest.mark.parametrize(
    ("rate", "none_fits"),
    [(1, {"bsq", "lfq", "grouped_bsq", "grouped_lfq"}), (4, SINGLE | WHOLE_BITS), (6, SINGLE)],
)
def test_every_quantizer_of_the_project_has_a_bitrate_or_cannot(with_codes, rate, none_fits):
    """At 75 frames a second, where 4 kbit/s are 53.3 bits a frame: no power of two fits."""
    refused = set()
    for name, node in with_codes.items():
        try:
            assert kbps(node, at_bitrate(node, rate)) == pytest.approx(rate, rel=0.01), name
        except ConfigError as error:
            refused.add(name)
            assert f"cannot have {rate} kbit/s; the nearest is" in str(error)
            assert ("num_quantizers=2 or more" in str(error)) == (name in SINGLE), name
    assert refused == none_fits


def test_a_refusal_names_the_options_that_it_changed():
    node = config("experiment=tiny", "quantizer=split_rvq")["model"]
    with pytest.raises(ConfigError) as refused:
        at_bitrate(node, 1.0)  # the semantic codebook alone has 1.25 kbit/s
    place = "quantizer.acoustic.quantizer"
    changed = f"{place}.num_quantizers=1, {place}.codebook.codebook_size=2"
    assert f"the nearest is 1.375 kbit/s with {changed} " in str(refused.value)
