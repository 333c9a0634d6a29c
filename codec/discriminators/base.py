"""What a discriminator is: views of the audio, one convolutional body a view, one judgement a body."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Judgement(NamedTuple):
    """What one sub-discriminator says: `logits` (any shape, batch first) and the feature maps before them."""

    logits: Tensor
    features: list[Tensor]


class Discriminator(nn.Module):
    """Judges audio `[B, C, T]`, T >= 1 samples: one `Judgement` per sub-discriminator.

    A subclass fills `bodies` and defines `views`. Views are real tensors in fp32 without parameters (no
    complex numbers: they break half precision and torch.compile); bodies are convolutions alone, which may
    run under autocast. `compile()` therefore compiles the bodies and leaves the STFTs as they are.
    """

    bodies: nn.ModuleList

    def views(self, audio: Tensor) -> Iterable[Tensor]:
        """What each body looks at, one tensor a body."""
        raise NotImplementedError

    def forward(self, audio: Tensor) -> list[Judgement]:
        """Judge audio `[B, C, T]`."""
        return [body(view) for body, view in zip(self.bodies, self.views(audio), strict=True)]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the bodies in place, with the arguments of `torch.compile`."""
        for body in self.bodies:
            body.compile(*args, **kwargs)


class ConvStack(nn.Module):
    """Layers in a row, each output a feature map, then a head that gives the logits."""

    def __init__(self, layers: Sequence[nn.Module], head: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, view: Tensor) -> Judgement:
        """Judge one view `[B, C, ...]`."""
        features = []
        for layer in self.layers:
            view = layer(view)
            features.append(view)
        return Judgement(self.head(view), features)


def activated(conv: nn.Module, slope: float) -> nn.Sequential:
    """A convolution and its leaky ReLU, in place: features are taken after it, so nothing else is kept."""
    return nn.Sequential(conv, nn.LeakyReLU(slope, inplace=True))


def check_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """Return the windows (samples); ValueError unless all are multiples of 4 of at least 32."""
    if not windows or min(windows) < 32 or any(window % 4 for window in windows):
        raise ValueError(f"windows must be multiples of 4 of at least 32 samples, got {list(windows)}")
    return tuple(windows)
