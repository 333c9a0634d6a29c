"""Training batches: pure crops, exact resume, equal shares; clear words when files break."""

import itertools
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from bad_audio import BAD, RATE, tone, write
from composed import config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codec.config import build, validate
from codec.data.augmentation import Augmentation
from codec.data.crops import Batch, Crops, read_clips
from codec.data.index import DataError, Index, IndexedFile
from codec.data.module import AudioDataModule, CropBatches, Validation, skip_short
from codec.data.scan import scan
from codec.system import distributed


@pytest.fixture(scope="module")
def wavs(tmp_path_factory) -> Path:
    """Twelve files in which each sample tells its file and place: exact as floats."""
    folder = tmp_path_factory.mktemp("wavs")
    for number in range(12):
        length = 4000 + 500 * number
        audio = 0.05 * (number + 1) + 1e-5 * np.arange(length)
        write(folder / f"{number:02d}.wav", audio[:, None], subtype="FLOAT")
    return folder


def make(root, cache, **options) -> AudioDataModule:
    """Ready data of short crops."""
    index = partial(scan, cache_dir=cache, progress=False)
    defaults = {
        "sample_rate": RATE,
        "segment_seconds": 0.1,
        "batch_size": 4,
        "num_workers": 0,
        "index": index,
    }
    data = AudioDataModule(root, **{**defaults, **options})
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(wavs, cache) -> AudioDataModule:
    return make(str(wavs), cache)


def batches(data: AudioDataModule, count: int) -> list[Batch]:
    return list(itertools.islice(data.train_dataloader(), count))


# Crops


def test_a_crop_is_what_its_file_holds(data):
    for number in range(50):
        audio = data.crops(number, 1)[0].numpy()
        (path,) = data.source(number)
        whole, _ = soundfile.read(path, dtype="float32")
        start = round((audio[0, 0] - whole[0]) / 1e-5)
        np.testing.assert_array_equal(audio, whole[None, start : start + 1600])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=8), seed=st.integers(0, 2**31))
def test_a_crop_depends_on_seed_and_number_only(data, numbers, seed):
    augmentation = Augmentation(loudness_db=-20, gain_db=(-6, 6))
    folders = [[file.below(data.indexes[0].root) for file in data.indexes[0].usable]]
    crops, again = (Crops(folders, (800, RATE, 1), seed, None, augmentation) for _ in range(2))
    expected = {number: crops.crop(number).tobytes() for number in numbers}
    assert {number: again.crop(number).tobytes() for number in reversed(numbers)} == expected
    batch = crops.__getitems__(numbers)
    assert [row.numpy().tobytes() for row in batch.audio] == [expected[number] for number in numbers]
    assert batch.numbers.tolist() == numbers


def test_other_seeds_and_numbers_give_other_crops(data, wavs, cache):
    assert len({row.numpy().tobytes() for row in data.crops(0, 64)}) == 64
    assert not torch.equal(make(str(wavs), cache, seed=1).crops(0, 4), data.crops(0, 4))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(data, wavs, cache, num_workers):
    parallel = make(str(wavs), cache, num_workers=num_workers)
    for expected, batch in zip(batches(data, 7), batches(parallel, 7), strict=True):
        assert torch.equal(batch.audio, expected.audio) and torch.equal(batch.numbers, expected.numbers)
        assert batch.audio.shape == (4, 1, 1600) and batch.audio.dtype == torch.float32


def test_batches_follow_each_other(data):
    assert torch.cat([batch.numbers for batch in batches(data, 3)]).tolist() == list(range(12))
    assert torch.equal(batches(data, 2)[1].audio, data.crops(4, 4))


