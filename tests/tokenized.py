"""Small codecs whose codes mean something, and folders of audio to encode with them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import config, small_autoencoder

from codec.audio.writing import write_wav
from codec.model.codec import Codec
from codec.model.saving import build_codec

RATE = 16_000
NEEDS_ARROW = pytest.mark.skipif(
    not importlib.util.find_spec("pyarrow"), reason="Arrow files need pyarrow: pip install -e '.[tokens]'"
)
LAYOUTS = [pytest.param("arrow", marks=NEEDS_ARROW), "npy"]
# Few codes for many latents: stages that are left with nothing but rounding errors would code those.
FEW = ["quantizer.num_quantizers=3", "quantizer.codebook.codebook_size=64"]


def small_codec(*overrides: str, channels: int = 1) -> Codec:
    """A codec of some thousand parameters whose codebooks are fitted to its latents of noise."""
    torch.manual_seed(0)
    plain = [] if any(option.startswith("quantizer=") for option in overrides) else FEW
    name = next((option[12:] for option in overrides if option.startswith("autoencoder=")), "tiny")
    options = ["experiment=tiny", *plain, *small_autoencoder(name), f"channels={channels}", *overrides]
    codec = build_codec(config(*options)["model"]).eval()
    with torch.inference_mode():
        noise = torch.rand(1, channels, 1200 * codec.hop_length) * 0.6 - 0.3
        pool = codec.latents(noise)[0].T
        codec.quantizer.initialise(pool.clone())
    return codec


def require_same_codes(codec: Codec, found: torch.Tensor, audio: np.ndarray | torch.Tensor) -> None:
    """Fail unless codes `[K, F]` are those of the audio `[C, T]` alone.

    A frame may differ where two codes are equally near but for rounding, which no two batches share.
    """
    with torch.inference_mode():
        latents = codec.latents(torch.as_tensor(audio)[None])
        expected = codec.quantizer.encode(latents, len(found))[0]
        assert found.dtype == expected.dtype and found.shape == expected.shape
        differing = (found != expected).any(0).nonzero().flatten().tolist()
        assert len(differing) <= 1 + found.shape[1] // 100
        for frame in differing:
            left = latents[0, :, frame].clone()
            for stage, (a, b) in enumerate(zip(found[:, frame], expected[:, frame], strict=True)):
                table = codec.quantizer.codebooks[stage].table()  # type: ignore[union-attr, index]
                distances = (table - left).square().sum(1)
                if a != b:
                    assert abs(distances[a] - distances[b]) < 1e-3 * distances[b], f"frame {frame}"
                    break
                left -= table[b]


def noise(samples: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Uniform noise `[C, T]` that a 16-bit wav holds exactly."""
    drawn = np.random.default_rng(seed).integers(-9000, 9000, (channels, samples))
    return (drawn / 32768).astype(np.float32)


def write_corpus(folder: Path) -> dict[str, np.ndarray]:
    """Wavs of many lengths in sub-folders, below the returned names, and three bad files beside them."""
    audio = {f"s{n % 3}/utt {n}.wav": noise(2000 + 1777 * n, n) for n in range(8)}
    audio["s0/utt 0.flac"] = noise(1, 99)
    for name, samples in audio.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(folder / name, samples, RATE)
    (folder / "page.wav").write_bytes(b"<html>404</html>")
    write_wav(folder / "s1" / "silent.wav", np.zeros((1, 4000), np.float32), RATE)
    (folder / "s2" / "empty.wav").write_bytes(b"")
    return audio


BAD = {"page.wav": "not audio", "s1/silent.wav": "silent", "s2/empty.wav": "zero-length file"}
