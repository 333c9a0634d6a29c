"""Augmented crops: pure, within their ranges, and each effect what its words say, by independent measures."""

import logging
import re
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from bad_audio import RATE, tone, write
from composed import config
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.audio.reading import read_segment, rms
from codec.config import ConfigError, build, validate
from codec.data.augmentation import Augmentation, BandLimit, Equalizer, Filter, Mix, apply_filters
from codec.data.crops import Crops
from codec.data.module import AudioDataModule
from codec.data.scan import scan
from codec.training.overrides import check_names

FILTERS = {"equalizer": Equalizer(0.5), "band_limit": BandLimit(0.5)}
ALL = Augmentation(loudness_db=-20, gain_db=(-6, 6), speed=(0.92, 1.08), mix=Mix(0.5), filters=FILTERS)
OFF = Augmentation(silence_db=None)


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    """Six sines of 300, 600, … Hz, in files of three rates."""
    folder = tmp_path_factory.mktemp("tones")
    for number, rate in enumerate((8000, 16000, 44100) * 2):
        sine = tone(1.0 + 0.1 * number, rate, frequency=300.0 * (number + 1))
        write(folder / f"{number}.wav", 0.5 * sine, rate, subtype="FLOAT")
    return folder


def crops_of(folder: Path, augmentation: Augmentation, length: int = 4000, channels: int = 1) -> Crops:
    index = scan(folder, cache_dir=folder / ".cache", progress=False)
    return Crops(
        [[file.below(index.root) for file in index.usable]], (length, RATE, channels), 7, None, augmentation
    )


def strongest(audio: np.ndarray) -> float:
    """Frequency in Hz of a sine, by a parabola through the peak of its spectrum in dB."""
    spectrum = np.log(np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 2**17)) + 1e-9)
    peak = int(spectrum.argmax())
    left, middle, right = spectrum[peak - 1 : peak + 2]
    return (peak + (left - right) / (left - 2 * middle + right) / 2) * RATE / 2**17


def filtered(audio: np.ndarray, *filters: Filter, seed: int = 0) -> np.ndarray:
    """A signal `[T]` after filters."""
    return apply_filters(audio[None].astype(np.float32), RATE, filters, np.random.default_rng(seed))[0]


def amplitude(audio: np.ndarray, frequency: float) -> float:
    """Amplitude of a sine in the middle half of a signal."""
    part = np.arange(len(audio) // 4, 3 * len(audio) // 4)
    wave = np.exp(-2j * np.pi * frequency / RATE * part) * np.hanning(len(part))
    return float(2 * abs((audio[part] * wave).sum()) / np.hanning(len(part)).sum())


# Crops


def test_what_is_off_leaves_the_draws_of_a_crop_as_they_were(tones):
    crops = crops_of(tones, Augmentation(gain_db=(-6, 6)))
    files, length = crops.files, 4000
    ends = np.cumsum([file.seconds for file in files])
    for number in range(20):
        random = np.random.default_rng((7, number))
        file = files[int(np.searchsorted(ends, random.random() * ends[-1], side="right"))]
        samples = int(file.seconds * RATE + 1e-6)
        start = int(random.integers(0, samples - length, endpoint=True))
        gain = 10 ** (random.uniform(-6, 6) / 20)
        whole = soxr.resample(
            soundfile.read(file.path, dtype="float32")[0], file.sample_rate, RATE, quality="HQ"
        )
        np.testing.assert_allclose(crops.crop(number)[0], gain * whole[start : start + length], atol=1e-5)


def test_the_config_changes_nothing_until_it_is_asked_to(tones):
    node = config("data=folder")["data"]["augmentation"]
    validate(node)
    plain, configured = (crops_of(tones, augmentation) for augmentation in (Augmentation(), build(node)))
    for number in range(20):
        assert plain.crop(number).tobytes() == configured.crop(number).tobytes()


@settings(max_examples=10, deadline=None)
@given(numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=6))
def test_an_augmented_crop_depends_on_seed_and_number_only(tones, numbers):
    crops, again = crops_of(tones, ALL), crops_of(tones, ALL)
    expected = {number: crops.crop(number).tobytes() for number in numbers}
    assert {number: again.crop(number).tobytes() for number in reversed(numbers)} == expected


def test_workers_change_nothing(tones, tmp_path):
    batches = []
    for workers in (0, 1):
        index = partial(scan, cache_dir=tmp_path, progress=False)
        data = AudioDataModule(
            str(tones), RATE, 2, 0.2, 4, num_workers=workers, augmentation=ALL, index=index
        )
        data.prepare_data()
        data.setup()
        batches.append(next(iter(data.train_dataloader())).audio)
    assert torch.equal(*batches) and batches[0].shape == (4, 2, 3200) and batches[0].dtype == torch.float32
    assert batches[0].abs().max() <= 1


