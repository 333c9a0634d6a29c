"""Measure the training crops per second of one core: python scripts/benchmark_data.py [FOLDER].

Without a folder it makes synthetic audio. Each file is copied as 16-bit wav and as flac, and both
into tars; the wavs are also read through fsspec, as `file://`. Crops are read at the files' own rate and
resampled, by seeking and by decoding whole files, and with each augmentation of every crop. `--entries`
measures the index of a large tar instead.
"""

import argparse
import io
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from codec.audio.reading import read_audio
from codec.audio.synthetic import write_synthetic_folder
from codec.data.augmentation import Augmentation, BandLimit, Equalizer, Mix
from codec.data.module import AudioDataModule
from codec.data.scan import scan

KINDS = "wav", "flac", "wav.tar", "flac.tar", "file://"
SPEED, MIX = (0.92, 1.08), Mix(1.0)
FILTERS = {"equalizer": Equalizer(1.0), "band_limit": BandLimit(1.0)}
AUGMENTATIONS = {
    "speed": Augmentation(speed=SPEED),
    "mix": Augmentation(mix=MIX),
    "equalizer": Augmentation(filters={"equalizer": Equalizer(1.0)}),
    "both filters": Augmentation(filters=FILTERS),
    "all": Augmentation(loudness_db=-24.0, gain_db=(-10, 6), speed=SPEED, mix=MIX, filters=FILTERS),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure how many training crops one core reads.")
    parser.add_argument("folder", nargs="?", help="recordings; without it, synthetic audio is made")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each number")
    parser.add_argument("--crop", type=float, default=1.0, help="length of a crop in seconds")
    parser.add_argument("--length", type=float, default=15.0, help="length of a recording in seconds")
    parser.add_argument("--entries", type=int, help="files of a tar whose index is measured, of 1 KB each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = temporary
        if options.entries:
            return index_tar(place / "many.tar", options.entries)
        source = options.folder or str(place / "synthetic")
        if options.folder is None:
            write_synthetic_folder(source, seconds=150)
        rate = copy_files(source, place, options.length)
        for kind in ("wav", "flac"):
            with tarfile.open(place / f"{kind}.tar", "w") as tar:
                tar.add(place / kind, ".")
        roots = [f"file://{place}/wav" if kind == "file://" else str(place / kind) for kind in KINDS]
        title = f"{options.crop:g} s crops, mono"
        print(f"{title:34} " + " ".join(f"{kind:>9}" for kind in KINDS))
        for target in (rate, 24000 if rate != 24000 else 16000):
            name = f"at {target} Hz" if target == rate else f"{rate} to {target} Hz"
            ready = [prepare(root, target, options.crop) for root in roots]
            line(f"seek, {name}, /s/core", [measure(seeking(data), options.seconds) for data in ready])
            line(f"whole file, {name}, /s/core", [measure(whole(data), options.seconds) for data in ready])
        for name, augmentation in AUGMENTATIONS.items():
            ready = [prepare(root, rate, options.crop, 0, augmentation) for root in roots]
            line(f"seek, {name}, /s/core", [measure(seeking(data), options.seconds) for data in ready])
        for workers in (0, 1, 2):
            ready = [prepare(root, rate, options.crop, workers) for root in roots]
            line(
                f"DataLoader, {workers} workers, /s (wall)", [loaded(data, options.seconds) for data in ready]
            )


def index_tar(path: Path, count: int) -> None:
    """Print CPU time and memory of the index of a tar with `count` short files, and of training's lists.

    The index is made anew, then read from its cache, then divided into training and held-out files.
    """
    content = io.BytesIO()
    soundfile.write(content, np.random.default_rng(0).normal(0, 0.1, 500), 16000, format="WAV")
    with path.open("wb") as file:
        for number in range(count):
            header = tarfile.TarInfo(f"speaker-{number % 1000:04d}/{number:08d}.wav")
            header.size = len(content.getvalue())
            file.write(header.tobuf(tarfile.USTAR_FORMAT) + content.getvalue() + bytes(-header.size % 512))
        file.write(bytes(1024))
    index = partial(scan, check_content=False, cache_dir=path.parent, workers=1, progress=False)
    for name in ("headers", "cache", "training"):
        if os.fork() == 0:
            started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if name == "training":
                AudioDataModule(str(path), 16000, 1, 0.01, index=index).setup()
            else:
                index(path)
            seconds = time.process_time() - started
            memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(f"{count} entries by {name}: {seconds:.1f} s, {memory:.0f} MiB more", flush=True)
            os._exit(0)
        os.wait()


def copy_files(source: str, place: Path, seconds: float) -> int:
    """Copy up to 64 files, joined to about `seconds` each, as wav and as flac; returns their rate in Hz."""
    index = scan(source, check_content=False)
    rate = index.usable[0].sample_rate
    files = [os.path.join(index.root, file.path) for file in index.usable if file.sample_rate == rate]
    for kind in ("wav", "flac"):
        (place / kind).mkdir()
    parts: list[np.ndarray] = []
    written = 0
    for path in files:
        parts.append(read_audio(path, channels=1)[0])
        if sum(part.shape[1] for part in parts) >= seconds * rate and written < 64:
            for kind in ("wav", "flac"):
                soundfile.write(place / kind / f"{written}.{kind}", np.concatenate(parts, axis=1).T, rate)
            written += 1
            parts = []
    return rate


def prepare(
    root: str, rate: int, crop: float, workers: int = 0, augmentation: Augmentation = Augmentation()
) -> AudioDataModule:
    """Data of crops of `crop` seconds, with its index built."""
    index = partial(scan, progress=False)
    data = AudioDataModule(root, rate, 1, crop, num_workers=workers, augmentation=augmentation, index=index)
    data.prepare_data()
    data.setup()
    return data


def seeking(data: AudioDataModule) -> Callable[[int], object]:
    """Sixteen crops as training reads them."""
    return lambda number: data.crops(number, 16)


def whole(data: AudioDataModule) -> Callable[[int], object]:
    """Sixteen crops by decoding whole files."""

    root, files = data.indexes[0].root, data.indexes[0].usable

    def crop(number: int) -> np.ndarray:
        random = np.random.default_rng(number)
        path = os.path.join(root, files[random.integers(len(files))].path)
        audio, _ = read_audio(path, data.sample_rate)
        start = random.integers(audio.shape[1] - data.segment_length)
        return audio[:, start : start + data.segment_length]

    return lambda number: torch.from_numpy(np.stack([crop(n) for n in range(number, number + 16)]))


def measure(read: Callable[[int], object], seconds: float) -> float:
    """Crops per second of CPU time with one thread; the best of three, because other load disturbs."""
    read(0)
    best, number = 0.0, 0
    for _ in range(3):
        started, count = time.process_time(), 0
        while time.process_time() - started < seconds / 3:
            read(number)
            number += 16
            count += 16
        best = max(best, count / (time.process_time() - started))
    return best


def loaded(data: AudioDataModule, seconds: float) -> float:
    """Crops per second of wall time through the training loader."""
    batches = iter(data.train_dataloader())
    for _ in range(10):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += len(next(batches).numbers)
    return count / (time.perf_counter() - started)


def line(name: str, values: list[float]) -> None:
    """Print one line of the table."""
    print(f"{name:34} " + " ".join(f"{value:9,.0f}" for value in values))


if __name__ == "__main__":
    main()
