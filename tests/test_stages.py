"""Stages of a run: what each trains, that it begins anew, and that a resume hides no border."""

import csv
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import torch
from composed import config, small_quantizer, tiny_run
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_finetuning import fine_tuning, saved
from test_training import assert_same, changed, command, config_before_training, distance, last

import codec
from codec.config import CONFIG_DIR, ConfigError
from codec.data.crops import Batch
from codec.data.module import AudioDataModule
from codec.evaluation.variants import training_curves
from codec.metrics.signal import mel_distance
from codec.model.saving import build_codec
from codec.quantizers.continuous import Identity
from codec.quantizers.residual import Residual
from codec.training.build import build_parts
from codec.training.optimization import Cosine, Exponential, freeze_submodules
from codec.training.resolve import resolve
from codec.training.resume import check_same_stages
from codec.training.run import train
from codec.training.stages import Stage, locate, plain, reconstruct

pytestmark = pytest.mark.filterwarnings("default")

COSINE = "{_target_: codec.training.optimization.Cosine}"
PLAIN = f"{{name: plain, steps: 3, bottleneck: none, lr: 0.01, schedule: {COSINE}}}"
CODES = "{name: codes, steps: 4, weights: {waveform: 0}}"
DECODER = "{name: decoder, steps: 3, lr: 0.001, freeze: [autoencoder.encoder, quantizer], adversarial: true}"
ALL = (PLAIN, CODES, DECODER)
SETTINGS = (
    *("trainer.max_steps=null", "training.adversarial_from=0", "trainer.log_every_n_steps=1"),
    *("optimizer.schedule.warmup_steps=2", "optimizer.schedule.gamma=0.5", "trainer.val_check_interval=3"),
    *("training.revive_every=1", "quantizer.codebook.dead_threshold=0.9", "checkpoint.keep_every=1"),
)


def staged(folder: Path, wavs: Path, *overrides: str, stages: tuple[str, ...] = ALL) -> int:
    """Train in stages; the exit status."""
    listed = "training.stages=[" + ",".join(stages) + "]"
    return train(OmegaConf.create(tiny_run(folder, wavs, *SETTINGS, listed, *overrides)))


def interrupted(folder: Path, wavs: Path, step: int, *overrides: str, stages: tuple[str, ...] = ALL) -> None:
    """Train in stages until a signal comes in a step; save what there is."""
    real = AudioDataModule.advance

    def advance(data: AudioDataModule) -> None:
        real(data)
        if data.seen == step * data.batch_size:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AudioDataModule, "advance", advance)
        assert staged(folder, wavs, *overrides, stages=stages) == 143
    assert last(folder)["global_step"] == step


@pytest.fixture(scope="module")
def whole(tmp_path_factory, wavs) -> Path:
    """A run of all stages, with a checkpoint of every step and the pools that codebooks began with."""
    folder, pools, original = tmp_path_factory.mktemp("whole"), [], Residual.initialise

    def initialise(quantizer: Residual, pool: torch.Tensor) -> None:
        pools.append((quantizer.training, pool))
        original(quantizer, pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Residual, "initialise", initialise)
        assert staged(folder, wavs) == 0
    torch.save(pools, folder / "pools.pt")
    return folder


def at(folder: Path, step: int) -> dict:
    return torch.load(folder / f"run/checkpoints/step-{step:07d}.ckpt", weights_only=True)


def logged(folder: Path, name: str) -> dict[int, str]:
    with (folder / "run/metrics.csv").open() as file:
        return {int(row["step"]): row[name] for row in csv.DictReader(file) if not row["valid/mel"]}


def steps_behind(checkpoint: dict, player: int) -> set[int]:
    """How many steps an optimizer says that it has taken, of each of its parameters."""
    return {int(state["step"]) for state in checkpoint["optimizer_states"][player]["state"].values()}


def test_a_step_s_stage_is_found_by_counting():
    lengths = [3, 1, 4]
    counted = [(number, place) for number, length in enumerate(lengths) for place in range(length)]
    assert [locate(lengths, step) for step in range(10)] == [*counted, (2, 4), (2, 5)]