# Speed


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("speed", [Fraction(9, 10), Fraction(121, 113)])
def test_a_faster_crop_is_a_slice_of_the_faster_file(tmp_path, rate, speed):
    noise = np.random.default_rng(0).standard_normal((2 * rate, 1)).astype(np.float32) / 8
    write(tmp_path / "a.wav", noise, rate, subtype="FLOAT")
    whole = soxr.resample(noise, float(rate * speed), RATE, quality="HQ")[:, 0]
    for start, frames in ((0, 500), (12345, 3000), (len(whole) - 501, 500)):
        crop = read_segment(tmp_path / "a.wav", start, frames, RATE, 1, speed=speed)
        np.testing.assert_allclose(crop[0], whole[start : start + frames], atol=2e-4)


def test_a_sines_frequency_is_scaled_by_the_drawn_speed(tones):
    crops = crops_of(tones, Augmentation(speed=(0.92, 1.08)), length=8000)
    factors = []
    for number in range(60):
        file, _, speed = crops._choose(np.random.default_rng((7, number)))
        own = 300.0 * (int(Path(file.path).stem) + 1)
        factors.append(strongest(crops.crop(number)[0]) / own)
        assert factors[-1] == pytest.approx(float(speed), rel=1e-3)
    assert 0.9195 < min(factors) < 0.93 and 1.07 < max(factors) < 1.0805
    assert np.mean(factors) == pytest.approx(1.0, abs=0.02)


@given(rate=st.integers(4000, 192000), target=st.sampled_from([16000, 24000, 44100]), seed=st.integers(0, 99))
def test_a_speed_is_near_the_drawn_one_and_fast_to_resample(rate, target, seed):
    speed = ALL.draw_speed(rate, target, np.random.default_rng(seed))
    drawn = np.random.default_rng(seed).uniform(0.92, 1.08)
    assert (speed * Fraction(rate, target)).denominator <= 128
    assert float(speed) == pytest.approx(drawn, rel=1 / 128 / (drawn * rate / target) / 2)


def test_a_file_too_short_for_a_speed_is_played_at_its_own(tmp_path):
    noise = np.random.default_rng(0).standard_normal((4200, 1)) / 8
    write(tmp_path / "a.wav", noise, subtype="FLOAT")
    crops = crops_of(tmp_path, Augmentation(speed=(1.08, 1.08)))
    start = crops._choose(np.random.default_rng((7, 3))).start
    np.testing.assert_allclose(crops.crop(3)[0], noise[start : start + 4000, 0], atol=1e-6)
    write(tmp_path / "a.wav", np.concatenate([noise, noise]), subtype="FLOAT")
    assert float(crops_of(tmp_path, crops.augmentation)._choose(np.random.default_rng(0)).speed) > 1.07


# A second crop


@pytest.mark.parametrize("levels", [(-10.0, 0.0), (-3.0, -3.0)])
def test_a_mixture_is_the_crop_and_another_at_the_drawn_level(tones, levels):
    plain, mixed = crops_of(tones, OFF), crops_of(tones, replace(OFF, mix=Mix(1.0, levels)))
    pairs, drawn = set(), []
    for number in range(40):
        first, both = plain.crop(number)[0], mixed.crop(number)[0]
        paths = [300 * (int(Path(path).stem) + 1) for path in mixed.source(number)]
        assert len(paths) == 2 and strongest(first) == pytest.approx(paths[0], rel=1e-3)
        assert strongest(both - first) == pytest.approx(paths[1], rel=1e-3)
        drawn.append(20 * np.log10(rms(both - first) / rms(first)))
        pairs.add(tuple(paths))
    assert levels[0] - 0.01 < min(drawn) < levels[0] + 1.5 and levels[1] - 1.5 < max(drawn) < levels[1] + 0.01
    assert len(pairs) > 15 and np.mean(drawn) == pytest.approx(np.mean(levels), abs=1.0)


def test_mixing_happens_as_often_as_asked_and_leaves_the_others_alone(tones):
    plain, mixed = crops_of(tones, OFF, 500), crops_of(tones, replace(OFF, mix=Mix(0.3)), 500)
    same = [np.array_equal(plain.crop(number), mixed.crop(number)) for number in range(300)]
    assert np.mean(same) == pytest.approx(0.7, abs=0.08)


