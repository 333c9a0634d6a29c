"""One part of each kind: autoencoder, codebook, discriminator, loss, metric, source of recordings."""

import io
import wave

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.autoencoders import Autoencoder
from codec.codebooks import Codebook
from codec.codebooks.nearest import nearest
from codec.discriminators.base import ConvStack, Discriminator
from codec.metrics.base import Metric


class PlainAutoencoder(Autoencoder):
    """Plain strided convolutions, audio `[B, 1, T]` to latents `[B, D, T / hop]`."""

    def __init__(self, latent_dim: int = 16, hop: int = 64):
        super().__init__()
        self.audio_channels, self.latent_dim, self.hop_length = 1, latent_dim, hop
        self.analysis = nn.Conv1d(1, latent_dim, 3 * hop, hop, hop)
        self.synthesis = nn.ConvTranspose1d(latent_dim, 1, 3 * hop, hop, hop)

    def encode(self, audio: Tensor) -> Tensor:
        return self.analysis(audio)

    def decode(self, latents: Tensor) -> Tensor:
        return self.synthesis(latents)


class FrozenCodebook(Codebook):
    """Random vectors that are never learned; the first is zero, so that no stage makes it worse."""

    tabular = True

    def __init__(self, dim: int, codebook_size: int = 64):
        super().__init__()
        self.codebook_size = codebook_size
        vectors = torch.randn(codebook_size, dim)
        vectors[0] = 0
        self.register_buffer("vectors", vectors)

    def encode(self, inputs: Tensor) -> Tensor:
        return nearest(inputs, self.vectors)

    def table(self) -> Tensor:
        return self.vectors

    def sources(self) -> list[Tensor]:
        return [self.vectors]

    def forward(self, inputs, used, generator=None):
        codes = self.encode(inputs)
        return self.lookup(codes), codes, {}


class WaveDiscriminator(Discriminator):
    """One convolution over the waveform."""

    def __init__(self, audio_channels: int = 1):
        super().__init__()
        layer = nn.Sequential(nn.Conv1d(audio_channels, 4, 15, 4, 7), nn.LeakyReLU(0.2))
        self.networks = nn.ModuleList([ConvStack([layer], nn.Conv1d(4, 1, 3, 1, 1))])

    def inputs(self, audio: Tensor) -> list[Tensor]:
        return [audio]


class WaveformL2(nn.Module):
    """Mean squared difference of `[B, C, T]` and `[B, C, T]`."""

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(estimate, target)


def peak_error(estimate: np.ndarray, reference: np.ndarray, rate: int) -> float:
    """Largest difference of two samples."""
    return float(np.abs(estimate - reference).max())


PEAK_ERROR = Metric(
    "peak_error",
    "peak error",
    "Largest difference of two samples; full scale is 1.",
    lambda: peak_error,
    unit="FS",
    lower=True,
    package="anothercodec",
)


class Clicks:
    """Recordings in memory: one second of decaying clicks each, as 16-bit wav."""

    def __init__(self, count: int = 3, sample_rate: int = 8000):
        self.count, self.sample_rate = count, sample_rate
        self.name = f"clicks-{count}-{sample_rate}"

    def sizes(self) -> dict[str, int]:
        return {f"{number}.wav": 44 + 2 * self.sample_rate for number in range(self.count)}

    def open(self, id: str) -> io.BytesIO:
        number = int(id.removesuffix(".wav"))
        time = np.arange(self.sample_rate) % (300 + 70 * number)
        samples = 20000 * np.exp(-time / 40) * np.sin(time * (number + 1) / 9)
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((1, 2, self.sample_rate, 0, "NONE", ""))
            writer.writeframes(samples.astype("<i2").tobytes())
        file.seek(0)
        return file
