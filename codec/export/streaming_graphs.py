"""Step graphs of a causal codec, for streaming: functions of a chunk and explicit states."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codec.autoencoders.halves import Halves
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
from codec.layers.sinc import Resample
from codec.layers.streaming import State, StreamingLayer
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


def require_causal(codec: Codec) -> None:
    """Raise ConfigError for a network with lookahead: its states have no fixed shapes."""
    frames = codec.quantizer.stride
    encoder, decoder = codec.autoencoder.streaming_encoder(), codec.autoencoder.streaming_decoder()
    if encoder.count(codec.hop_length) < frames or decoder.count(frames) < codec.hop_length:
        raise ConfigError(
            f"this codec is not causal: it has no step graphs. {remedy(codec)}, export without --streaming, "
            "or stream it with Codec.streaming, which buffers the lookahead"
        )


def remedy(codec: Codec) -> str:
    """Option that makes a codec's network causal."""
    resamplers = (layer for layer in codec.autoencoder.modules() if isinstance(layer, Resample))
    if layer := next(resamplers, None):
        rate = codec.sample_rate * layer.ratio
        return (
            "Its encoder looks ahead to resample the audio, which no option of the network changes: train "
            f"the decoder at the encoder's rate, sample_rate={rate}"
        )
    if isinstance(codec.autoencoder, Halves):
        return "Take an encoder that was trained with causal=true, and train the decoder with it"
    return "Train with autoencoder.causal=true and lookahead=0 (SEANet: autoencoder.layers.causal=true)"


@torch.no_grad()
def step_programs(codec: Codec, frames: int = 1) -> dict[str, StepGraph]:
    """Export `encoder_step` and `decoder_step` of a codec for chunks of `frames` frames."""
    if frames < 1:
        raise ConfigError(f"--frames-per-step must be at least 1, got {frames}")
    require_causal(codec)
    codec = without_normalization(codec)
    audio = torch.zeros(1, codec.audio_channels, frames * codec.hop_length)
    latents = torch.zeros(1, codec.quantizer.dim, frames * codec.quantizer.stride)
    codes = torch.zeros_like(codec.quantizer.encode(latents), memory_format=torch.contiguous_format)
    graphs = {}
    condition = [torch.zeros(1, dtype=torch.int64)] if conditions(codec) else []
    for name, module, inputs, axes in (
        ("encoder_step", EncoderStep(codec), [audio, *condition], None),
        ("decoder_step", DecoderStep(codec), [codes], {1: stages_of(codec)}),
    ):
        log.info("tracing the %s", name)
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