@pytest.mark.parametrize("step", [2, 3, 5, 7, 9])
def test_a_run_resumed_anywhere_repeats_an_uninterrupted_one_bit_for_bit(tmp_path, wavs, whole, step):
    options = ["trainer.log_every_n_steps=4"]
    interrupted(tmp_path, wavs, step, *options)
    assert staged(tmp_path, wavs, "resume=auto", *options) == 0
    assert_same(last(whole), last(tmp_path))
    # Every 4 steps, and where a stage ends: losses of two stages are not averaged.
    assert set(logged(tmp_path, "train/mel")) == {3, 4, 7, 8}


def test_a_balanced_run_is_resumed_at_a_border_and_begins_its_averages_anew(tmp_path, wavs):
    options = ["loss=encodec"]
    stages = (PLAIN, CODES.replace("waveform: 0", "waveform: 5"), DECODER)
    assert staged(tmp_path / "whole", wavs, *options, stages=stages) == 0
    assert staged(tmp_path / "parts", wavs, *options, stages=stages[:2]) == 0
    assert staged(tmp_path / "parts", wavs, *options, "resume=auto", stages=stages) == 0
    assert_same(last(tmp_path / "whole"), last(tmp_path / "parts"))
    states = {step: at(tmp_path / "whole", step)["state_dict"] for step in (3, 4, 7, 8)}
    averaged = {step: float(s["objective.balancer.norm_spectral"][1]) for step, s in states.items()}
    assert averaged == pytest.approx({3: 2.997001, 4: 1.0, 7: 3.994004, 8: 1.0})
    judged = {step: float(s["objective.balancer.norm_adversarial"][1]) for step, s in states.items()}
    assert judged == {3: 0, 4: 0, 7: 0, 8: 1}


def test_each_stage_trains_its_parts_and_no_others(tmp_path, wavs, whole):
    first = config_before_training(tmp_path, wavs)
    assert changed(at(whole, 3), first) == {"encoder", "decoder"}
    assert changed(at(whole, 7), at(whole, 3)) == {"encoder", "decoder", "quantizer"}
    assert changed(at(whole, 10), at(whole, 7)) == {"decoder"}
    state = {step: at(whole, step)["state_dict"] for step in (7, 8, 10)}
    for name in (n for n in state[7] if n.startswith(("codec.autoencoder.encoder", "codec.quantizer"))):
        for step in (8, 10):  # what is exported has the frozen parts, too, that the decoder learned with
            assert torch.equal(state[step][f"average.{name[6:]}"], state[7][name]), name


def test_codebooks_start_once_where_quantization_does_and_not_before(whole, wavs):
    name = "codec.quantizer.codebooks.0."
    states = {step: at(whole, step)["state_dict"] for step in (1, 3, 4)}
    assert [bool(state[name + "initialised"]) for state in states.values()] == [False, False, True]
    ((training, pool),) = torch.load(whole / "pools.pt", weights_only=True)
    data, module = build_parts(tiny_run(whole, wavs))
    data.prepare_data()
    data.setup()
    # What the encoder says by then.
    module.codec.load_state_dict({k[6:]: v for k, v in states[3].items() if k.startswith("codec.")})
    with torch.no_grad():
        latents = module.codec.latents(data.crops(0, 4))
    assert training and len(pool) >= 16 * 16
    torch.testing.assert_close(pool[: 4 * latents.shape[2]], latents.permute(0, 2, 1).flatten(0, 1))


def test_every_stage_begins_with_fresh_optimizers(whole):
    generator = {step: steps_behind(at(whole, step), 0) for step in (3, 4, 7, 8, 10)}
    assert generator == {3: {3}, 4: {1}, 7: {4}, 8: {1}, 10: {3}}
    assert [steps_behind(at(whole, step), 1) for step in (7, 8, 10)] == [set(), {1}, {3}]
    decoder = sum(name.startswith("codec.autoencoder.decoder") for name in at(whole, 8)["state_dict"])
    assert len(at(whole, 8)["optimizer_states"][0]["state"]) == decoder


def test_averaged_weights_begin_anew_with_every_stage(whole):
    before, after = at(whole, 3)["state_dict"], at(whole, 4)["state_dict"]
    for name in (name for name in after if name.startswith("codec.autoencoder")):
        expected = before[name] + 10 / 11 * (after[name] - before[name])
        torch.testing.assert_close(after[f"average.{name[6:]}"], expected, msg=name)


