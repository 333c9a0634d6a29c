"""Files that were made to do harm: refused in words, soon, and before memory is taken."""

import json
import resource
import time
from contextlib import contextmanager

import pytest
import torch
import yaml
from composed import config
from safetensors.torch import save_file

import codec
from codec.config import ConfigError
from codec.huggingface import convert as huggingface
from codec.model.saving import build_codec, open_checkpoint
from codec.model.untrusted import MOST_BYTES, bounded_building, read_yaml
from codec.system.files import sha256
from codec.training.checkpoints import AtomicCheckpoints

NARROW = ["autoencoder.latent_dim=8", "autoencoder.encoder_channels=2", "autoencoder.decoder_channels=2"]
STAGES = ["quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=8", "sample_rate=16000"]
APART = "weights and config are of different models"
TOO_LARGE = "is more than such a model can have"


@contextmanager
def refused(message):
    """Expect a ConfigError, soon and in little memory: the attacks took up to a minute, or all there is."""
    start, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=message):
        yield
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500 * 2**10  # KiB


def small(autoencoder="encodec", quantizer="rvq"):
    torch.manual_seed(0)
    return build_codec(
        config(f"autoencoder={autoencoder}", f"quantizer={quantizer}", *NARROW, *STAGES)["model"]
    )


def described(folder, **changes):
    """A saved codec whose description was changed: `path__to__option=value`."""
    small().save(folder)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = saved["model"]
        for parent in parents:
            node = node[parent]
        node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer__num_quantizers": 10**3}, APART),
        ({"quantizer__num_quantizers": 10**5}, "at most 4096"),
        ({"quantizer__num_quantizers": 10**8}, TOO_LARGE),
        ({"quantizer__num_quantizers": 10**6, "quantizer__shared": True}, "at most 4096"),
        ({"quantizer__num_quantizers": 2, "quantizer__strides": [10**6, 1]}, "codes a frame"),
        ({"quantizer__dim": 2**62, "autoencoder__latent_dim": 2**62}, TOO_LARGE),
        ({"autoencoder__bottleneck__num_layers": 8000}, APART),
        ({"autoencoder__residual_units__dilations": [1] * 5000}, APART),
        ({"autoencoder__residual_units__dilations": [1] * 9000}, "not so long"),
        ({"autoencoder__residual_units__dilations": [1] * 10**5}, "larger than 256 KiB"),
        ({"sample_rate": 10**18}, TOO_LARGE),
    ],
)
def test_a_description_far_beyond_its_weights_is_refused_soon(changes, message, tmp_path):
    folder = described(tmp_path, **changes)
    with refused(message):
        codec.load(folder)


def test_windows_without_weights_are_bounded(tmp_path):
    small("encodec").save(tmp_path)
    node = config("autoencoder=vocos", "autoencoder.latent_dim=8")["model"]["autoencoder"]
    node |= {"hop": 2**19, "windows": [2**20, 2**20]}
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    saved["model"]["autoencoder"] = node
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with refused("at most 1048576 samples long"):
        codec.load(tmp_path)


ALIASES = "model:\n  a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  {there}: &{there} [{', '.join([f'*{here}'] * 9)}]\n"
    for here, there in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, r"config.yaml: damaged: an alias \(\*a\)"),
        ("model: " + "[" * 5000 + "]" * 5000, "config.yaml: damaged"),
        ("model: {a: 2001-13-45}", "config.yaml: damaged: month must be"),
        ("model: {a: " + "9" * 5000 + "}", "config.yaml: damaged: Exceeds the limit"),
        ("model: {a: 2001-12-13}", "model.a: expected a plain value, got date"),
        ("model: {1: x}", "model: expected a plain value, got dict"),
        ("model: {a: " + "[" * 40 + "]" * 40 + "}", "not so long or deeply nested"),
        ("model: {a: \xff}", "damaged"),
        ("#" * (MOST_BYTES + 1), "larger than 256 KiB"),
    ],
)
def test_a_yaml_that_is_no_description_is_refused_in_words(text, message, tmp_path):
    small().save(tmp_path)
    sum_line = f"\nsha256: {sha256(tmp_path / 'model.safetensors')}\n"
    (tmp_path / "config.yaml").write_bytes((text + sum_line).encode("latin-1"))
    with refused(message):
        codec.load(tmp_path)


