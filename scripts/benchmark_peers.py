"""The original EnCodec and DAC, trained as in public, for benchmark_training.py.

encodec: the package has no trainer; this is AudioCraft's recipe, with the discriminator frozen in the
    generator's step. The package has no loss balancer either; with one, it is ours.
dac: the loop of the repository's scripts/train.py, without the two losses that it logs but gives no weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.losses.balancer import Balancer

SAMPLE_RATE = 24000
WINDOWS = [32, 64, 128, 256, 512, 1024, 2048]


class MelLoss(nn.Module):
    """EnCodec's frequency loss (arXiv:2210.13438, eq. 2) with torchaudio's transforms, as AudioCraft's."""

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self.mels = nn.ModuleList(
            MelSpectrogram(SAMPLE_RATE, window, window, window // 4, n_mels=64, power=1.0, normalized=True)
            for window in WINDOWS
        )

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Scalar distance of two `[B, 1, T]`."""
        total = torch.zeros(())
        for mel in self.mels:
            x, y = mel(estimate), mel(target)
            logs = (1e-5 + x).log() - (1e-5 + y).log()
            total = total + functional.l1_loss(x, y) + torch.linalg.vector_norm(logs, dim=-2).mean()
        return total / len(self.mels)


class EncodecPeer:
    """The 24 kHz model and discriminator of the package encodec, all 32 stages used."""

    def __init__(self, balancer: bool):
        from encodec import EncodecModel
        from encodec.msstftd import MultiScaleSTFTDiscriminator

        self.model = EncodecModel.encodec_model_24khz(pretrained=False).train()
        for layer in self.model.quantizer.vq.layers:
            # Random codebooks, as ours: fifty rounds of k-means at the first step are no part of a step.
            layer._codebook.embed.normal_(std=layer._codebook.embed.shape[1] ** -0.5)
            layer._codebook.inited.fill_(1)
        windows = [2048, 1024, 512, 256, 128]
        hops = [window // 4 for window in windows]
        self.judge = MultiScaleSTFTDiscriminator(
            filters=32, n_ffts=windows, win_lengths=windows, hop_lengths=hops
        )
        self.mel = MelLoss()
        self.weights = {"waveform": 0.1, "spectral": 1.0, "adversarial": 3.0, "feature_matching": 3.0}
        self.balancer = Balancer(list(self.weights)) if balancer else None
        self.optimizers = adamw(self.model, self.judge)

    def __call__(self, audio: Tensor) -> None:
        """One step on `[B, 1, T]`."""
        latents = self.model.encoder(audio)
        quantized = self.model.quantizer(latents, self.model.frame_rate, None)
        estimate = self.model.decoder(quantized.quantized)[..., : audio.shape[-1]]
        real, fake = self.judge(audio)[0], self.judge(estimate.detach())[0]
        losses = [
            functional.relu(1 - a).mean() + functional.relu(1 + b).mean()
            for a, b in zip(real, fake, strict=True)
        ]
        descend(self.optimizers[1], self.judge, torch.stack(losses).mean(), 10.0)
        self.judge.requires_grad_(False)
        total = self.total(self.losses(audio, estimate), estimate) + quantized.penalty
        self.judge.requires_grad_(True)
        descend(self.optimizers[0], self.model, total, 1.0)

    def losses(self, audio: Tensor, estimate: Tensor) -> dict[str, Tensor]:
        """The generator's losses."""
        (logits, fake_maps), (_, real_maps) = self.judge(estimate), self.judge(audio)
        distances = [
            functional.l1_loss(fake, real) / real.abs().mean()
            for fakes, reals in zip(fake_maps, real_maps, strict=True)
            for fake, real in zip(fakes, reals, strict=True)
        ]
        return {
            "waveform": functional.l1_loss(estimate, audio),
            "spectral": self.mel(estimate, audio),
            "adversarial": torch.stack([functional.relu(1 - one).mean() for one in logits]).mean(),
            "feature_matching": torch.stack(distances).mean(),
        }

    def total(self, losses: dict[str, Tensor], estimate: Tensor) -> Tensor:
        """Their sum, weighted or balanced."""
        if self.balancer:
            return (estimate * self.balancer.balance(losses, self.weights, estimate)).sum()
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()


class DACPeer:
    """The 24 kHz model, discriminator and losses of descript-audio-codec, conf/final/24khz.yml."""

    def __init__(self, balancer: bool):
        import dac
        from audiotools import AudioSignal
        from dac.model.discriminator import Discriminator
        from dac.nn.loss import GANLoss, MelSpectrogramLoss

        self.signal = AudioSignal
        rates = [2, 4, 5, 8]
        self.model = dac.DAC(
            encoder_rates=rates,
            decoder_rates=rates[::-1],
            n_codebooks=32,
            quantizer_dropout=0.5,
            sample_rate=SAMPLE_RATE,
        )
        self.judge = Discriminator(sample_rate=SAMPLE_RATE)
        self.gan = GANLoss(self.judge)
        self.mel = MelSpectrogramLoss(
            n_mels=[5, 10, 20, 40, 80, 160, 320],
            window_lengths=WINDOWS,
            mel_fmin=[0.0] * 7,
            mel_fmax=[None] * 7,
            pow=1.0,
            mag_weight=0.0,
        )
        self.optimizers = adamw(self.model, self.judge)

    def __call__(self, audio: Tensor) -> None:
        """One step on `[B, 1, T]`."""
        real = self.signal(audio, SAMPLE_RATE)
        output = self.model(audio, SAMPLE_RATE)
        fake = self.signal(output["audio"], SAMPLE_RATE)
        descend(self.optimizers[1], self.judge, self.gan.discriminator_loss(fake, real), 10.0)
        adversarial, feature_matching = self.gan.generator_loss(fake, real)
        total = 15.0 * self.mel(fake, real) + 2.0 * feature_matching + adversarial
        total = total + 0.25 * output["vq/commitment_loss"] + output["vq/codebook_loss"]
        descend(self.optimizers[0], self.model, total, 1000.0)


def adamw(*players: nn.Module) -> list[torch.optim.Optimizer]:
    """torch's default AdamW for each player."""
    return [torch.optim.AdamW(player.parameters(), lr=1e-4, betas=(0.8, 0.99)) for player in players]


def descend(optimizer: torch.optim.Optimizer, player: nn.Module, loss: Tensor, limit: float) -> None:
    """One clipped optimizer step."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(player.parameters(), limit)
    optimizer.step()


PEERS = {"encodec": EncodecPeer, "dac": DACPeer}
