"""Every yaml says what it is, composes and fits the code; what is wrong with a config is said at once."""

import importlib.util
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from composed import config, options

from codec.config import CONFIG_DIR, ConfigError, build, locate, locate_own, validate
from codec.layers.conv import Layers
from codec.quantizers.residual import Residual
from codec.training.resolve import BUILT

GROUPS = sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())
YAMLS = sorted(path.relative_to(CONFIG_DIR).as_posix() for path in CONFIG_DIR.rglob("*.yaml"))
CITING = ("autoencoder", "quantizer", "discriminator", "loss", "experiment")
WITHOUT_PAPER = {"none", "tiny"}
NEEDS = {"wandb": "wandb", "mlflow": "mlflow"}
RESIDUAL = "codec.quantizers.Residual"
LAYERS = "codec.layers.Layers"


def first_line(name: str) -> str:
    """What a yaml says about itself; Hydra's own directive may stand before it."""
    lines = (CONFIG_DIR / name).read_text().splitlines()
    return next(line for line in lines if not line.startswith("# @package"))


def layers(**overrides: object) -> dict[str, object]:
    return {"_target_": LAYERS, "causal": True, "weight_norm": False, "activation": "elu", **overrides}


def problems(node: object, **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(node, **options)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_begins_with_what_it_is(name):
    line = first_line(name)
    assert re.match(r"# \S.{15,}", line), f"{name} begins with {line!r}"
    group, stem = Path(name).parent.name, Path(name).stem
    if group in CITING and stem not in WITHOUT_PAPER:
        assert re.search(r"\barXiv:\d{4}\.\d{4,5}\b", line), f"{name}: its first line names no paper"
    if group == "experiment":
        assert line.startswith(f"# codec-train experiment={stem}"), f"{name}: {line}"


@pytest.mark.parametrize("group", GROUPS)
def test_no_two_options_describe_themselves_alike(group):
    lines = [first_line(f"{group}/{name}.yaml") for name in options(group)]
    assert len(set(lines)) == len(lines) > 0


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in options(group)])
def test_every_option_fits_the_code(choice):
    group, name = choice.split("=")
    if group == "logger" and name in NEEDS and not importlib.util.find_spec(NEEDS[name]):
        pytest.skip(f"needs the package {NEEDS[name]}")
    composed = config(choice)
    validate({part: composed[part] for part in BUILT})
    # A misspelt yaml would be checked nowhere: it has to reach a part that is built.
    assert group in BUILT or group in ("autoencoder", "quantizer", "experiment")
    assert all(composed["model"][part] == composed[part] for part in ("autoencoder", "quantizer"))


# Parts whose options differ, so that an option of an experiment for its own part does not fit them.
OTHER_PARTS = (
    ("autoencoder=tiny", "quantizer=fsq", "discriminator=dac", "loss=dac", "optimizer=adamw"),
    ("autoencoder=vocos_small", "quantizer=grouped_rvq", "discriminator=none", "loss=mel", "optimizer=adam"),
)


@pytest.mark.parametrize("parts", OTHER_PARTS)
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_part_of_an_experiment_can_be_another(experiment, parts):
    composed = config(f"experiment={experiment}", *parts)
    validate({part: composed[part] for part in BUILT})
    for part in parts:
        group, name = part.split("=")
        alone = config(part)[group]
        assert composed[group]["_target_"] == alone["_target_"]
        assert group == "optimizer" or composed[group].keys() == alone.keys(), name


def test_interpolated_options_follow_the_rate_and_the_channels():
    composed = config("sample_rate=8000", "channels=2", "autoencoder.latent_dim=48", "seed=7")
    assert composed["data"]["sample_rate"] == composed["model"]["sample_rate"] == 8000
    assert composed["data"]["channels"] == composed["model"]["autoencoder"]["audio_channels"] == 2
    assert composed["model"]["quantizer"]["dim"] == 48
    assert composed["data"]["seed"] == 7


def test_every_problem_of_a_whole_config_is_reported_at_once():
    composed = config()
    composed["quantizer"]["num_quantisers"] = 4
    composed["model"]["autoencoder"]["strides"] = [2, "four"]
    del composed["model"]["sample_rate"]
    composed["optimizer"]["generator_clip"] = "none"
    composed["model"]["quantizer"] = composed["quantizer"]
    assert sorted(problems({part: composed[part] for part in BUILT})) == [
        "model.autoencoder.strides: expected list of int, got [2, 'four']",
        "model.quantizer.num_quantisers: Residual has no such option; did you mean num_quantizers?",
        "model.sample_rate: missing; Codec needs it",
        "optimizer.generator_clip: expected float, got 'none'",
    ]


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("casual", True, "Layers has no such option; did you mean causal?"),
        ("zzz", 1, "Layers has no such option"),
        ("causal", 1, "expected bool, got 1"),
        ("causal", None, "expected bool, got None"),
        ("activation", ["elu"], "expected str, got ['elu']"),
    ],
)
def test_an_option_that_does_not_fit_is_named(option, value, problem):
    assert problems(layers(**{option: value}), path="autoencoder.layers") == [
        f"autoencoder.layers.{option}: {problem}"
    ]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("num_quantizers", 1.5, "int"),
        ("num_quantizers", True, "int"),
        ("num_quantizers", "8", "int"),
        ("num_quantizers", [8], "int"),
        ("dropout", "half", "float"),
        ("dropout", math.nan, "float"),
        ("dropout", math.inf, "float"),
        ("estimator", "rotation_trick", "a part with its _target_"),
        ("codebook", {"codebook_size": 4}, "a part with its _target_"),
        ("loss_weights", {"commitment": "much"}, "Mapping or null"),
        ("loss_weights", {"commitment": math.nan}, "Mapping or null"),
        ("loss_weights", 0.25, "Mapping or null"),
    ],
)
def test_a_value_of_another_type_is_refused(option, value, expected):
    (line,) = problems({"_target_": RESIDUAL, "_partial_": True, option: value}, path="quantizer")
    assert line == f"quantizer.{option}: expected {expected}, got {value!r}"