def test_the_global_random_state_is_left_alone(data, wavs, cache):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    batches(data, 2)
    batches(make(str(wavs), cache, num_workers=1), 1)
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_files_are_drawn_by_duration_and_starts_uniformly(tmp_path, cache):
    write(tmp_path / "a.wav", tone(1.0))
    write(tmp_path / "b.wav", tone(3.0))
    files = [file.below(str(tmp_path)) for file in scan(tmp_path, cache_dir=cache).files]
    crops = Crops([files], (1600, RATE, 1))
    draws = [crops._choose(np.random.default_rng(number)) for number in range(2000)]
    long = [start for file, start, _ in draws if file.path.endswith("b.wav")]
    assert len(long) / 2000 == pytest.approx(0.75, abs=0.04)
    assert min(long) >= 0 and max(long) <= 3 * RATE - 1600
    assert np.mean(long) == pytest.approx((3 * RATE - 1600) / 2, rel=0.05)
    assert np.percentile(long, 10) == pytest.approx((3 * RATE - 1600) / 10, rel=0.2)


def test_rounding_never_draws_beyond_the_last_file(data):
    class Highest:
        def random(self):
            return 1.0

        def integers(self, low, high, endpoint):
            return high

    file, *_ = data.train_crops._choose(Highest())
    assert file == data.train_crops.files[-1]


def test_weights_decide_between_roots(tmp_path, cache):
    for name, seconds, level in (("small", 1.0, 0.2), ("large", 9.0, 0.8)):
        (tmp_path / name).mkdir()
        for part in range(2):
            write(
                tmp_path / name / f"{part}.wav", np.full((round(seconds * RATE), 1), level), subtype="FLOAT"
            )
    roots = [str(tmp_path / "small"), str(tmp_path / "large")]
    for weights, expected in ((None, 0.1), ([3, 1], 0.75)):
        audio = make(roots, cache, weights=weights).crops(0, 800)
        assert (audio[:, 0, 0] < 0.5).float().mean().item() == pytest.approx(expected, abs=0.05)


def test_rates_and_channels_become_those_wanted(tmp_path, cache):
    for rate, channels in ((8000, 1), (48000, 2), (44101, 6)):
        write(tmp_path / f"{rate}.wav", tone(1.0, rate, channels) / tone(1.0, 100, channels).max(), rate)
    for channels in (1, 2):
        audio = make(str(tmp_path), cache, channels=channels, sample_rate=24000).crops(0, 20).numpy()
        assert audio.shape == (20, channels, 2400)
        spectrum = np.abs(np.fft.rfft(audio, axis=-1))
        assert (spectrum.argmax(axis=-1) == 44).all()  # 440 Hz in bins of 10 Hz


def test_an_exact_fit_is_a_crop(tmp_path, cache):
    write(tmp_path / "a.wav", tone(0.1))
    np.testing.assert_allclose(make(str(tmp_path), cache).crops(0, 1)[0, 0], tone(0.1)[:, 0], atol=1e-4)


# Silence and levels


def test_silence_is_drawn_again(tmp_path, cache):
    audio = np.zeros((10 * RATE, 1))
    audio[: 2 * RATE] = tone(2.0)
    write(tmp_path / "a.wav", audio)
    levels = make(str(tmp_path), cache).crops(0, 200).square().mean(dim=(1, 2)).sqrt()
    assert (levels > 1e-3).float().mean() > 0.75  # 1 - 0.8 ** 9 = 0.87
    data = make(str(tmp_path), cache, augmentation=Augmentation(silence_db=None))
    assert (data.crops(0, 200).square().mean(dim=(1, 2)) > 0).float().mean() < 0.3
    tries = [len(make(str(tmp_path), cache).source(number)) for number in range(200)]
    assert max(tries) == 9 and min(tries) == 1


def test_loudness_and_gain(tmp_path, cache):
    for number, level in enumerate((0.01, 0.1, 1.0)):
        write(tmp_path / f"{number}.wav", level * tone(1.0), subtype="FLOAT")

    def levels(**options) -> np.ndarray:
        audio = make(str(tmp_path), cache, augmentation=Augmentation(**options)).crops(0, 300)
        assert audio.abs().max() <= 1
        return 20 * np.log10(audio.square().mean(dim=(1, 2)).sqrt().numpy())

    np.testing.assert_allclose(levels(loudness_db=-20.0), -20, atol=0.01)
    np.testing.assert_allclose(levels(loudness_db=0.0), -3.01, atol=0.05)  # a sine's peak would pass 1
    spread = levels(loudness_db=-20.0, gain_db=[-10.0, 6.0])
    assert -30.01 < spread.min() < -29 and -15 < spread.max() < -13.99
    assert spread.mean() == pytest.approx(-22, abs=1)


