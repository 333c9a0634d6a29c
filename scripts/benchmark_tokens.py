"""Token files and their encoding, compared with other formats and libraries.

python scripts/benchmark_tokens.py files     sizes and read speed of our formats and the usual ones
python scripts/benchmark_tokens.py encode    audio-hours per hour of EnCodec 24 kHz and DAC 44.1 kHz, ours and
    the transformers library's of the same sizes (pip install transformers)

Reading gives the inputs of a language model: int64 tensors `[K, F]`. The page cache is warm for all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codec.data.index import Index, IndexedFile
from codec.model.inference import encode_batch, exact_float32
from codec.tokens.dataset import TokenDataset
from codec.tokens.files import TokenFormat, Utterance, checksum
from codec.tokens.plan import Plan, Source
from codec.tokens.shards import WORK, Shards

SIZES = (1024,) * 8
HOP, RATE = 320, 24_000


class Ours:
    """A token dataset in either layout, written as codec-encode writes it."""

    def __init__(self, layout: str):
        self.layout = layout

    def write(self, folder: Path, codes: list[np.ndarray]) -> None:
        """Write shards of some hours and merge them."""
        form = TokenFormat(self.layout, "0" * 64, RATE, HOP, 1, SIZES)
        files = [IndexedFile(f"{n:06d}.wav", 0, 0, c.shape[1] * HOP, RATE, 1) for n, c in enumerate(codes)]
        sources = tuple(Source(file, file.path[:-4], file.path, None) for file in files)
        shards = tuple(range(n, min(n + 700, len(files))) for n in range(0, len(files), 700))
        plan = Plan("", Index("", tuple(files)), sources, shards, "")
        written = Shards(folder, plan, form, {})
        (folder / WORK).mkdir()
        for number, shard in enumerate(shards):
            outcomes: dict[int, Any] = {}
            for n in shard:
                facts = (1, RATE, files[n].frames, codes[n].shape[1])
                row = Utterance(sources[n].id, sources[n].path, *facts, "0" * 64, checksum(codes[n]))
                outcomes[n] = (row, codes[n])
            written.write(number, outcomes, "cpu")
        written.merge()

    def open(self, folder: Path) -> Callable[[int], torch.Tensor]:
        """A function that reads utterance i."""
        return TokenDataset(folder).__getitem__


class FilePerUtterance:
    """One file an utterance: `numpy.save` of int64, DAC's pickled dictionary, or `torch.save`."""

    def __init__(self, save: Callable[[Path, np.ndarray], None], load: Callable[[Path], np.ndarray]):
        self.save, self.load = save, load

    def write(self, folder: Path, codes: list[np.ndarray]) -> None:
        """Write all files into one folder."""
        for n, one in enumerate(codes):
            self.save(folder / f"{n:06d}.npy", one)

    def open(self, folder: Path) -> Callable[[int], torch.Tensor]:
        """A function that reads utterance i."""
        return lambda n: torch.from_numpy(self.load(folder / f"{n:06d}.npy").astype(np.int64))


class JsonText:
    """Lines of `id [[codes]]`, as FunCodec writes; where each line begins is found by one pass."""

    def write(self, folder: Path, codes: list[np.ndarray]) -> None:
        """Write one file."""
        with (folder / "codes.txt").open("w") as file:
            for n, one in enumerate(codes):
                file.write(f"{n:06d} {json.dumps(one.tolist())}\n")

    def open(self, folder: Path) -> Callable[[int], torch.Tensor]:
        """A function that reads utterance i."""
        starts = [0]
        file = (folder / "codes.txt").open("rb")
        for line in file:
            starts.append(starts[-1] + len(line))

        def read(n: int) -> torch.Tensor:
            file.seek(starts[n])
            return torch.tensor(json.loads(file.readline().split(b" ", 1)[1]))

        return read


def save_dac(path: Path, codes: np.ndarray) -> None:
    """The artefact of DAC's `DACFile.save`: a pickled dictionary."""
    metadata = {"input_db": np.zeros(1, np.float32), "original_length": codes.shape[1] * HOP, "channels": 1}
    metadata |= {
        "sample_rate": RATE,
        "chunk_length": codes.shape[1],
        "padding": False,
        "dac_version": "1.0.0",
    }
    np.save(path, {"codes": codes[None].astype(np.uint16), "metadata": metadata})  # type: ignore[arg-type]


