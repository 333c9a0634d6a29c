"""Parts of a package of its own: found, trained, resumed, loaded, coded, refused, exported and evaluated."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import torch
from tokenized import noise

import codec
from codec.audio.writing import write_wav
from codec.commands.export import check_codec
from codec.config import ConfigError, locate_own, registered_modules, trusting
from codec.data.module import AudioDataModule
from codec.data.scan import scan
from codec.export.formats import Options
from codec.layers.streaming import NotStreamable
from codec.model.inference import decode_part, encode_batch, exact_float32
from codec.system.sources import mount
from codec.tokens import TokenDataset

ELSEWHERE = Path(__file__).parent / "elsewhere"
NAME = "anothercodec"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with wavs, and beside it the metadata of the package, as pip would install them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    metadata = folder / "site" / f"{NAME}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[neural_audio_codec.parts]\nparts = {NAME}.parts\n")
    (folder / "mine" / "data").mkdir(parents=True)
    (folder / "mine" / "data" / "mine.yaml").write_text("defaults: [clicks, _self_]\n")
    (folder / "wavs").mkdir()
    for number in range(3):
        write_wav(folder / "wavs" / f"{number}.wav", noise(8000, number), 8000)
    return folder


def run(place: Path, *arguments: str, installed: bool = True) -> subprocess.CompletedProcess[str]:
    paths = [str(ELSEWHERE), *([str(place / "site")] if installed else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    return programs.run([sys.executable, "-m", "codec", *arguments], cwd=place, env=environment)


@pytest.fixture(scope="module")
def trained(place) -> Path:
    options = ["experiment=plain", "logger=none", "resume=auto"]
    first = run(place, "train", *options, "data=clicks", "evaluate=0")
    assert first.returncode == 0 and "clicks-3-8000://: 3 usable files" in first.stdout, first.stderr
    more = ["trainer.max_steps=6", "evaluate=1"]
    again = run(place, "train", *options, "data=mine", *more, "--config-dir", "mine")
    assert again.returncode == 0 and "at step 4, to step 6" in again.stdout, again.stdout + again.stderr
    return place / "runs" / "plain"


@pytest.fixture
def loaded(trained, monkeypatch) -> codec.Codec:
    monkeypatch.syspath_prepend(str(ELSEWHERE))
    return codec.load(trained, trust=[NAME])


def test_a_misspelled_option_of_the_package_gets_a_suggestion(place):
    done = run(place, "train", "--config-dir", "mine", "autoencoder=plane", "data.root=wavs")
    assert done.returncode == 2 and "did you mean plain?" in done.stderr
    path = f"hydra.searchpath=[file://{place}/mine]"
    done = run(place, "train", path, "experiment=plain", "data=mine", "autoencoder.latent_dimm=3")
    assert done.returncode == 2 and "did you mean autoencoder.latent_dim?" in done.stderr


def test_a_model_is_loaded_from_a_package_that_the_user_trusts(trained, loaded, place):
    assert loaded.quantizer.num_quantizers == 3 and type(loaded.autoencoder).__module__ == f"{NAME}.parts"
    with pytest.raises(ConfigError, match=rf"{NAME}.parts.PlainAutoencoder' is refused.*--trust {NAME}"):
        codec.load(trained)  # neither registered here nor named
    with pytest.raises(ConfigError, match="is refused"):
        codec.load(trained, trust=["another"])
    assert codec.load(trained, trust=NAME).codec_id() == loaded.codec_id()
    with pytest.raises(ConfigError, match="expected names of packages"):
        codec.load(trained, trust=["../another"])


def test_trust_in_a_package_is_no_trust_in_what_it_imports(loaded):
    assert f"{NAME}.parts" not in registered_modules()
    with trusting([NAME]):
        assert locate_own(f"{NAME}.parts.FrozenCodebook").__name__ == "FrozenCodebook"
        inner = ("np.load", "torch.hub.load", "peak_error", "FrozenCodebook.mro", "FrozenCodebook.__init__")
        for target in ("os.system", f"{NAME}.__main__.run", *(f"{NAME}.parts.{name}" for name in inner)):
            with pytest.raises(ConfigError, match="is refused"):
                locate_own(target)


def test_codes_do_not_depend_on_the_batch_and_parts_are_cut_from_the_whole(loaded):
    signals = [torch.from_numpy(noise(samples, samples)) for samples in (801, 2000, 64)]
    with torch.inference_mode(), exact_float32():
        for codes, signal in zip(encode_batch(loaded, signals), signals, strict=True):
            assert torch.equal(codes, loaded.encode(signal[None])[0])
        codes = loaded.encode(signals[1][None])[0]
        whole = loaded.decode(codes[None])[0]
        part = torch.cat(list(decode_part(loaded, lambda a, b: codes[:, a:b], codes.shape[1], 9, 20)), 1)
    torch.testing.assert_close(part, whole[:, 9 * 64 : 20 * 64], atol=1e-6, rtol=0)
    with pytest.raises(NotStreamable, match="PlainAutoencoder has no streaming form"):
        loaded.streaming()


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
def test_crops_of_a_source_are_those_of_a_folder_of_its_recordings(loaded, tmp_path, start):
    source = importlib.import_module(f"{NAME}.parts").Clicks()
    for name in source.sizes():
        (tmp_path / name).write_bytes(source.open(name).read())
    index = functools.partial(scan, cache_dir=tmp_path / "cache", progress=False)
    options = {"sample_rate": 6000, "segment_seconds": 0.2, "batch_size": 2, "num_workers": 1, "index": index}
    memory, folder = (AudioDataModule(root, **options) for root in (source, str(tmp_path)))
    for data in (memory, folder):
        data.prepare_data()
        data.setup()
    expected = folder.crops(0, 8)
    assert torch.equal(memory.crops(0, 8), expected)
    memory.load_state_dict({"seen": 4})
    loader = memory.train_dataloader()
    loader.multiprocessing_context = start
    batch = next(iter(loader))
    assert batch.numbers.tolist() == [4, 5] and torch.equal(batch.audio, expected[4:6])
    held_out, expected_out = ([Path(one).name for one in data.valid_files] for data in (memory, folder))
    assert held_out == expected_out


def test_two_sources_of_one_name_are_refused(loaded):
    clicks = importlib.import_module(f"{NAME}.parts").Clicks
    mount(clicks(count=2))
    other = clicks(count=3)
    other.name = clicks(count=2).name
    with pytest.raises(ValueError, match="two sources of other recordings are named 'clicks-2-8000'"):
        mount(other)
    with pytest.raises(ValueError, match="expected a path, or a source of recordings with a name"):
        AudioDataModule(7, sample_rate=8000)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of torch about its own format
def test_every_command_takes_the_package_by_registration_or_by_name(trained, loaded, place):
    model = str(trained)
    commands = {
        "encode": [model, "wavs", "-o", "tokens", "--format", "npy"],
        "compress": [model, "wavs/0.wav", "-o", "0.codec"],
        "decompress": [model, "0.codec", "-o", "0.wav"],
        "decode": [model, "tokens", "-o", "decoded"],
        "evaluate": [model, "wavs", "-o", "scores", "--metrics", "peak_error"],
        "fit-entropy": [model, "wavs"],
    }
    for command, arguments in commands.items():
        if command in ("encode", "evaluate"):
            refused = run(place, command, *arguments[:4], installed=False)
            assert refused.returncode == 2 and f"--trust {NAME}" in refused.stderr, refused.stderr
        trust = ["--trust", NAME] if command in ("encode", "decode", "fit-entropy") else []
        done = run(place, command, *arguments, *trust, installed=not trust)
        assert done.returncode == 0, (command, done.stderr)
    assert "peak error ↓" in (place / "scores/table.md").read_text()
    tokens = TokenDataset(place / "tokens")
    assert tokens.num_quantizers == 3 and len(tokens) == 3
    streamed = run(place, "stream", model, "wavs/0.wav", "-o", "s.wav")
    assert streamed.returncode == 2 and "has no streaming form" in streamed.stderr
    exported = run(place, "export", model, "--to", "torch", "-o", "exported")
    assert exported.returncode == 0, exported.stderr
    audio = torch.from_numpy(noise(1000, 7))[None]
    encode, decode = (
        torch.export.load(place / "exported" / f"{side}.pt2").module() for side in ("encoder", "decoder")
    )
    codes = loaded.encode(audio)
    assert torch.equal(encode(audio), codes)
    torch.testing.assert_close(decode(codes), loaded.decode(codes), rtol=0, atol=1e-6)
    with pytest.raises(NotStreamable, match="PlainAutoencoder has no streaming form"):
        check_codec(loaded, "torch", Options(streaming=True))
    with pytest.raises(ConfigError, match=r"are SEANets, .* the autoencoder is PlainAutoencoder"):
        check_codec(loaded, "hf", Options())
