"""Base class of discriminators: representations of the audio, and one convolutional network for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class DiscriminatorOutput(NamedTuple):
    """Output of one sub-discriminator: `logits` (any shape, batch first) and the feature maps before them."""

    logits: Tensor
    features: list[Tensor]


Outputs = Sequence[DiscriminatorOutput]  # of all sub-discriminators


class Discriminator(nn.Module):
    """Maps audio `[B, C, T]`, T >= 1 samples, to one `DiscriminatorOutput` per sub-discriminator.

    A subclass fills `networks` and defines `inputs`. Inputs are real fp32 tensors, computed without
    parameters: complex numbers break half precision and torch.compile. Networks are convolutions, which may
    run under autocast. `compile()` therefore compiles the networks and not the STFTs.
    """

    networks: nn.ModuleList

    def inputs(self, audio: Tensor) -> Iterable[Tensor]:
        """Input of each network, in order."""
        raise NotImplementedError

    def forward(self, audio: Tensor) -> list[DiscriminatorOutput]:
        """Logits and feature maps of audio `[B, C, T]`, one `DiscriminatorOutput` per network."""
        return [network(part) for network, part in zip(self.networks, self.inputs(audio), strict=True)]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the networks in place, with the arguments of `torch.compile`."""
        for network in self.networks:
            network.compile(*args, **kwargs)


class ConvStack(nn.Module):
    """Sequence of layers, whose outputs are the feature maps, and a head for the logits."""

    def __init__(self, layers: Sequence[nn.Module], head: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, hidden: Tensor) -> DiscriminatorOutput:
        """Logits and feature maps of one input `[B, C, ...]`."""
        features = []
        for layer in self.layers:
            hidden = layer(hidden)
            features.append(hidden)
        return DiscriminatorOutput(self.head(hidden), features)


def activated(conv: nn.Module, slope: float) -> nn.Sequential:
    """Convolution with an in-place leaky ReLU; feature maps are taken after it, so one tensor is stored."""
    return nn.Sequential(conv, nn.LeakyReLU(slope, inplace=True))


def check_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """Return the windows (samples); ValueError unless all are multiples of 4 of at least 32."""
    if not windows or min(windows) < 32 or any(window % 4 for window in windows):
        raise ValueError(f"windows must be multiples of 4 of at least 32 samples, got {list(windows)}")
    return tuple(windows)
