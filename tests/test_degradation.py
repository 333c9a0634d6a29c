"""Noise and rooms: levels, targets and alignment by independent measures; pure crops."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from bad_audio import RATE, tone, write
from composed import config, tiny_run
from omegaconf import OmegaConf

from codec import load
from codec.config import ConfigError, build, validate
from codec.data.degradation import Degradation, Degrader, Noise, Rooms, reverberate
from codec.data.index import DataError
from codec.data.module import AudioDataModule
from codec.training import run
from codec.training.build import build_parts

BOTH = {"noise": {"probability": 1.0, "snr_db": (5.0, 15.0)}, "rooms": {"probability": 1.0}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tones, of noise of two lengths and rates, and of two rooms of which one starts late."""
    root = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    for name in ("speech", "noise", "rooms"):
        (root / name).mkdir()
    for number in range(4):
        write(root / "speech" / f"{number}.wav", 0.3 * tone(2.0, frequency=200.0 * (number + 1)), RATE)
    write(root / "noise" / "long.wav", 0.1 * random.standard_normal(3 * RATE).astype(np.float32), RATE)
    write(root / "noise" / "short.wav", 0.1 * random.standard_normal(900).astype(np.float32), 8000)
    decay = 0.5 ** (np.arange(4000) / 400) * random.standard_normal(4000) * 0.2
    for number, start in enumerate((0, 700)):
        response = np.concatenate([np.zeros(start), [0.8], decay]).astype(np.float32)
        write(root / "rooms" / f"{number}.wav", response, RATE, subtype="FLOAT")
    return root


def data_of(folders, clean_target: float = 0.5, seed: int = 0, **parts: dict) -> AudioDataModule:
    noise = Noise(str(folders / "noise"), **parts["noise"]) if "noise" in parts else Noise()
    rooms = Rooms(str(folders / "rooms"), **parts["rooms"]) if "rooms" in parts else Rooms()
    data = AudioDataModule(
        str(folders / "speech"), RATE, segment_seconds=0.5, num_workers=0, seed=seed,
        degradation=Degradation(noise, rooms, clean_target),
    )  # fmt: skip
    data.setup()
    return data


def test_noise_has_the_drawn_level_and_the_target_is_clean_where_the_condition_says_so(folders):
    data = data_of(folders, **{"noise": BOTH["noise"]})
    batch = data.train_crops.__getitems__(range(64))
    clean = batch.condition.bool()
    assert 20 < clean.sum() < 44
    assert torch.equal(batch.audio[~clean], batch.target[~clean])
    noise = (batch.audio - batch.target)[clean]
    snr = 20 * torch.log10(
        batch.target[clean].square().mean((1, 2)).sqrt() / noise.square().mean((1, 2)).sqrt()
    )
    assert 5 - 0.01 < snr.min() < 7 and 13 < snr.max() < 15.01
    # The target is the crop itself, up to one gain that keeps both within full scale.
    plain = data_of(folders, 0.0).train_crops.__getitems__(range(64)).audio
    for target, crop in zip(batch.target[clean], plain[clean], strict=True):
        gain = (target * crop).sum() / crop.square().sum()
        assert gain <= 1.0001
        torch.testing.assert_close(target, gain * crop, atol=1e-5, rtol=0)


def test_a_room_is_aligned_to_its_direct_sound(folders):
    data = data_of(folders, 1.0, rooms=BOTH["rooms"])
    batch = data.train_crops.__getitems__(range(8))
    assert (batch.audio != batch.target).any(-1).all()
    response = data.train_crops.degrader.draw_room(np.random.default_rng(0))
    assert response[0] == 1.0 and np.abs(response[1:]).max() < 1
    audio = np.random.default_rng(1).standard_normal((2, 3000)).astype(np.float32)
    expected = np.stack([np.convolve(channel, response)[:3000] for channel in audio])
    np.testing.assert_allclose(reverberate(audio, response), expected, atol=1e-4)


def test_degraded_crops_depend_on_seed_and_number_only(folders):
    first, again, other = (data_of(folders, seed=seed, **BOTH).train_crops for seed in (3, 3, 4))
    batch = first.__getitems__([5, 2**40, 0])
    for number, audio, target, condition in zip(
        [5, 2**40, 0], batch.audio, batch.target, batch.condition, strict=True
    ):
        alone = again.__getitems__([number])
        assert torch.equal(alone.audio[0], audio) and torch.equal(alone.target[0], target)
        assert alone.condition[0] == condition
    assert not torch.equal(other.__getitems__([5]).audio[0], batch.audio[0])


def test_without_folders_crops_are_as_before_and_are_their_own_target(folders):
    node = config("data=folder")["data"]["degradation"]
    validate(node)
    degradation = build(node)
    assert not degradation.is_active and replace(degradation.noise, snr_db=(0.0, 20.0)) == Noise()
    batch = data_of(folders, 0.0).train_crops.__getitems__(range(4))
    assert torch.equal(batch.audio, batch.target) and not batch.condition.any()