def test_the_learning_rate_of_every_step_is_its_stage_s(whole):
    base = 3e-3  # of experiment=tiny; after a warm-up of two steps it halves with every one
    expected = [0.01 * share for share in (1, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25)]
    expected += [base / 2, base / 2, base / 4, base / 8, 0.001 / 2, 0.001 / 2, 0.001 / 4]
    assert list(map(float, logged(whole, "train/learning_rate").values())) == pytest.approx(expected, 1e-5)


def test_the_numbers_of_a_stage_are_those_that_it_has(whole):
    present = {
        name: [step for step, value in logged(whole, name).items() if value]
        for name in ("train/mel", "train/waveform", "train/commitment", "train/discriminator")
    }
    assert present == {
        "train/mel": list(range(1, 11)),
        "train/waveform": [1, 2, 3, 8, 9, 10],
        "train/commitment": list(range(4, 11)),
        "train/discriminator": [8, 9, 10],
    }
    assert [step for step, v in logged(whole, "codebook/usage_1").items() if v] == list(range(4, 11))
    assert all(value == "" for step, value in logged(whole, "codebook/replaced_1").items() if step > 7)
    curves = training_curves(whole / "run/metrics.csv")
    assert len(curves["train/commitment"]) == 7 and len(curves["valid/mel"]) == 3


def validation_mel(folder: Path, wavs: Path, step: int, quantized: bool) -> float:
    """The score of a checkpoint's averaged codec, with its quantizer or around it."""
    data, _ = build_parts(tiny_run(folder, wavs))
    data.prepare_data()
    data.setup()
    model = codec.load(folder / f"run/checkpoints/step-{step:07d}.ckpt")
    scores = []
    with torch.inference_mode():
        for batch in data.val_dataloader():
            latents = model.latents(batch.audio)
            latents = model.quantizer(latents).latents if quantized else latents
            estimate = model.autoencoder.decode(latents)[..., : batch.audio.shape[-1]]
            scores.append(mel_distance(estimate, batch.audio, model.sample_rate))
    return float(torch.cat(scores).mean())


def test_validation_quantizes_if_the_stage_does(whole, wavs):
    with (whole / "run/metrics.csv").open() as file:
        found = {int(r["step"]): float(r["valid/mel"]) for r in csv.DictReader(file) if r["valid/mel"]}
    assert list(found) == [3, 6, 9]
    for step, quantized in ((3, False), (6, True), (9, True)):
        assert found[step] == pytest.approx(validation_mel(whole, wavs, step, quantized), rel=1e-4)
    assert found[3] != pytest.approx(validation_mel(whole, wavs, 3, True), rel=1e-3)


def test_the_best_checkpoint_is_the_best_of_its_stage(tmp_path, wavs):
    # Nothing but noise is added after the first stage, so that its score would stay the best.
    stages = ("{name: a, steps: 3}", "{name: b, steps: 3, lr: 0.5}")
    assert staged(tmp_path, wavs, stages=stages) == 0
    mel = training_curves(tmp_path / "run/metrics.csv")["valid/mel"]
    assert mel[0][1] < mel[1][1]
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 6


def test_a_run_stopped_before_it_quantizes_loads_and_says_where_it_is(tmp_path, wavs, capsys):
    interrupted(tmp_path, wavs, 2)
    told = capsys.readouterr()
    assert "stage 1/3 plain: 3 steps, not quantized, lr 0.01, Cosine(" in told.out
    assert "stage 2/3 codes: 4 steps, weights waveform 0\n" in told.out
    assert "stage 3/3 decoder: 3 steps, autoencoder.encoder, quantizer frozen, adversarial," in told.out
    assert "step 1/10, stage 1/3 plain: mel" in told.err
    stopped = codec.load(tmp_path / "run")
    assert stopped.decode(stopped.encode(torch.randn(1, 1, 1600))).shape == (1, 1, 1664)
    assert staged(tmp_path, wavs, "resume=auto") == 0
    told = capsys.readouterr()
    assert "step 5/10, stage 2/3 codes: mel" in told.err
    assert "step 9/10, stage 3/3 decoder: validation" in told.err