def test_a_codec_of_shared_nodes_is_saved_without_aliases(tmp_path):
    one = small()
    weights = {"commitment": 1.0}
    one.config["quantizer"]["loss_weights"] = one.config["autoencoder"]["twice"] = weights
    one.save(tmp_path)
    assert read_yaml(tmp_path / "config.yaml")["model"]["quantizer"]["loss_weights"] == weights


@pytest.mark.parametrize(
    ("tensors", "message"),
    [(100_000, "of more tensors than any model: a header of"), (20_000, "20000 tensors; the largest")],
)
@pytest.mark.parametrize("kind", ["codec", "transformers"])
def test_a_header_of_very_many_tensors_is_refused_soon(kind, tensors, message, tmp_path):
    huggingface.save(small(), tmp_path) if kind == "transformers" else small().save(tmp_path)
    entries = {
        f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(tensors)
    }
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4 * tensors)
    (tmp_path / "model.safetensors").write_bytes(content)
    with refused(message):
        huggingface.load_any(tmp_path)


def test_what_is_built_at_the_same_time_is_not_counted():
    import threading

    with bounded_building(0):
        thread = threading.Thread(
            target=lambda: torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(3000)))
        )
        thread.start()
        thread.join()
        small()
    with pytest.raises(ConfigError, match=APART), bounded_building(0):
        torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(3000)))
    torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(3000)))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("dac", {"n_codebooks": 10**7}, TOO_LARGE),
        ("dac", {"n_codebooks": 2000}, APART),
        ("dac", {"codebook_size": 2**62}, TOO_LARGE),
        ("encodec", {"num_residual_layers": 10**8}, "num_residual_layers 100000000"),
        ("encodec", {"target_bandwidths": [10**9]}, "num_quantizers|more than such"),
        ("encodec", {"target_bandwidths": [1e308]}, "cannot convert|integer"),
        ("encodec", {"target_bandwidths": []}, "index"),
        ("encodec", {"upsampling_ratios": [2**62] * 64}, "zero|long"),
        ("encodec", {"codebook_size": 1}, "zero|codebook_size"),
        ("encodec", {"sampling_rate": 10**30}, "sampling_rate"),
        ("encodec", {"model_type": ["encodec"]}, r"model_type is \['encodec'\]"),
        ("encodec", {"model_type": None}, "model_type is None"),
    ],
)
def test_a_hostile_config_of_transformers_is_refused_soon(kind, change, message, tmp_path):
    one = small()
    if kind == "dac":
        sizes = ["autoencoder.latent_dim=32", *NARROW[1:], "quantizer.num_quantizers=3", "sample_rate=16000"]
        one = build_codec(config("autoencoder=dac_16khz", "quantizer=factorized_rvq", *sizes)["model"])
    huggingface.save(one, tmp_path)
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(given | change))
    with refused(message):
        huggingface.load(tmp_path)


@pytest.mark.parametrize("part", ["autoencoder", "quantizer"])
def test_a_part_without_its_target_is_named(part, tmp_path):
    small().save(tmp_path)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del saved["model"][part]["_target_"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with refused(rf"model\.{part}: expected a part with its _target_, got "):
        codec.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_ruined_weights_are_refused(value, tmp_path):
    one = small()
    one.save(tmp_path)
    weights = one.state_dict()
    name = "quantizer.codebooks.1.vectors"
    weights[name][3, 2] = value
    save_file(weights, tmp_path / "model.safetensors")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    saved["sha256"] = sha256(tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with refused(f"NaN or infinite weights in {name}"):
        codec.load(tmp_path)


def test_a_checkpoint_s_lists_that_multiply_are_refused(tmp_path):
    many = ["x"]
    for _ in range(30):
        many = [many, many]
    for model, stages in (({"a": many}, []), ({}, many)):
        content = {"model": model, "stages": stages, "state_dict": {}, "global_step": 1}
        torch.save(content, tmp_path / "last.ckpt")
        with refused("not so long or deeply nested"):
            open_checkpoint(tmp_path / "last.ckpt")


def test_lightning_unpickles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's own default, turned off

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        AtomicCheckpoints().load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()
