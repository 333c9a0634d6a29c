"""What cannot be is refused by name, whichever quantizer's yaml it is asked of."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from composed import config, distinct, shrink

from codec.config import ConfigError, build, validate

# By name of the option, what it cannot be: for 16 latent dimensions and at most 3 stages.
IMPOSSIBLE = {
    "codebook_size": [0, 1, -1, 2.5, None],
    "levels": [[8, 1], [], [0, 0, 0, 0], [8, 5, 2.5, 5], 8],
    "codebook_bits": [0, -1, 63],
    "codebook_dim": [0, -1],
    "quantizer_dim": [0, -1],
    "latent_dim": [0],
    "num_groups": [0, -2, 5],
    "num_quantizers": [0, -1, 1.5],
    "patch_length": [0, -1],
    "strides": [[4, 3, 1], [4, 2], [0, 0, 0]],
    "depths": [[0], [200], []],
    "dropout": [-0.1, 1.1, float("nan")],
    "decay": [-0.1, 1.1, float("nan")],
    "dead_threshold": [-0.1, 1.0, float("nan")],
    "kmeans_iterations": [-1],
    "diversity": [-1.0],
    "temperature": [-1.0, float("nan"), float("inf")],
    "shared": ["yes"],
    "loss_weights": [0.25, {"commitment": float("nan")}],
    "estimator": ["rotation_trick", None],
}


def places(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every option below a node that can be impossible."""
    for key, value in node.items():
        if key in IMPOSSIBLE:
            yield (*path, key)
        if isinstance(value, dict) and key != "loss_weights":
            yield from places(value, (*path, key))


def small(name: str) -> dict[str, Any]:
    node = config(f"quantizer={name}", "autoencoder.latent_dim=16")["quantizer"]
    shrink(node, {"codebook_size": 32, "quantizer_dim": 4, "num_quantizers": 3})
    return node


@pytest.mark.parametrize("name", [name for name in distinct("quantizer") if name != "none"])
def test_what_an_option_of_a_yaml_cannot_be_is_named(name):
    node = small(name)
    tried = 0
    for path in places(node):
        for value in IMPOSSIBLE[path[-1]]:
            changed = copy.deepcopy(node)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value
            with pytest.raises(ConfigError, match=path[-1]), torch.device("meta"):
                validate({"quantizer": changed})
                build(changed, path="quantizer")
            tried += 1
    assert tried


@pytest.mark.parametrize("name", distinct("quantizer"))
def test_a_misspelt_option_of_a_yaml_is_named_at_its_place(name):
    node = small(name)
    inner, path = node, "quantizer"
    while deeper := next((key for key in ("quantizer", "acoustic", "codebook") if key in inner), ""):
        inner, path = inner[deeper], f"{path}.{deeper}"
    inner["codebok_size"] = 4
    with pytest.raises(ConfigError, match=rf"^{path}\.codebok_size: \w+ has no such option"):
        validate({"quantizer": node})


@pytest.mark.parametrize("name", ["fsq", "lfq", "gumbel", "factorized_rvq", "random_projection"])
def test_an_estimator_that_no_gradient_would_pass_is_refused(name):
    node = config(f"quantizer={name}", "autoencoder.latent_dim=16")["quantizer"]
    cascade = node.get("quantizer", node)
    cascade["estimator"] = {"_target_": "codec.codebooks.rotation_trick", "_partial_": True}
    with pytest.raises(ConfigError, match=r"estimator has no effect .* set codebook\.estimator"):
        build(node, path="quantizer")


def test_sizes_of_codebooks_that_have_none_are_refused():
    node = config("quantizer=residual_fsq", "autoencoder.latent_dim=16")["quantizer"]
    cascade = node.get("quantizer", node)
    cascade |= {"codebook_sizes": [8, 8], "num_quantizers": 2}
    with pytest.raises(ConfigError, match="codebook_sizes: these codebooks have no codebook_size"):
        build(node, path="quantizer")