def tiny_codec(quantizer: str):
    torch.manual_seed(0)
    built = build_codec(config("experiment=tiny", "autoencoder.latent_dim=16")["model"])
    built.quantizer = small_quantizer(quantizer)
    built.quantizer.initialise(torch.randn(built.quantizer.pool_size() or 1, 16))
    return built


@pytest.mark.parametrize(
    ("frozen", "quantizer", "traced"),
    [
        ([], "rvq", {"encoder", "quantizer", "decoder"}),
        (["autoencoder.encoder"], "factorized_rvq", {"quantizer", "decoder"}),
        (["autoencoder.encoder"], "rvq", {"decoder"}),  # whose codebooks learn without gradients
        (["autoencoder.encoder", "quantizer"], "factorized_rvq", {"decoder"}),
        (["quantizer"], "factorized_rvq", {"encoder", "quantizer", "decoder"}),
        (["autoencoder.decoder"], "rvq", {"encoder", "quantizer", "decoder"}),
    ],
)
def test_what_does_not_learn_is_not_traced_for_gradients(frozen, quantizer, traced):
    model, seen = tiny_codec(quantizer), set()
    freeze_submodules(model, frozen)
    parts = {"encoder": model.autoencoder.encoder, "decoder": model.autoencoder.decoder}
    for name, part in (parts | {"quantizer": model.quantizer}).items():
        # What a backward pass would run through: of a quantizer, its latents.
        part.register_forward_hook(
            lambda _, __, made, name=name: (
                seen.add(name) if getattr(made, "latents", made).requires_grad else None
            )
        )
    audio = torch.randn(2, 1, 3200)
    outputs = reconstruct(model, model.quantizer, Batch.of(audio, torch.arange(len(audio))))
    estimate, quantized = outputs.estimate, outputs.quantized
    assert seen == traced
    loss = estimate.square().mean() + sum(loss for loss in quantized.losses.values())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == any(name.startswith(part) for part in frozen), name
    plain_estimate, _ = model(audio)
    assert torch.equal(estimate, plain_estimate)


def test_without_quantization_the_decoder_hears_the_encoder():
    model = tiny_codec("rvq")
    audio = torch.randn(2, 1, 3200)
    outputs = reconstruct(model, Identity(16), Batch.of(audio, torch.arange(len(audio))))
    estimate, quantized = outputs.estimate, outputs.quantized
    assert torch.equal(estimate, model.autoencoder.decoder(model.autoencoder.encoder(audio)))
    assert quantized.codes.shape == (2, 0, 25) and not quantized.losses


def test_codebooks_that_came_trained_stay_when_they_are_frozen(tmp_path, wavs):
    source = saved(tmp_path)
    source.save(tmp_path / "source")
    stages = (
        "training.stages=[{name: one, steps: 2, freeze: [autoencoder.encoder, quantizer]}, "
        "{name: two, steps: 1}]"
    )
    options = [stages, "training.adversarial_from=0", "trainer.max_steps=null", "checkpoint.keep_every=1"]
    assert train(fine_tuning(tmp_path, wavs, tmp_path / "source", *options)) == 0
    tuned = codec.load(tmp_path / "run/checkpoints/step-0000002.ckpt").state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(tuned[name], value) != name.startswith("autoencoder.decoder"), name


