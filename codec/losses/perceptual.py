"""Differentiable PESQ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codec.losses.base import Teacher
from codec.metrics.signal import check_same_shape

SHORTEST = 0.32  # seconds: 20 frames of 32 ms, half overlapped, over which disturbance is averaged


class PESQLoss(nn.Module):
    """Symmetric and asymmetric disturbance of wideband PESQ (ITU-T P.862.2), without its time alignment.

    The implementation of torch-pesq, after PMSQE (Martin-Donas et al. 2018); its parameters are constants.
    Crops in which target or estimate is silent count as 0, because PESQ scales both to one level.
    A score that is trained rises more than quality does: compare by other scores than PESQ.
    Raises ValueError without torch-pesq (the extra `perceptual`) and for audio shorter than 0.32 s.
    """

    def __init__(self, sample_rate: int):
        super().__init__()
        try:
            from torch_pesq import PesqLoss
        except ImportError as error:
            message = (
                f'a loss of PESQ needs torch-pesq: pip install "neural-audio-codec[perceptual]" ({error})'
            )
            raise ValueError(message) from error
        self.sample_rate = sample_rate
        self.disturbance = Teacher(PesqLoss(1.0, sample_rate=sample_rate))

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Compare `[B, C, T]` with `[B, C, T]`; a scalar, averaged over examples and channels."""
        check_same_shape(estimate, target)
        if estimate.shape[-1] < SHORTEST * self.sample_rate:
            raise ValueError(f"PESQ needs crops of at least {SHORTEST} s: raise data.segment_seconds")
        with torch.autocast(estimate.device.type, enabled=False):
            pair = torch.stack([target.float().flatten(0, 1), estimate.float().flatten(0, 1)])
            audible = pair.detach().abs().amax(-1).gt(0).all(0)
            # A tone in place of silence, because a selection of rows would wait for the device.
            tone = torch.arange(pair.shape[-1], device=pair.device).sin()
            reference, degraded = torch.where(audible[:, None], pair, tone)
            return self.disturbance(reference, degraded).float().where(audible, 0).mean()