def test_a_mixture_stays_within_full_scale():
    wave = 0.9 * tone(0.1).T / 0.5
    both = Mix(1.0, (0.0, 0.0)).apply(wave, wave, np.random.default_rng(0))
    np.testing.assert_allclose(both, wave / np.abs(wave).max(), rtol=1e-5)


def test_silence_is_not_made_a_second_voice(tmp_path):
    write(tmp_path / "a.wav", 1e-3 * tone(1.0), subtype="FLOAT")  # -69 dBFS RMS
    plain, mixed = crops_of(tmp_path, Augmentation()), crops_of(tmp_path, Augmentation(mix=Mix(1.0)))
    assert plain.crop(0).tobytes() == mixed.crop(0).tobytes()


def test_a_second_file_that_breaks_is_named_once_and_replaced(tmp_path, caplog):
    for number in range(5):
        write(tmp_path / f"{number}.wav", tone(1.0, frequency=300.0 * (number + 1)), subtype="FLOAT")
    mixed, plain = crops_of(tmp_path, replace(OFF, mix=Mix(1.0))), crops_of(tmp_path, OFF)
    sources = [mixed.source(number) for number in range(40)]
    number, (first, victim) = next((n, pair) for n, pair in enumerate(sources) if pair[0] != pair[1])
    before = mixed.crop(number)
    Path(victim).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        after = mixed.crop(number)
    assert len(caplog.messages) == 1 and f"{victim}: zero-length file" in caplog.text
    paths = mixed.source(number)
    assert paths[:2] == [first, victim] and paths[-1] != victim
    assert not np.array_equal(before, after) and np.array_equal(after, mixed.crop(number))
    second = (after - plain.crop(number))[0]
    assert strongest(second) == pytest.approx(300.0 * (int(Path(paths[-1]).stem) + 1), rel=1e-3)


# Filters


def test_the_equalizer_gives_each_octave_its_drawn_gain_and_what_lies_between_their_mean():
    random = np.random.default_rng(3)
    random.random()  # whether the crop is filtered
    drawn = [random.uniform(-6, 6) for _ in range(7)]  # 62.5 Hz to 4 kHz
    for step in np.arange(0, 6.5, 0.5):
        frequency = 62.5 * 2**step
        wave = 0.2 * tone(4.0, frequency=frequency)[:, 0]
        gain = amplitude(filtered(wave, Equalizer(1.0, (-6.0, 6.0)), seed=3), frequency) / 0.1
        expected = (drawn[int(step)] + drawn[int(step + 0.5)]) / 2
        assert 20 * np.log10(gain) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("levels", [(-6.0, 6.0), (2.0, 3.0), (0.0, 0.0)])
def test_the_equalizer_keeps_to_its_range_between_octaves_too(levels):
    for seed, frequency in enumerate((31.0, 90.0, 333.0, 1414.0, 3000.0, 7000.0)):
        wave = 0.2 * tone(2.0, frequency=frequency)[:, 0]
        gain = amplitude(filtered(wave, Equalizer(1.0, levels), seed=seed), frequency) / 0.1
        assert levels[0] - 0.02 < 20 * np.log10(gain) < levels[1] + 0.02


def test_a_flat_equalizer_changes_nothing():
    noise = np.random.default_rng(0).standard_normal(5000) / 8
    np.testing.assert_allclose(filtered(noise, Equalizer(1.0, (0.0, 0.0))), noise, atol=1e-6)


def test_above_the_band_limit_there_is_nothing():
    noise = np.random.default_rng(0).standard_normal(8 * RATE) / 8
    ratio = np.abs(np.fft.rfft(filtered(noise, BandLimit(1.0, (2000.0, 2000.0)))) / np.fft.rfft(noise))
    at = np.fft.rfftfreq(8 * RATE, 1 / RATE)
    assert np.median(ratio[at < 1400]) == pytest.approx(1.0, abs=0.01)
    assert np.median(ratio[(at > 1990) & (at < 2010)]) == pytest.approx(0.5**0.5, abs=0.02)
    assert np.median(ratio[at > 4000]) < 2**-8 and np.median(ratio[(at > 3990) & (at < 4010)]) > 2**-8.5


def test_cutoffs_are_spread_evenly_over_octaves():
    at = np.arange(8000.0)
    random = np.random.default_rng(0)
    part = BandLimit(1.0, (500.0, 4000.0))
    cutoffs = [float(at[(part.gains(at, random) > 0.5**0.5).sum()]) for _ in range(300)]
    assert 500 <= min(cutoffs) < 530 and 3800 < max(cutoffs) <= 4001
    assert np.mean(np.log2(cutoffs)) == pytest.approx(np.log2(500) + 1.5, abs=0.15)


