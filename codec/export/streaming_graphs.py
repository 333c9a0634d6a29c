"""Step graphs of causal encoders and decoders: functions of a chunk and explicit states."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codec.config import ConfigError
from codec.export.graphs import (
    all_stages,
    conditions,
    in_one_row,
    modulated,
    stages_of,
    without_normalization,
)
from codec.export.progress import log
from codec.layers.streaming import NotStreamable, State, StreamingLayer
from codec.model.codec import Codec


class EncoderStep(nn.Module):
    """Encode `n` frames of audio `[1, C, n * hop_length]`; returns codes `[1, K, n]` and the next states.

    The index of the condition, int64 `[1]`, is before the states if it is an input.
    """

    def __init__(self, codec: Codec):
        super().__init__()
        self.network = codec.autoencoder.streaming_encoder()
        self.quantizer, self.conditioning = codec.quantizer, codec.conditioning
        self.has_condition = bool(conditions(codec))

    def forward(self, audio: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Encode."""
        condition, state = (state[0], state[1:]) if self.has_condition else (None, state)
        latents, new_state = self.network(audio.transpose(1, 2), list(state))
        conditioned = modulated(self.conditioning, latents.transpose(1, 2), condition)
        return self.quantizer.encode(conditioned), *new_state


class DecoderStep(nn.Module):
    """Decode codes `[1, k, n]`, k <= K; returns audio `[1, C, n * hop_length]` and the next states."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.network = codec.autoencoder.streaming_decoder()
        self.quantizer = codec.quantizer

    def forward(self, codes: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Decode."""
        row = in_one_row(all_stages(codes, self.quantizer.num_quantizers))
        latents = self.quantizer.decode(row).transpose(1, 2)
        audio, new_state = self.network(latents, list(state))
        return audio.transpose(1, 2), *new_state


class StepGraph(NamedTuple):
    """Exported step and its initial states."""

    program: torch.export.ExportedProgram
    initial: State


def step_names(codec: Codec) -> list[str]:
    """Names of a codec's step graphs: `encoder_step` if the encoder is causal, and `decoder_step`.

    NotStreamable, a ConfigError, unless the decoder is causal.
    """
    frames, samples, network = codec.quantizer.stride, codec.hop_length, codec.autoencoder
    if reason := lookahead(network.streaming_decoder, frames, samples):
        raise NotStreamable(
            f"the decoder is not causal: it has no step graph ({reason}). Train one for the same codes "
            "(weights=... inherit=[encoder,quantizer]), or the whole codec, with autoencoder.causal=true and "
            "lookahead=0 (SEANet: autoencoder.layers.causal=true); or export without --streaming"
        )
    encoder = [] if lookahead(network.streaming_encoder, samples, frames) else ["encoder_step"]
    return [*encoder, "decoder_step"]


def lookahead(make: Callable[[], StreamingLayer], inputs: int, outputs: int) -> str:
    """Reason why a network has no step graph, as its states have no fixed shapes; empty if it has one."""
    try:
        waits = make().count(inputs) < outputs
    except NotStreamable as error:
        return str(error)
    return "it looks ahead, which Codec.streaming buffers" if waits else ""


@torch.no_grad()
def step_programs(codec: Codec, frames: int = 1) -> dict[str, StepGraph]:
    """Export the graphs of `step_names` of a codec for chunks of `frames` frames."""
    if frames < 1:
        raise ConfigError(f"--frames-per-step must be at least 1, got {frames}")
    names = step_names(codec)
    codec = without_normalization(codec)
    audio = torch.zeros(1, codec.audio_channels, frames * codec.hop_length)
    latents = torch.zeros(1, codec.quantizer.dim, frames * codec.quantizer.stride)
    codes = torch.zeros_like(codec.quantizer.encode(latents), memory_format=torch.contiguous_format)
    graphs = {}
    condition = [torch.zeros(1, dtype=torch.int64)] if conditions(codec) else []
    parts = {
        "encoder_step": (EncoderStep, [audio, *condition], None),
        "decoder_step": (DecoderStep, [codes], {1: stages_of(codec)}),
    }
    for name in names:
        log.info("tracing the %s", name)
        step, inputs, axes = parts[name]
        module = step(codec)
        network: StreamingLayer = module.network
        initial = [tensor.contiguous().clone() for tensor in network.initial(1)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from LSTMs, which set attributes while they are traced
            examples = (*inputs, *initial)
            shapes = axes, (None,) * len(examples[1:])
            program = torch.export.export(module.eval(), examples, dynamic_shapes=shapes)
            graphs[name] = StepGraph(program, initial)
    return graphs


StepFunction = Callable[..., tuple[Tensor, ...]]


def run_steps(step: StepFunction, initial: State, signal: Tensor, length: int) -> Tensor:
    """Run a step on chunks of `length` of each signal in `[B, C, T]` separately; returns joined outputs."""
    rows = []
    for row in signal:
        state, answers = list(initial), []
        for piece in row[None].split(length, 2):
            answer, *state = step(piece, *state)
            answers.append(answer)
        rows.append(torch.cat(answers, 2))
    return torch.cat(rows)
