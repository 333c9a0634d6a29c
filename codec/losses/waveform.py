"""Distance between waveforms."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from codec.metrics.signal import check_same_shape


class WaveformL1(nn.Module):
    """Mean absolute difference of the samples (EnCodec's time-domain loss, arXiv:2210.13438)."""

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Compare `[B, C, T]` with `[B, C, T]`; a scalar."""
        check_same_shape(estimate, target)
        return functional.l1_loss(estimate.float(), target.float())