@pytest.mark.parametrize("part", [Equalizer(1.0, (-6.0, 6.0)), BandLimit(1.0, (500.0, 8000.0))])
def test_the_ends_of_a_crop_do_not_meet(part):
    for place in (0, 7999):
        audio = np.zeros(8000)
        audio[place] = 1.0
        for seed in range(5):
            ring = np.abs(filtered(audio, part, seed=seed))
            assert ring[2000:6000].max() < 1e-3 * ring.max()
            assert np.abs(ring[:2000] if place else ring[6000:]).max() < 1e-3 * ring.max()
    np.testing.assert_allclose(filtered(np.full(8000, 0.5), BandLimit(1.0, (500.0, 500.0))), 0.5, atol=1e-4)


def test_filters_are_applied_as_often_as_asked_alike_to_all_channels():
    noise = np.random.default_rng(0).standard_normal((1, 1000)).astype(np.float32) / 8
    random = np.random.default_rng(1)
    results = [apply_filters(np.repeat(noise, 2, 0), RATE, [Equalizer(0.3)], random) for _ in range(300)]
    assert np.mean([np.array_equal(result[:1], noise) for result in results]) == pytest.approx(0.7, abs=0.08)
    assert all(np.array_equal(result[0], result[1]) for result in results)


def test_a_filtered_crop_stays_within_full_scale():
    wave = tone(0.5)[:, 0] / 0.5 * 0.9
    assert np.abs(filtered(wave, Equalizer(1.0, (6.0, 6.0)))).max() == pytest.approx(1.0, abs=1e-5)


# Options


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Augmentation(speed=[1.08, 0.92]), r"speed must be \[lowest, highest\] as factors, above 0"),
        (lambda: Augmentation(speed=[0.0, 1.0]), "speed must be .* above 0, got"),
        (lambda: Augmentation(gain_db=[1.0, float("inf")]), "gain_db must be"),
        (lambda: Mix(1.5), "probability must lie between 0 and 1, got 1.5"),
        (lambda: Mix(level_db=[0.0, -10.0]), r"level_db must be .* in dB, got \[0.0, -10.0\]"),
        (lambda: Equalizer(-0.1), "probability must lie"),
        (lambda: Equalizer(gain_db=[3.0]), "gain_db must be"),
        (lambda: BandLimit(2.0), "probability must lie"),
        (lambda: BandLimit(cutoff_hz=[0.0, 4000.0]), "cutoff_hz must be .* in Hz, above 0, got"),
    ],
)
def test_impossible_ranges_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_reach_their_part_and_mistakes_name_it():
    node = config(
        "data=folder",
        "data.augmentation.speed=[0.9,1.1]",
        "data.augmentation.mix.probability=0.2",
        "data.augmentation.filters.band_limit.cutoff_hz=[500,900]",
        "data.augmentation.filters.equalizer.probability=1.5",
    )["data"]["augmentation"]
    validate(node)
    with pytest.raises(ConfigError, match=r"filters\.equalizer: probability must lie between"):
        build(node)
    node["filters"]["equalizer"]["probability"] = 0.5
    built = build(node)
    assert built.speed == [0.9, 1.1] and built.mix == Mix(0.2, [-10.0, 0.0])
    assert built.filters["band_limit"] == BandLimit(0.0, [500, 900])
    assert built.filters["equalizer"] == Equalizer(0.5, [-6.0, 6.0])


def test_the_readme_turns_on_what_it_names():
    text = (Path(__file__).parent.parent / "codec/data/README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (`.*=.*`) \|", text.partition("## Few recordings")[2].partition("\n## ")[0], re.MULTILINE
    )
    options = [f"data.augmentation.{option}" for row in rows for option in re.findall(r"`([^`]+)`", row)]
    assert len(options) == 9
    options.append("+data.augmentation.filters.mine._target_=codec.data.augmentation.BandLimit")
    check_names(options)
    node = config("data=folder", *options)["data"]["augmentation"]
    validate(node)
    built = build(node)
    assert list(built.filters) == ["equalizer", "band_limit", "mine"]
    assert built.mix.probability > 0 and built.speed and built.loudness_db and built.gain_db
    assert built.filters["equalizer"].probability > 0 and built.filters["band_limit"].probability > 0


def test_runs_that_were_configured_before_go_on():
    old = {
        "_target_": "codec.data.crops.Augmentation",
        "silence_db": -50.0,
        "loudness_db": None,
        "gain_db": [-3, 3],
    }
    validate(old)
    assert build(old) == Augmentation(-50.0, None, [-3, 3])