def test_noise_that_vanishes_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("codec.data.crops.PAUSES", ())
    data = data_of(folders, noise=BOTH["noise"])
    degrader = data.train_crops.degrader
    gone = [replace(file, path=str(tmp_path / "gone.wav")) for file in degrader.noises]
    data.train_crops.degrader = Degrader(degrader.options, gone, [], data.shape)
    with pytest.raises(DataError, match=r"crop 3: noise or room not readable any more: .*gone\.wav"):
        data.train_crops.crop(3)


def test_rooms_begin_with_their_direct_sound_wherever_it_is(folders, tmp_path):
    late = np.zeros(3 * RATE, np.float32)
    late[int(2.5 * RATE)], late[int(2.5 * RATE) + 40] = 0.5, 0.1
    write(tmp_path / "late.wav", np.stack([late, -late], 1), RATE, subtype="FLOAT")
    data = AudioDataModule(str(folders / "speech"), RATE, degradation=Degradation(rooms=Rooms(str(tmp_path))))
    data.setup()
    response = data.train_crops.degrader.draw_room(np.random.default_rng(0))
    assert response[0] == 1 and response[40] == pytest.approx(0.2) and len(response) == RATE // 2


def test_a_file_of_noise_that_vanishes_is_replaced_by_others(folders):
    data = data_of(folders, noise=BOTH["noise"])
    degrader = data.train_crops.degrader
    degrader.noises[0] = replace(degrader.noises[0], path="/gone.wav")
    degrader.cumulative = np.array([1.0, 2.0])  # both equally often
    batch = data.train_crops.__getitems__(range(8))
    assert torch.isfinite(batch.audio).all() and (batch.audio != batch.target).any()


def test_impossible_degradations_are_refused(folders, tmp_path, wavs):
    with pytest.raises(ValueError, match="clean_target needs noise or rooms"):
        Degradation(clean_target=0.5)
    with pytest.raises(ValueError, match="snr_db must be"):
        Noise(snr_db=(20.0, 0.0))
    (tmp_path / "empty").mkdir()
    for option, degradation in (
        ("noise", Degradation(Noise(str(tmp_path / "empty")))),
        ("rooms", Degradation(rooms=Rooms(str(tmp_path / "empty")))),
    ):
        with pytest.raises(DataError, match=rf"^data\.degradation\.{option}\.root: no usable .*empty"):
            AudioDataModule(str(folders / "speech"), RATE, degradation=degradation).setup()
    noise = f"data.degradation.noise.root={folders / 'noise'}"
    for overrides, message in (
        ([noise, "data.degradation.clean_target=0.5"], "needs a condition to choose by"),
        (["conditioning=clean"], "but the codec has conditions"),
        (["conditioning=clean", "conditioning.names=[clean,as_is]"], "the second is clean"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_parts(tiny_run(tmp_path, wavs, *overrides))
    build_parts(tiny_run(tmp_path, wavs, "conditioning=clean", "training.freeze=[conditioning]"))


@pytest.mark.slow
def test_a_codec_trained_with_noise_encodes_by_condition_and_resumes_bit_for_bit(folders, tmp_path, wavs):
    options = [
        *("conditioning=clean", "data.degradation.clean_target=0.5", "data.num_workers=1"),
        *(
            f"data.degradation.noise.root={folders / 'noise'}",
            f"data.degradation.rooms.root={folders / 'rooms'}",
        ),
    ]

    def train(folder, *more):
        assert run.train(OmegaConf.create(tiny_run(folder, wavs, *options, *more))) == 0
        return load(folder / "run")

    whole = train(tmp_path / "whole", "trainer.max_steps=6")
    train(tmp_path / "parts", "trainer.max_steps=3")
    parts = train(tmp_path / "parts", "trainer.max_steps=6", "resume=auto")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    assert not torch.equal(whole.conditioning.beta[0], whole.conditioning.beta[1])


def test_the_script_scores_the_noisy_input_and_every_condition(folders, tmp_path, monkeypatch):
    import denoising
    from tokenized import small_codec

    small_codec("conditioning=clean").save(tmp_path / "model")
    command = ["denoising.py", str(tmp_path / "model"), str(folders / "speech"), str(folders / "noise")]
    monkeypatch.setattr("sys.argv", [*command, "-o", str(tmp_path / "out.csv"), "--snr", "3,12"])
    assert denoising.main() == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["snr_db"], row["audio"]) for row in rows] == [
        (snr, audio) for snr in ("3", "12") for audio in ("noisy input", "as_is", "clean")
    ]
    for row in rows[::3]:  # uncorrelated noise: SI-SDR is the ratio
        assert float(row["si_sdr"]) == pytest.approx(float(row["snr_db"]), abs=0.3)
    small_codec().save(tmp_path / "plain")
    monkeypatch.setattr("sys.argv", ["denoising.py", str(tmp_path / "plain"), *command[2:], "-o", "x.csv"])
    with pytest.raises(ConfigError, match="trained without conditions"):
        denoising.main()
