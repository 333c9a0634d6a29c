"""Semantic distillation: the first codebook, or the latents, predict the features of a speech model."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from codec.losses.base import Forward, Loss


class Features(Protocol):
    """Features of a teacher: `dim` dimensions, `frame_rate` frames per second, Hz."""

    dim: int
    frame_rate: float

    def __call__(self, outputs: Forward) -> Tensor:
        """Features `[B, dim, F]` of the crops; frame f is of the time from `f / frame_rate` on."""
        ...


class Distillation(Loss):
    """Distance of a learned projection of coded latents `[B, D, F]` from a teacher's features, a scalar.

    `source` "first_codebook" takes the first stage of a residual quantizer, the semantic branch of a split
    one, and of any other quantizer all of its output; "latents" takes the encoder's output. `form` is

    - "cosine": mean of 1 - cos over frames (Mimi, arXiv 2410.00037, section 3.3);
    - "cosine_over_time": mean of -log sigmoid(cos) over dimensions, with the cosine of their courses in time
      (SpeechTokenizer, arXiv 2308.16692);
    - "l2": mean of squared differences.

    A frame is compared with the mean of the features over `width` times its duration; Mimi has 2. The
    `sample_rate` is the codec's.
    """

    def __init__(
        self,
        teacher: Features,
        dim: int,
        sample_rate: int,
        source: Literal["first_codebook", "latents"] = "first_codebook",
        form: Literal["cosine", "cosine_over_time", "l2"] = "cosine",
        width: float = 1.0,
    ):
        super().__init__()
        if width <= 0:
            raise ValueError(f"width must be positive, in frames of the codec, got {width}")
        self.teacher, self.sample_rate = teacher, sample_rate
        self.source, self.form, self.width = source, form, width
        self.projection = nn.Linear(dim, teacher.dim)

    def forward(self, outputs: Forward) -> Tensor:
        """Scalar; gradients reach the projection and the codec."""
        assert outputs.quantized is not None and outputs.latents is not None
        first = (*outputs.quantized.branches, outputs.quantized)[0].latents
        coded = first if self.source == "first_codebook" else outputs.latents
        features = self.teacher(outputs)
        with torch.autocast(coded.device.type, enabled=False):
            step = self.teacher.frame_rate * outputs.hop_length / self.sample_rate  # features per frame
            target = pooled(features.float(), coded.shape[-1], step, self.width * step).mT
            student = self.projection(coded.float().mT)
            if self.form == "l2":
                return functional.mse_loss(student, target)
            if self.form == "cosine":
                return 1 - functional.cosine_similarity(student, target, dim=2).mean()
            return -functional.logsigmoid(functional.cosine_similarity(student, target, dim=1)).mean()


def pooled(features: Tensor, frames: int, step: float, width: float) -> Tensor:
    """Means `[B, D, frames]` of features `[B, D, F]` over windows of any length.

    Window n has its center at `(n + 1/2) * step` features, at most in the middle of the last one, and a
    length of `width` features. Each feature is weighted with the time that it shares with the window.
    """
    length = features.shape[-1]
    begins = torch.arange(length, dtype=torch.float32, device=features.device)[:, None]
    centers = ((torch.arange(frames, device=features.device) + 0.5) * step).clamp(max=length - 0.5)
    shared = torch.minimum(begins + 1, centers + width / 2) - torch.maximum(begins, centers - width / 2)
    weights = shared.clamp(min=0)
    return features @ (weights / weights.sum(0))
