"""Record of one forward pass, and the base class of losses that need more of it than audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codec.quantizers.base import Quantized


@dataclass(frozen=True)
class Forward:
    """Tensors of one forward pass of the codec.

    `audio`, `target` and `estimate` are `[B, C, T]`; the target is the audio unless the data say otherwise.
    `latents` `[B, D, F]` are the encoder's, with gradient, one each `hop_length` samples. `quantized` has the
    quantizer's output, with the outputs of its `branches`. `features` `[B, D', F']` are a teacher's,
    precomputed for the crops. `generator`, on the CPU, is for all randomness of losses, the same on all
    processes; `step` counts batches of the run.
    """

    audio: Tensor
    target: Tensor
    estimate: Tensor
    latents: Tensor | None = None
    quantized: Quantized | None = None
    step: int = 0
    generator: torch.Generator | None = None
    features: Tensor | None = None
    hop_length: int = 1


class Loss(nn.Module):
    """Loss of a whole forward pass: on latents, codes, or features of a teacher.

    Losses of two audio tensors need no base class. A balancer scales losses of audio only; one of this class
    is added with its weight.
    """

    def forward(self, outputs: Forward) -> Tensor:
        """Scalar loss of one forward pass."""
        raise NotImplementedError


class Teacher:
    """Frozen network of a loss: no parameter of the training, in no checkpoint.

    Gradients pass through it to its inputs.
    """

    def __init__(self, network: nn.Module):
        self.network = network.requires_grad_(False).eval()

    def __call__(self, inputs: Tensor, *arguments: Any) -> Any:
        """Apply the network, on the device of `inputs`."""
        self.network.to(inputs.device)
        return self.network(inputs, *arguments)