FORMATS: dict[str, Any] = {
    "ours, arrow": Ours("arrow"),
    "ours, npy": Ours("npy"),
    "npy, int64": FilePerUtterance(lambda path, codes: np.save(path, codes.astype(np.int64)), np.load),
    "DAC, pickled npy": FilePerUtterance(
        save_dac, lambda path: np.load(path, allow_pickle=True)[()]["codes"][0]
    ),
    "JSON text": JsonText(),
}


def compare_files(utterances: int) -> None:
    """Print a table of formats."""
    random = np.random.default_rng(0)
    lengths = random.integers(100, 690, utterances)
    codes = [random.integers(0, 1024, (8, n)).astype(np.uint16) for n in lengths]
    picked = random.integers(0, utterances, 1000)
    bits = sum(one.size for one in codes) * 10 / 8e6
    print(f"{utterances} utterances, {sum(lengths) * HOP / RATE / 3600:.1f} h, {bits:.1f} MB at 10 bits\n")
    print("| format | MB | files | write, s | open, ms | read all, s | 1000 at random, ms |")
    print("|---|---|---|---|---|---|---|")
    for name, form in FORMATS.items():
        with tempfile.TemporaryDirectory() as temporary:
            print(f"| {name} | {measure(form, Path(temporary), codes, picked)} |")


def measure(form: Any, folder: Path, codes: list[np.ndarray], picked: np.ndarray) -> str:
    """The row of one format."""
    writing, _ = timed(lambda: form.write(folder, codes))
    opening, read = timed(lambda: form.open(folder))
    everything, _ = timed(lambda: [read(n) for n in range(len(codes))])
    some, _ = timed(lambda: [read(n) for n in picked])
    assert all(np.array_equal(read(n), codes[n]) for n in picked[:20])
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    numbers = f"{writing:.2f} | {1000 * opening:.0f} | {everything:.2f} | {1000 * some:.0f}"
    return f"{size:.0f} | {len(files)} | {numbers}"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Duration of a call in seconds, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def our_codec(experiment: str, device: str) -> Any:
    """A codec of an experiment, untrained."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from codec.config import CONFIG_DIR
    from codec.model.saving import build_codec

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config: Any = OmegaConf.to_container(
            compose("train", ["data.root=none", f"experiment={experiment}"]), resolve=True
        )
    return build_codec(config["model"]).eval().to(device)


def peer(experiment: str, device: str) -> Callable[[torch.Tensor], Any]:
    """The transformers library's model of the same architecture, untrained, as a function that encodes."""
    import transformers

    if experiment == "encodec_24khz":
        config = transformers.EncodecConfig(target_bandwidths=[6.0])
        model = transformers.EncodecModel(config).eval().to(device)
        return lambda audio: model.encode(audio, bandwidth=6.0)
    config = transformers.DacConfig(hop_length=512, sampling_rate=44_100, downsampling_ratios=[2, 4, 8, 8])
    model = transformers.DacModel(config).eval().to(device)
    return lambda audio: model.encode(audio)


def compare_encoding(device: str, seconds: float, batch: int, rounds: int) -> None:
    """Print audio-hours per hour of equal batches."""
    print(f"{batch} clips of {seconds:g} s, {device}, {torch.get_num_threads()} threads, fp32\n")
    print("| model | ours | transformers |")
    print("|---|---|---|")
    for experiment, stages in (("encodec_24khz", 8), ("dac_44khz", 9)):
        codec = our_codec(experiment, device)
        audio = torch.rand(batch, 1, round(seconds * codec.sample_rate), device=device) * 0.6 - 0.3
        with exact_float32():
            works = [
                partial(encode_batch, codec, list(audio), stages),
                partial(peer(experiment, device), audio),
            ]
            for work in works:
                finished(work, device)
            speeds = [batch * seconds / min(finished(work, device) for _ in range(rounds)) for work in works]
        print(f"| {experiment} | {speeds[0]:.1f} | {speeds[1]:.1f} |")


def finished(work: Callable[[], Any], device: str) -> float:
    """Seconds of a call, a GPU's work included."""

    def whole() -> None:
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return timed(whole)[0]


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("files", "encode"))
    parser.add_argument("--utterances", type=int, default=6000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "files":
        compare_files(options.utterances)
    else:
        compare_encoding(options.device, options.seconds, options.batch, options.rounds)


if __name__ == "__main__":
    main()
