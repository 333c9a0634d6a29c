"""`weights=PATH` trains a saved codec further: its architecture, its weights, its codebooks."""

import pytest
import torch
import yaml
from composed import config, tiny_run
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from codec.audio.synthetic import write_synthetic_folder
from codec.config import ConfigError
from codec.huggingface import convert as huggingface
from codec.model.saving import build_codec, load
from codec.training import run
from codec.training.build import build_parts
from codec.training.finetuning import adopt
from codec.training.resolve import resolve


@pytest.fixture
def wavs(tmp_path):
    write_synthetic_folder(tmp_path / "wavs", seconds=10, sample_rate=16000)
    return tmp_path / "wavs"


def saved(tmp_path, *overrides: str):
    """A codec of another shape than the tiny one, with started codebooks."""
    torch.manual_seed(1)
    narrow = ["autoencoder.latent_dim=8", "autoencoder.encoder_channels=2", "autoencoder.decoder_channels=2"]
    stages = ["quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=8", "sample_rate=16000"]
    codec = build_codec(config("autoencoder=encodec", "quantizer=rvq", *narrow, *stages, *overrides)["model"])
    codec.quantizer.initialise(torch.randn(codec.quantizer.pool_size(), 8))
    return codec.eval()


def fine_tuning(tmp_path, wavs, source, *overrides: str):
    return OmegaConf.create(tiny_run(tmp_path, wavs, f"weights={source}", "trainer.max_steps=2", *overrides))


@pytest.mark.parametrize("kind", ["codec", "huggingface"])
def test_a_run_starts_from_the_weights_and_keeps_their_codebooks(kind, tmp_path, wavs):
    codec = saved(tmp_path)
    if kind == "codec":
        codec.save(tmp_path / "source")
    else:
        huggingface.save(codec, tmp_path / "source")
    composed, adopted = adopt(fine_tuning(tmp_path, wavs, tmp_path / "source"))
    resolved = resolve(composed)
    assert resolved["model"]["autoencoder"]["bottleneck"]["num_layers"] == 2
    assert all(part.training for part in adopted.modules())
    _, module = build_parts(resolved, adopted)
    audio = torch.randn(1, 1, 3200)
    assert torch.equal(module.codec.eval().encode(audio), codec.encode(audio))
    assert torch.equal(module.average.encode(audio), codec.encode(audio))
    assert module.codec.quantizer.pool_size() == 0  # so that no k-means starts them anew


@pytest.mark.slow
def test_it_trains_and_resumes_without_the_weights_that_it_began_with(tmp_path, wavs):
    codec = saved(tmp_path)
    codec.save(tmp_path / "source")
    still = [
        "optimizer.generator.lr=0.0",
        "optimizer.generator.weight_decay=0.0",
        "training.freeze=[quantizer]",
    ]
    assert run.train(fine_tuning(tmp_path, wavs, tmp_path / "source", *still)) == 0
    tuned = load(tmp_path / "run")
    for name, value in codec.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value, msg=name)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["weights"] == str(tmp_path / "source")
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="resume=auto"):
        run.train(fine_tuning(tmp_path, wavs, tmp_path / "source"))
    longer = [*still, "resume=auto", "trainer.max_steps=4"]
    assert run.train(fine_tuning(tmp_path, wavs, tmp_path / "source", *longer)) == 0
    assert load(tmp_path / "run").quantizer.num_quantizers == 3


def checkpoint(path, model) -> None:
    """What a run would be resumed from, as somebody else sends it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = saved(path.parent).state_dict()
    weights = {f"average.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": model, "state_dict": weights, "global_step": 1}, path)


@pytest.mark.parametrize("resume", ["auto", "PATH"])
def test_a_checkpoint_names_no_code_to_execute(resume, tmp_path, wavs):
    mark = tmp_path / "executed"
    model = saved(tmp_path).config
    model["autoencoder"]["layers"] = {"_target_": "os.system", "command": f"touch {mark}"}
    last = tmp_path / "run/checkpoints/last.ckpt"
    checkpoint(last, model)
    chosen = "auto" if resume == "auto" else str(last)
    with pytest.raises(ConfigError, match=r"'os\.system' is refused"):
        run.train(fine_tuning(tmp_path, wavs, tmp_path, f"resume={chosen}", "trainer.max_steps=2"))
    assert not mark.exists()


@pytest.mark.parametrize("resume", [True, False])
def test_nothing_is_interpolated_in_a_description(resume, tmp_path, wavs, monkeypatch):
    monkeypatch.setenv("ACTIVATION", "elu")
    codec = saved(tmp_path)
    codec.config["autoencoder"]["layers"]["activation"] = "${oc.env:ACTIVATION}"
    codec.save(tmp_path / "source")
    if resume:
        checkpoint(tmp_path / "run/checkpoints/last.ckpt", codec.config)
    with pytest.raises(ConfigError, match=r"layers\.activation: .* is refused: nothing is interpolated"):
        run.train(fine_tuning(tmp_path, wavs, tmp_path / "source", "resume=auto"))


def test_options_that_the_weights_bring_are_refused(tmp_path, wavs, monkeypatch):
    saved(tmp_path).save(tmp_path / "source")
    composed = fine_tuning(tmp_path, wavs, tmp_path / "source")
    tasks = ["weights=x", "quantizer=fsq", "+autoencoder.strides=[2]", "trainer.max_steps=3"]
    given = OmegaConf.create({"overrides": {"task": tasks}})
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: given))
    with pytest.raises(
        ConfigError, match=r"brings its architecture: leave out quantizer, autoencoder.strides,"
    ):
        adopt(composed)
    tasks[1:3] = []
    given.overrides.task = tasks
    assert adopt(composed)[1] is not None
    for wrong, message in ((3, "weights: expected"), (str(tmp_path / "nothing"), "no such model")):
        composed.weights = wrong
        with pytest.raises((ConfigError, FileNotFoundError), match=message):
            adopt(composed)


def test_without_the_option_nothing_changes(tmp_path, wavs):
    composed = OmegaConf.create(tiny_run(tmp_path, wavs))
    assert adopt(composed) == (composed, None)


def test_a_codec_without_conditions_can_learn_one(tmp_path, wavs):
    codec = saved(tmp_path)
    codec.save(tmp_path / "source")
    _, adopted = adopt(fine_tuning(tmp_path, wavs, tmp_path / "source", "conditioning=clean"))
    audio = torch.randn(1, 1, 3200)
    assert torch.equal(adopted.eval().encode(audio, condition="clean"), codec.encode(audio))
    adopted.save(tmp_path / "conditioned")
    assert torch.equal(load(tmp_path / "conditioned").encode(audio), codec.encode(audio))
    # Its own conditions stay, without the option.
    again, kept = adopt(fine_tuning(tmp_path, wavs, tmp_path / "conditioned"))
    assert kept.conditioning.names and resolve(again)["model"] == adopted.config
    with pytest.raises(ConfigError, match="no model of transformers has conditions"):
        huggingface.save(kept, tmp_path / "hf")