def test_a_choice_lists_what_there_is():
    (line,) = problems({"_target_": "codec.losses.Hinge", "reduction": "max"}, path="loss")
    assert line == "loss.reduction: expected one of 'mean', 'sum', got 'max'"


def test_an_integer_will_do_for_a_float():
    validate({"_target_": RESIDUAL, "_partial_": True, "dropout": 1})


def test_a_partial_may_leave_options_out_but_not_invent_any():
    validate({"_target_": RESIDUAL, "_partial_": True})
    assert problems({"_target_": RESIDUAL, "_partial_": True, "layers": 3}) == [
        "layers: Residual has no such option"
    ]


def test_problems_in_lists_carry_their_place():
    assert problems({"parts": [layers(), layers(causal=0)]}, path="loss") == [
        "loss.parts.1.causal: expected bool, got 0"
    ]


def test_building_nests_parts_and_leaves_partials_open():
    built = build({"one": layers(causal=False), "many": [layers(_partial_=True)], "number": 3})
    assert isinstance(built["one"], Layers) and built["one"].style["causal"] is False
    assert isinstance(built["many"][0], partial) and isinstance(built["many"][0](), Layers)
    assert built["number"] == 3


def test_what_a_constructor_refuses_carries_the_option_s_path():
    composed = config("quantizer.num_quantizers=0")
    with pytest.raises(ConfigError, match=r"^model\.quantizer: num_quantizers must be at least 1, got 0$"):
        build({"quantizer": composed["quantizer"]}, path="model")


@pytest.mark.parametrize("option", ["codebook_size=4611686018427387904", "codebook_size=100000000000000"])
def test_what_no_memory_holds_is_refused_in_words(option):
    composed = config(f"quantizer.codebook.{option}")
    with pytest.raises(ConfigError, match=r"^quantizer: cannot be built: .+$"):
        build(composed["quantizer"], path="quantizer")


def no_words() -> None:
    raise NotImplementedError


def test_a_part_that_fails_without_words_is_named():
    with pytest.raises(ConfigError, match=r"^part: cannot be built: NotImplementedError$"):
        build({"_target_": "part"}, lambda _: no_words, "part")


NO_TARGET = [
    "codec.layers.Layers2",
    "codec.layers",
    "codec.nothing.X",
    "nothing.X",
    "codec..X",
    "",
    None,
    5,
    ["x"],
]


@pytest.mark.parametrize("target", NO_TARGET)
def test_a_target_that_is_no_class_or_function_is_named(target):
    (line,) = problems({"_target_": target}, path="quantizer")
    assert line.startswith("quantizer._target_: ") and repr(target) in line


def test_users_may_name_their_own_parts():
    assert locate("collections.OrderedDict").__name__ == "OrderedDict"
    assert locate(RESIDUAL) is Residual


@pytest.mark.parametrize("target", [RESIDUAL, LAYERS, "codec.Codec"])
def test_a_saved_model_may_name_the_package_s_own_classes(target):
    part = locate_own(target)
    assert part.__module__.startswith("codec.") and part.__name__ == target.rpartition(".")[2]


HOSTILE = [
    "os.system",
    "builtins.eval",
    "codec.layers.conv.torch.hub.load",
    "codec.quantizers.residual.torch.nn.Linear",
    "codec.quantizers.Callable",
    "codec.model.codec.os.system",
    "codec.model.saving.load",
    "codec.commands.main.train",
    "codec.audio.synthetic.write_synthetic_folder",
    "codec.layers.Nothing",
    "codec.quantizers.Nothing",
    "codec.layers",
    "codec.layers.conv.__builtins__",
    "codec.layers.Layers.__init__",
    "codecs.open",
    "",
    None,
    5,
    ["codec.layers.Layers"],
]


@pytest.mark.parametrize("target", HOSTILE)
def test_a_saved_model_may_name_nothing_else(target):
    with pytest.raises(ConfigError, match=re.escape(repr(target))):
        locate_own(target)
    with pytest.raises(ConfigError):
        validate({"part": {"_target_": target}}, locate_own)
    with pytest.raises(ConfigError):
        build([{"_target_": target}], locate_own)


def test_a_refused_target_is_not_even_imported():
    script = """
import sys
from codec.config import ConfigError, locate_own
for target in ("xmlrpc.server.SimpleXMLRPCServer", "wsgiref.simple_server.demo_app",
               "codec.training.run.train", "codec.layers.conv.torch._inductor.compile",
               "codec.quantizers.residual.torch._dynamo.config"):
    try:
        locate_own(target)
    except ConfigError:
        continue
    sys.exit(f"{target} was accepted")
print(*{"xmlrpc", "wsgiref", "codec.training.run", "torch._inductor", "torch._dynamo"} & sys.modules.keys())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "\n", "")