def test_levels_are_left_alone_unless_asked(tmp_path, cache):
    write(tmp_path / "a.wav", 4 * tone(1.0), subtype="FLOAT")
    assert make(str(tmp_path), cache).crops(0, 1).max() == pytest.approx(2.0, abs=1e-3)


def test_silence_is_not_made_loud(tmp_path, cache):
    write(tmp_path / "a.wav", 1e-3 * tone(1.0), subtype="FLOAT")  # -69 dBFS RMS
    data = make(str(tmp_path), cache, augmentation=Augmentation(loudness_db=-20.0))
    assert data.crops(0, 1).abs().max() < 1e-3


# Shares of processes


@given(
    world_size=st.integers(1, 8), share=st.integers(1, 8), seen=st.integers(0, 10**9), steps=st.integers(1, 4)
)
def test_processes_share_the_joint_batch(world_size, share, seen, steps):
    size = world_size * share
    alone = list(itertools.islice(CropBatches(size, lambda: seen, 0, 1), steps))
    parts = [
        list(itertools.islice(CropBatches(size, lambda: seen, rank, world_size), steps))
        for rank in range(world_size)
    ]
    assert alone == [list(range(seen + step * size, seen + (step + 1) * size)) for step in range(steps)]
    assert [list(itertools.chain(*(part[step] for part in parts))) for step in range(steps)] == alone
    assert all(len(batch) == share for part in parts for batch in part)


def test_a_batch_that_cannot_be_shared_is_refused(data, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    with pytest.raises(ValueError, match="batch_size=4, for 3 processes: take a multiple of 3"):
        data.train_dataloader()


def test_two_ranks_together_see_what_one_process_sees(data, wavs, cache, monkeypatch):
    expected = batches(data, 3)
    clips = torch.cat([batch.audio for batch in data.val_dataloader()])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts, shares = [], []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        ranked = make(str(wavs), cache)
        parts.append(batches(ranked, 3))
        shares.append([number for batch in ranked.val_dataloader() for number in batch.numbers.tolist()])
        for batch in ranked.val_dataloader():
            assert len(batch.numbers) <= 2
            assert torch.equal(batch.audio, clips[batch.numbers])
    for step in range(3):
        assert torch.equal(torch.cat([part[step].audio for part in parts]), expected[step].audio)
    assert len(shares[0]) == len(shares[1]) and set(shares[0] + shares[1]) == set(range(len(clips)))


# Resume


def test_state_counts_what_training_used_not_what_was_prefetched(wavs, cache):
    data = make(str(wavs), cache, num_workers=2)
    straight = batches(data, 6)
    loader = data.train_dataloader()
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
        data.advance()
    assert data.state_dict() == {"seen": 8}
    resumed = make(str(wavs), cache)
    resumed.load_state_dict(data.state_dict())
    for expected, batch in zip(straight[2:], batches(resumed, 4), strict=True):
        assert torch.equal(batch.audio, expected.audio)
    # A new epoch on the same loader goes on, too, whatever its workers had prefetched.
    assert next(iter(loader)).numbers.tolist() == [8, 9, 10, 11]


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers, loggers and checkpoints
@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_resumes_exactly_in_mid_epoch(tmp_path, wavs, cache, num_workers):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1600))
            self.seen: list[int] = []
            self.clips: list[int] = []

        def training_step(self, batch, batch_index):
            self.seen += batch.numbers.tolist()
            self.trainer.datamodule.advance()
            return (self.weight - batch.audio).square().mean()

        def validation_step(self, batch, batch_index):
            self.clips += batch.numbers.tolist()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(steps, checkpoint=None):
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=steps, val_check_interval=3, use_distributed_sampler=False,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = make(str(wavs), cache, num_workers=num_workers, validation=Validation(0.3, 5, 0.2))
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module, data

    straight, data = train(10)
    assert straight.seen == list(range(40)) and data.seen == 40
    first, _ = train(5)
    second, data = train(10, str(tmp_path / "5.ckpt"))
    assert first.seen + second.seen == straight.seen and data.seen == 40
    assert straight.clips[:5] == [0, 1, 2, 3, 4] and len(straight.clips) == 5 * 4  # a sanity check and three


