"""Fixed validation clips as wavs and pictures at each validation."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from codec.audio.writing import write_wav
from codec.data.crops import Batch
from codec.evaluation.pictures import save_spectrogram_pair
from codec.system.files import mark_output
from codec.training.loggers import Clip, send_clip, to_loggers
from codec.training.module import CodecTraining

log = logging.getLogger(__name__)


class Samples(Callback):
    """Writes the first `count` validation clips, original and reconstruction, as wav and spectrogram."""

    def __init__(self, directory: Path, count: int = 4):
        self.directory = directory
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the clips of this batch with numbers below `count`."""
        assert isinstance(pl_module, CodecTraining)
        rate = pl_module.codec.sample_rate
        for number, original, estimate in zip(batch.numbers.tolist(), batch.audio, outputs, strict=True):
            if number >= self.count or not torch.isfinite(estimate).all():
                continue
            original, estimate = original.cpu().float(), estimate.detach().cpu().clamp(-1, 1)
            try:
                clip = self.write(number, trainer.global_step, original, estimate, rate)
            except OSError as error:
                log.error("samples of step %d are missing: %s", trainer.global_step, error)
            else:
                to_loggers(trainer, partial(send_clip, clip=clip))

    def write(self, number: int, step: int, original: Tensor, estimate: Tensor, rate: int) -> Clip:
        """Write wav files and spectrograms of one clip."""
        self.directory.mkdir(parents=True, exist_ok=True)
        mark_output(self.directory)
        stem = f"clip-{number}-step-{step:07d}"
        sounds = {"original": original, "reconstruction": estimate}
        files = {
            "original": self.directory / f"clip-{number}-original.wav",
            "reconstruction": self.directory / f"{stem}.wav",
        }
        for name, file in files.items():
            if name != "original" or not file.exists():
                write_wav(file, sounds[name].numpy(), rate)
        picture = self.directory / f"{stem}.png"
        save_spectrogram_pair(picture, original, estimate, rate, stem)
        return Clip(f"clip {number}", step, sounds, files, picture, rate)