def test_a_cosine_spans_its_stage_also_where_it_follows_the_steps_of_the_run():
    stages = "training.stages=[{name: a, steps: 30}, {name: b, steps: 10}]"
    for steps in ("null", "40"):
        options = ["optimizer=adamw_cosine", f"trainer.max_steps={steps}", stages, "data.root=wavs", "name=x"]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            resolved = resolve(compose("train", options))
        assert resolved["trainer"]["max_steps"] == 40
        assert resolved["optimizer"]["schedule"]["total_steps"] is None
    course = Stage("b", 10).course(Cosine(final=0.0))
    assert [course.factor(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    assert Stage("b", 10).course(Cosine(total_steps=7)).total_steps == 7
    assert Stage("b", 10, schedule=Cosine(final=0.5)).course(Exponential()).factor(10) == 0.5
    assert math.isclose(Stage("b", 10).course(Exponential(gamma=0.5)).factor(2), 0.25)


LOST = "{name: lost, steps: 2, "


@pytest.mark.parametrize(
    ("stages", "overrides", "message"),
    [
        ((), [], "trainer.max_steps=null is the sum of training.stages, and they are empty"),
        (ALL, ["trainer.max_steps=11"], "max_steps=11, but training.stages have 10 steps: set .*=null"),
        (ALL, ["training.adversarial_from=2"], "stages set adversarial and freeze themselves"),
        (ALL, ["training.freeze=[quantizer]"], "stages set adversarial and freeze themselves"),
        ((PLAIN, PLAIN), [], r"each needs a name of its own, got \['plain', 'plain'\]"),
        (("{name: lost, steps: 0}",), [], r"stages\[0\]: steps must be at least 1"),
        ((LOST + "lr: -1}",), [], r"stages\[0\]: .*lr at least 0, got 2 and -1"),
        (("{name: lost}",), [], "stages.0.steps: missing; Stage needs it"),
        ((PLAIN, "{name: lost, steps: 1.5}"), [], "stages.1.steps: expected int, got 1.5"),
        (("5",), [], "training.stages: expected list of Stage, got"),
        ((LOST + "frezze: [quantizer]}",), [], "stages.0.frezze: .* did you mean freeze?"),
        ((LOST + "freeze: [quantiser]}",), [], "stages: lost: freeze: .*'quantiser'; did you mean quantizer"),
        ((LOST + "freeze: [autoencoder]}",), [], "stages: lost: freeze: .* leaves nothing"),
        ((LOST + "weights: {mell: 1}}",), [], "stages: lost: weights.mell: .* did you mean mel?"),
        ((LOST + "weights: {zzz: 1}}",), [], "weights.zzz: nothing produces this loss; known are mel, wavef"),
        (
            (PLAIN, LOST + "weights: {zzz: 1}}"),
            [],
            r"known are mel.* \(with .*: ~training\.stages\.1\.weights\)",
        ),
        ((LOST + "weights: {mel: -1}}",), [], "weights.mel: must be 0 or a positive number, got -1"),
        (
            (LOST + "adversarial: true}",),
            ["loss=mel", "discriminator=none"],
            "stages: lost: adversarial needs a discriminator",
        ),
        (
            (LOST + "adversarial: true, weights: {adversarial: 0, feature_matching: 0}}",),
            [],
            "stages: lost: adversarial needs a discriminator, and a weight",
        ),
    ],
)
def test_impossible_stages_are_refused_before_training(tmp_path, wavs, stages, overrides, message):
    with pytest.raises(ConfigError, match=message):
        staged(tmp_path, wavs, *overrides, stages=stages)
    assert not (tmp_path / "run").exists()


def test_a_cosine_without_an_end_needs_stages(tmp_path, wavs):
    options = ["trainer.max_steps=5", "optimizer=adamw_cosine", "optimizer.schedule.total_steps=null"]
    with pytest.raises(ConfigError, match="null means the length of a stage, and there are no stages"):
        train(OmegaConf.create(tiny_run(tmp_path, wavs, *options)))


def test_nothing_is_left_to_train_when_the_quantizer_rests(tmp_path, wavs):
    stage = "{name: lost, steps: 2, bottleneck: none, freeze: [autoencoder]}"
    options = [*SETTINGS[:2], f"training.stages=[{stage}]"]
    with pytest.raises(ConfigError, match=r"stages: lost: freeze: .* leaves nothing"):
        train(OmegaConf.create(tiny_run(tmp_path, wavs, *options, swap_quantizer="factorized_rvq")))


BEGUN = [Stage("a", 3, bottleneck="none"), Stage("b", 4, lr=0.1, schedule=Cosine()), Stage("c", 5)]


@pytest.mark.parametrize(
    ("step", "now", "problem"),
    [
        (5, BEGUN, ""),
        (5, [*BEGUN[:2], Stage("d", 1, adversarial=True)], ""),
        (5, BEGUN[:2], ""),
        (5, [BEGUN[0], Stage("b", 9, lr=0.1, schedule=Cosine()), BEGUN[2]], ""),
        (5, [BEGUN[0], Stage("b", 2, lr=0.1, schedule=Cosine())], ""),
        (5, [BEGUN[0], Stage("b", 1, lr=0.1, schedule=Cosine())], "stages[1].steps 4 → 1"),
        (3, [Stage("a", 4, bottleneck="none")], ""),  # not a step of the second stage was done
        (4, [Stage("a", 4, bottleneck="none"), *BEGUN[1:]], "stages[0].steps 3 → 4"),
        (5, [BEGUN[0], Stage("b", 4, schedule=Cosine())], "stages[1].lr 0.1 → none"),
        (5, [BEGUN[0], Stage("b", 4, lr=0.1)], "stages[1].schedule.final 0.1 → none"),
        (5, [Stage("a", 3), *BEGUN[1:]], "stages[0].bottleneck none → codes"),
        (5, BEGUN[:1], "stages[1].name b → none"),
        (5, [Stage("", 10)], "stages[0].name a → none"),
    ],
)
def test_a_resume_takes_other_stages_only_for_what_has_not_begun(tmp_path, step, now, problem):
    checkpoint = {"model": {}, "state_dict": {}, "global_step": step, "stages": plain(BEGUN)}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    if not problem:
        check_same_stages(tmp_path / "last.ckpt", now)
        return
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        check_same_stages(tmp_path / "last.ckpt", now)
    assert "stages that have begun must stay; only the last of them may have other steps" in str(caught.value)


def test_a_run_without_stages_does_not_go_on_in_stages(tmp_path, wavs):
    assert staged(tmp_path, wavs, "trainer.max_steps=2", stages=()) == 0
    with pytest.raises(ConfigError, match=r"stages\[0\].name none → plain"):
        staged(tmp_path, wavs, "resume=auto")


def test_a_stage_is_lengthened_and_others_follow(tmp_path, wavs):
    interrupted(tmp_path, wavs, 5)
    longer = CODES.replace("steps: 4", "steps: 5")
    assert staged(tmp_path, wavs, "resume=auto", stages=(PLAIN, longer, "{name: new, steps: 1}")) == 0
    assert last(tmp_path)["global_step"] == 9
    assert steps_behind(at(tmp_path, 8), 0) == {5} and steps_behind(at(tmp_path, 9), 0) == {1}


def test_in_bfloat16_frozen_parts_stay_too(tmp_path, wavs):
    assert staged(tmp_path, wavs, "trainer.precision=bf16-mixed") == 0
    assert changed(at(tmp_path, 10), at(tmp_path, 7)) == {"decoder"}
    state = last(tmp_path)["state_dict"]
    assert int(state["skipped"]) == 0 and all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.slow
def test_two_processes_train_stages_as_one(tmp_path, wavs):
    # A part is frozen first and learns later, which a wrapped module must not miss.
    late = "{name: late, steps: 3, freeze: [autoencoder.encoder]}"
    options = [*SETTINGS, "training.stages=[" + ",".join([late, *ALL[:2]]) + "]"]
    assert train(OmegaConf.create(tiny_run(tmp_path / "one", wavs, *options))) == 0
    folder = tmp_path / "two"
    script = folder / "train.py"
    arguments = command(folder, wavs, *options, "trainer=ddp", "trainer.devices=2")
    script.write_text(arguments[-1])
    ran = programs.run([sys.executable, str(script)])
    assert ran.returncode == 0, ran.stderr
    one, two = last(tmp_path / "one"), last(folder)
    start = config_before_training(tmp_path, wavs)
    assert distance(one, two) < 0.02 * distance(one, start)


@pytest.mark.slow
def test_compiled_stages_freeze_and_learn_alike(tmp_path, wavs, whole):
    listed = "training.stages=[" + ",".join(ALL) + "]"
    arguments = command(tmp_path, wavs, *SETTINGS, listed, "training.compile=true", backend="aot_eager")
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    assert changed(at(tmp_path, 10), at(tmp_path, 7)) == {"decoder"}
    start = config_before_training(tmp_path / "first", wavs)
    # Ten steps at this learning rate multiply what is rounded otherwise.
    assert distance(last(whole), last(tmp_path)) < 0.1 * distance(last(whole), start)
