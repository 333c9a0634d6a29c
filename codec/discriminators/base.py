"""Base class of discriminators: views of the audio, and one convolutional body per view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Judgement(NamedTuple):
    """Output of one sub-discriminator: `logits` (any shape, batch first) and the feature maps before them."""

    logits: Tensor
    features: list[Tensor]


class Discriminator(nn.Module):
    """Maps audio `[B, C, T]`, T >= 1 samples, to one `Judgement` per sub-discriminator.

    A subclass fills `bodies` and defines `views`. Views are real fp32 tensors, computed without parameters:
    complex numbers break half precision and torch.compile. Bodies are convolutions, which may run under
    autocast. `compile()` therefore compiles the bodies and not the STFTs.
    """

    bodies: nn.ModuleList

    def views(self, audio: Tensor) -> Iterable[Tensor]:
        """Input of each body, in order."""
        raise NotImplementedError

    def forward(self, audio: Tensor) -> list[Judgement]:
        """Logits and feature maps of audio `[B, C, T]`, one `Judgement` per body."""
        return [body(view) for body, view in zip(self.bodies, self.views(audio), strict=True)]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the bodies in place, with the arguments of `torch.compile`."""
        for body in self.bodies:
            body.compile(*args, **kwargs)


class ConvStack(nn.Module):
    """Sequence of layers, whose outputs are the feature maps, and a head for the logits."""

    def __init__(self, layers: Sequence[nn.Module], head: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, view: Tensor) -> Judgement:
        """Logits and feature maps of one view `[B, C, ...]`."""
        features = []
        for layer in self.layers:
            view = layer(view)
            features.append(view)
        return Judgement(self.head(view), features)


def activated(conv: nn.Module, slope: float) -> nn.Sequential:
    """Convolution with an in-place leaky ReLU; feature maps are taken after it, so one tensor is stored."""
    return nn.Sequential(conv, nn.LeakyReLU(slope, inplace=True))


def check_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """Return the windows (samples); ValueError unless all are multiples of 4 of at least 32."""
    if not windows or min(windows) < 32 or any(window % 4 for window in windows):
        raise ValueError(f"windows must be multiples of 4 of at least 32 samples, got {list(windows)}")
    return tuple(windows)
