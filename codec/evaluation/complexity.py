"""Complexity of coding: time, multiply–accumulates, algorithmic latency and receptive fields."""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from codec.model.codec import Codec
from codec.system.device import device_name

CONTEXT = 2.0  # s of audio on each side of the frame whose receptive field is measured


@dataclass(frozen=True)
class Cost:
    """Real-time factors on one and all threads, MACs by part, latency and receptive fields in ms."""

    encode_speed: float
    decode_speed: float
    encode_speed_all_threads: float
    decode_speed_all_threads: float
    threads: int
    macs_per_second: dict[str, int]
    latency: float
    encoder_field: float | None
    decoder_field: float | None


def time_coding(
    codec: Codec, audio: Tensor, seconds: float = 5.0, threads: int = 1
) -> tuple[float, float, str]:
    """Milliseconds to encode and to decode one second of audio, minimum of three runs; the device."""
    audio = audio[..., : round(seconds * codec.sample_rate)]
    codes = codec.encode(audio)

    def fastest(work: Callable[[], Tensor], repeats: int = 3) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work().cpu()  # waits for a GPU, whose kernels run asynchronously
            times.append(time.perf_counter() - start)
        return round(1000 * min(times) * codec.sample_rate / audio.shape[-1], 3)

    num_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times = fastest(lambda: codec.encode(audio)), fastest(lambda: codec.decode(codes))
    finally:
        torch.set_num_threads(num_threads)
    if audio.device.type != "cpu":
        return *times, device_name(audio.device)
    return *times, f"{threads} of {os.cpu_count()} CPU threads, {platform.machine()}"


@torch.inference_mode()
def cost(codec: Codec, audio: Tensor) -> Cost:
    """Measure the cost of a codec on audio `[1, C, T]`."""
    threads = os.cpu_count() or 1
    one, all_threads = (
        [round(1000 / time, 2) for time in time_coding(codec, audio, threads=number)[:2]]
        for number in (1, threads)
    )
    return Cost(
        *one,
        *all_threads,
        threads=threads,
        macs_per_second=count_macs(codec),
        **reach(codec),
    )


def count_linear(input_shape: Sequence[int], weight_shape: Sequence[int], *rest: Any, **named: Any) -> int:
    """Operations of oneDNN's matrix product, which torch's counter lacks."""
    return 2 * math.prod(input_shape) * weight_shape[0]


def count_attention(
    queries: Sequence[int], keys: Sequence[int], values: Sequence[int], *rest: Any, **named: Any
) -> int:
    """Operations of attention on a CPU, `[B, H, F, D]` each, masked pairs included."""
    return 2 * math.prod(queries) * keys[2] + 2 * math.prod(queries[:3]) * math.prod(values[2:])


def count_transform(input_shape: Sequence[int], *rest: Any, **named: Any) -> int:
    """Operations of real Fourier transforms of the last dimension, 2.5 N log2 N each."""
    length = rest[-1] if isinstance(rest[-1], int) and not isinstance(rest[-1], bool) else input_shape[-1]
    return round(math.prod(input_shape[:-1]) * 2.5 * length * math.log2(length))


def count_macs(codec: Codec, seconds: float = 1.0) -> dict[str, int]:
    """Multiply–accumulates per second of audio of encoder, quantizer (coding and decoding) and decoder.

    Counts convolutions, matrix products and Fourier transforms; elementwise operations are not formulas.
    """
    frames = max(1, round(seconds * codec.frame_rate))
    device = next(codec.parameters()).device
    audio = torch.zeros(1, codec.audio_channels, frames * codec.hop_length, device=device)

    def macs(work: Callable[[], Any]) -> int:
        aten = torch.ops.aten
        formulas = {aten._fft_r2c: count_transform, aten._fft_c2r: count_transform}
        formulas |= {torch.ops.mkldnn._linear_pointwise: count_linear}
        formulas |= {aten._scaled_dot_product_flash_attention_for_cpu: count_attention}
        counter = FlopCounterMode(display=False, custom_mapping=formulas)
        # Fused recurrent layers are one operation without a count; the unfused ones are matrix products.
        with warnings.catch_warnings(), torch.backends.cudnn.flags(enabled=False):
            warnings.simplefilter("ignore", UserWarning)  # about an option of other hardware
            with torch.backends.mkldnn.flags(enabled=False), counter:
                work()
        return round(counter.get_total_flops() / 2 * codec.sample_rate / audio.shape[-1])

    latents = codec.latents(audio)
    with torch.inference_mode(False), torch.no_grad():
        audio, latents = audio.clone(), latents.clone()
        return {
            "encoder": macs(lambda: codec.latents(audio)),
            "quantizer": macs(lambda: codec.quantizer(latents)),
            "decoder": macs(lambda: codec.autoencoder.decode(latents)),
        }


def reach(codec: Codec) -> dict[str, Any]:
    """Algorithmic latency and receptive fields in milliseconds, without computing time.

    `latency` is the delay until a sample can be decoded, `encoder_field` the span of audio that a latent
    depends on, `decoder_field` the span of audio that depends on a latent. A field is None if it is
    unbounded, as with recurrent layers.
    """
    network = codec.autoencoder
    hop, stride = network.hop_length, codec.quantizer.stride
    place = math.ceil(CONTEXT * codec.sample_rate / hop / stride) * stride  # at the start of a frame
    (first, last), (begin, end) = measured_fields(codec, place)
    # A frame is coded as a whole: its first latent waits for the last.
    latency = (stride - 1) * hop + last - begin + 1
    milliseconds = 1000 / codec.sample_rate
    bounded = [None not in context for context in (network.encoder_context, network.decoder_context)]
    return {
        "latency": round(latency * milliseconds, 4),
        "encoder_field": round((last - first + 1) * milliseconds, 4) if bounded[0] else None,
        "decoder_field": round((end - begin + 1) * milliseconds, 4) if bounded[1] else None,
    }


def measured_fields(codec: Codec, place: int) -> list[tuple[int, int]]:
    """First and last sample that latent `place` depends on, by its gradient, or changes, if perturbed.

    The autoencoder's contexts, whole latents, are upper bounds of these: latencies take samples.
    """
    network, length = codec.autoencoder, 2 * place + codec.quantizer.stride
    device = next(codec.parameters()).device

    def noise(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(device)

    with torch.inference_mode(False), torch.enable_grad():
        audio = (0.1 * noise(codec.audio_channels, length * network.hop_length)).requires_grad_()
        (gradient,) = torch.autograd.grad(network.encode(audio)[..., place].square().sum(), audio)
    with torch.inference_mode():
        latents = noise(network.latent_dim, length)
        perturbed = latents.clone()
        perturbed[..., place] += 1
        changed = network.decode(latents) != network.decode(perturbed)
    positions = [samples.any(dim=1)[0].nonzero() for samples in (gradient != 0, changed)]
    return [(int(samples.min()), int(samples.max())) for samples in positions]