def test_workers_ignore_signals_and_leave_with_their_loader(wavs, cache):
    data = make(str(wavs), cache, num_workers=2)
    iterator = iter(data.train_dataloader())
    for _ in iterator._workers:
        next(iterator)  # a batch of each: before, a worker has not yet said what it ignores
    for worker in iterator._workers:
        for number in (2, 15):
            os.kill(worker.pid, number)
    for _ in range(6):
        assert next(iterator).audio.shape == (4, 1, 1600)
    workers = iterator._workers
    started = time.monotonic()
    iterator._shutdown_workers()
    assert time.monotonic() - started < 5 and not any(worker.is_alive() for worker in workers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "end", ["raise RuntimeError", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"]
)
def test_a_failed_program_ends_although_its_workers_ignore_signals(wavs, cache, end):
    code = f"""
from functools import partial
from codec.data.module import AudioDataModule
from codec.data.scan import scan
index = partial(scan, cache_dir={str(cache)!r})
data = AudioDataModule({str(wavs)!r}, 16000, segment_seconds=0.1, index=index)
data.prepare_data()
data.setup()
iterator = iter(data.train_dataloader())
assert next(iterator).audio.shape == (16, 1, 1600)
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and done.stderr.count("Traceback") == 1


# Files that break during training


@pytest.fixture
def breaking(tmp_path, wavs, cache) -> tuple[AudioDataModule, Path]:
    folder = tmp_path / "wavs"
    folder.mkdir()
    for path in wavs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return make(str(folder), cache), folder


def delete(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    write(path, tone(0.15), subtype="FLOAT")


def poison(path: Path) -> None:
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    write(path, np.full_like(audio, np.nan), rate, subtype="FLOAT")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (delete, "no such file"),
        (shorten, "changed since it was scanned"),
        (poison, "not finite"),
        (empty, "zero-length file"),
        (BAD["page.wav"][0], "not audio"),
    ],
)
def test_a_file_that_breaks_is_named_once_and_replaced(breaking, spoil, reason, caplog):
    data, _ = breaking
    before = data.crops(0, 60)
    victim = next(path for number in range(60) for path in data.source(number))
    hit = [number for number in range(60) if victim in data.source(number)]
    spoil(Path(victim))
    after = data.crops(0, 60)
    assert [line for line in caplog.messages if victim in line and reason in line] == caplog.messages
    assert len(caplog.messages) == 1 and len(hit) > 1
    for number in range(60):
        assert torch.equal(before[number], after[number]) == (number not in hit)
        assert victim not in data.source(number)[-1:]
    assert torch.equal(after, data.crops(0, 60)) and torch.isfinite(after).all()


def test_training_goes_on_with_few_files(breaking):
    data, folder = breaking
    for path in sorted(folder.iterdir())[:-3]:
        path.unlink()
    assert torch.isfinite(data.crops(0, 100)).all()


def test_training_stops_when_all_files_are_gone(breaking, monkeypatch):
    data, folder = breaking
    monkeypatch.setattr("codec.data.crops.PAUSES", ())
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"crop 7: 50 draws met files .* any more: .*\.wav, "):
        data.crops(7, 1)
    data.num_workers = 1
    with pytest.raises(DataError, match="crop 0: 50 draws"):
        batches(data, 1)


def test_a_broken_validation_file_is_left_out(breaking, caplog):
    data, _ = breaking
    data.validation = Validation(clips=4)
    Path(data.valid_files[0]).write_bytes(b"")
    if len(data.valid_files) == 1:
        with pytest.raises(DataError, match="no validation clip could be read"):
            data.val_dataloader()
    assert f"validation clip left out: {data.valid_files[0]}: zero-length file" in caplog.text


# Folders and options


def test_short_files_are_skipped_with_a_reason(tmp_path, cache):
    write(tmp_path / "short.wav", tone(0.5))
    write(tmp_path / "long.wav", tone(1.5))
    data = make(str(tmp_path), cache, segment_seconds=1.0)
    assert (
        "skipped  short.wav: shorter than a crop: 0.500 s, segment_seconds is 1.000 s"
        in data.indexes[0].report()
    )
    assert "1 usable file," in data.indexes[0].report()
    with pytest.raises(
        DataError, match=r"no usable audio file in .*: 2 shorter than a crop \(long.wav, short.wav\)"
    ):
        make(str(tmp_path), cache, segment_seconds=2.0)


def test_short_is_judged_at_the_rate_of_training():
    file = IndexedFile("a.wav", 1, 1, frames=44100, sample_rate=44100, channels=1)
    index = Index("root", (file, replace(file, frames=44099)))
    assert [file.problem is None for file in skip_short(index, 24000, 24000).files] == [True, False]


def test_broken_files_keep_their_reason(tmp_path, cache):
    (tmp_path / "empty.wav").write_bytes(b"")
    write(tmp_path / "long.wav", tone(1.5))
    assert "skipped  empty.wav: zero-length file" in make(str(tmp_path), cache).indexes[0].report()


def test_folders_are_read_once(wavs, cache):
    calls: list[str] = []
    index = partial(scan, cache_dir=cache)
    data = make(str(wavs), cache, index=lambda root: calls.append(root) or index(root))
    valid = list(data.valid_files)
    data.prepare_data()
    data.setup("validate")
    assert calls == [str(wavs)] and data.valid_files == valid
    other = AudioDataModule(
        str(wavs), RATE, segment_seconds=0.1, index=index
    )  # another process than rank 0's
    other.setup("fit")
    assert torch.equal(other.crops(0, 4), data.crops(0, 4)) and other.valid_files == valid


def test_any_of_several_roots_without_files_is_named(wavs, cache, tmp_path):
    with pytest.raises(DataError, match=f"no usable audio file in {tmp_path}: it is empty"):
        make([str(wavs), str(tmp_path)], cache)


def test_valid_files_are_in_no_crop(data):
    drawn = {path for number in range(300) for path in data.source(number)}
    assert data.valid_files and not drawn & set(data.valid_files)
    assert len(drawn) + len(data.valid_files) == 12


def test_validation_clips_are_fixed_and_spread(wavs, cache):
    data = make(str(wavs), cache, validation=Validation(fraction=0.4, clips=6, seconds=0.2))
    loader = data.val_dataloader()
    first, second = list(loader), list(loader)
    assert len(loader) == 2 and [len(batch.numbers) for batch in first] == [4, 2]
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(first, second, strict=True))
    clips = torch.cat([batch.audio for batch in first])
    assert clips.shape == (6, 1, 3200) and len({clip.numpy().tobytes() for clip in clips}) == 6
    files = {float(soundfile.read(path)[0][0]) for path in data.valid_files}
    levels = [max(level for level in files if level <= float(clip[0, 0]) + 1e-6) for clip in clips]
    assert len(set(levels)) >= len(files) - 1


def test_clips_lie_evenly_and_shrink_when_all_files_are_short(tmp_path, cache):
    for number, length in enumerate((1000, 2000, 3000)):  # each sample tells its file and place
        write(tmp_path / f"{number}.wav", number / 10 + np.arange(length)[:, None] / 1e5, subtype="FLOAT")
    files = [file.below(str(tmp_path)) for file in scan(tmp_path, cache_dir=cache).files]

    def places(length: int, count: int) -> list[tuple[int, int]]:
        clips = read_clips(files, (length, RATE, 1), count)
        starts = np.round(clips[:, 0, 0].numpy() * 1e5).astype(int)
        assert np.allclose(clips[:, 0].numpy(), (starts[:, None] + np.arange(clips.shape[-1])) / 1e5)
        return [(int(start) // 10000, int(start) % 10000) for start in starts]

    assert places(500, 6) == [(0, 125), (0, 375), (1, 375), (1, 1125), (2, 625), (2, 1875)]
    assert places(500, 2) == [(0, 375), (2, 625)]
    assert places(1500, 4) == [(1, 125), (1, 375), (2, 375), (2, 1125)]
    assert places(1000, 3) == [(0, 0), (1, 500), (2, 1000)]
    assert places(1000, 6) == [(0, 0), (1, 250), (1, 750), (2, 500), (2, 1500)]  # no clip twice
    assert places(9999, 5) == [(2, 0)]


def test_validation_clips_are_twice_the_crop_and_at_least_a_second(tmp_path, cache):
    for number in range(2):
        write(tmp_path / f"{number}.wav", tone(5.0))
    for segment, seconds in ((0.1, 1.0), (1.5, 3.0), (4.0, 5.0)):
        (batch, *_) = make(str(tmp_path), cache, segment_seconds=segment).val_dataloader()
        assert batch.audio.shape[-1] == seconds * RATE


@pytest.mark.parametrize(
    "option, value",
    [
        ("sample_rate", 0), ("channels", 0), ("segment_seconds", -1.0), ("segment_seconds", float("nan")),
        ("batch_size", 0), ("num_workers", -1), ("seed", -1), ("root", []),
        ("weights", [1.0, 2.0]), ("weights", [0.0]),
    ],
)  # fmt: skip
def test_impossible_options_are_named(option, value):
    with pytest.raises(ValueError, match=option):
        AudioDataModule(**{"root": "wavs", "sample_rate": RATE, option: value})


@pytest.mark.parametrize(
    "make_options, message",
    [
        (lambda: Validation(fraction=0.0), "fraction"),
        (lambda: Validation(fraction=1.0), "fraction"),
        (lambda: Validation(clips=0), "clips"),
        (lambda: Validation(seconds=0.0), "seconds"),
        (lambda: Augmentation(gain_db=[1.0]), "gain_db"),
        (lambda: Augmentation(gain_db=[1.0, -1.0]), "gain_db"),
    ],
)
def test_impossible_groups_of_options_are_named(make_options, message):
    with pytest.raises(ValueError, match=message):
        make_options()


def test_audio_is_generated_only_where_there_is_none(tmp_path, cache):
    asked: list[str] = []

    def generate(root):
        asked.append(root)
        os.makedirs(root, exist_ok=True)
        write(Path(root) / "made.wav", tone(1.0))

    for _ in range(2):
        make(str(tmp_path / "new"), cache, generate=generate)
    assert asked == [str(tmp_path / "new")]


def test_what_was_found_is_logged(wavs, cache, caplog):
    with caplog.at_level(logging.INFO):
        make(str(wavs), cache)
    assert "12 usable files" in caplog.text


def test_the_configs_build_what_they_describe(tmp_path, wavs):
    node = config(
        "data=folder", f"data.root={wavs}", "data.segment_seconds=0.1", "data.augmentation.gain_db=[-3,3]"
    )["data"]
    validate(node)
    data = build(node)
    assert (
        isinstance(data, AudioDataModule) and data.augmentation.gain_db == [-3, 3] and data.generate is None
    )
    node = config(
        "data=synthetic", f"data.root={tmp_path / 'made'}", "data.generate.seconds=10", "data.num_workers=0"
    )["data"]
    validate(node)
    data = build(node)
    data.prepare_data()
    data.setup()
    assert len(os.listdir(tmp_path / "made")) == 2 and data.crops(0, 2).shape == (2, 1, 24000)


def test_real_recordings_make_batches(real_speech, cache):
    data = make(str(real_speech), cache, sample_rate=24000, segment_seconds=1.0, batch_size=8)
    (batch,) = batches(data, 1)
    assert batch.audio.shape == (8, 1, 24000) and 1e-3 < batch.audio.std() < 1
    assert 0.02 < len(data.valid_files) / len(data.indexes[0].usable) < 0.09
