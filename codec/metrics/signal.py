"""Objective metrics: SI-SDR, mel and STFT distance per example, and codebook usage, perplexity, entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from codec.audio.spectrogram import magnitude, mel
from codec.metrics.base import Metric

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BINS = (5, 10, 20, 40, 80, 160, 320)
STFT_WINDOWS = (2048, 512)
FLOOR = 1e-5
DENSE_CODES = 2**20  # counts of larger codebooks, such as FSQ's grids, are sparse


def check_same_shape(estimate: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both are `[B, C, T]` of one shape, because broadcasting would mix up pairs."""
    if estimate.shape != target.shape or target.dim() != 3:
        shapes = f"{list(estimate.shape)} and {list(target.shape)}"
        raise ValueError(
            f"estimate and target must both be [B, C, T] of one shape, got {shapes}; trim or pad them"
        )


def si_sdr(estimate: Tensor, target: Tensor, zero_mean: bool = True) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (arXiv:1811.02508): `[B, C, T]` twice to `[B]`.

    The mean over channels. `zero_mean` removes each signal's DC first, as DAC does.
    """
    check_same_shape(estimate, target)
    estimate, target = estimate.float(), target.float()
    if zero_mean:
        estimate = estimate - estimate.mean(dim=-1, keepdim=True)
        target = target - target.mean(dim=-1, keepdim=True)
    eps = torch.finfo(torch.float32).eps
    scale = ((estimate * target).sum(-1, keepdim=True) + eps) / (target.square().sum(-1, keepdim=True) + eps)
    signal = scale * target
    ratio = (signal.square().sum(-1) + eps) / ((estimate - signal).square().sum(-1) + eps)
    return 10 * torch.log10(ratio).mean(dim=-1)


def mel_distance(
    estimate: Tensor,
    target: Tensor,
    sample_rate: int,
    windows: Sequence[int] = MEL_WINDOWS,
    n_mels: Sequence[int] = MEL_BINS,
) -> Tensor:
    """DAC's multi-scale mel distance (arXiv:2306.06546): `[B, C, T]` twice to `[B]`, 0 when equal.

    Sum over windows (samples; hop `window / 4`) of the mean absolute difference of `log10(max(mel, 1e-5))`
    over channels, frames and mel bins. Magnitudes, Slaney filters, as in DAC's released configs.
    """
    check_same_shape(estimate, target)
    total = estimate.new_zeros(estimate.shape[0], dtype=torch.float32)
    for window, bins in zip(windows, n_mels, strict=True):
        estimate_mel, target_mel = (
            mel(audio, sample_rate, window, bins).clamp(min=FLOOR).log10() for audio in (estimate, target)
        )
        total = total + (estimate_mel - target_mel).abs().mean(dim=(1, 2, 3))
    return total


def stft_distance(estimate: Tensor, target: Tensor, windows: Sequence[int] = STFT_WINDOWS) -> Tensor:
    """DAC's STFT distance: `[B, C, T]` twice to `[B]`, 0 when equal; finer in frequency than mel bins.

    Sum over windows (samples; hop `window / 4`) of the mean absolute difference of the magnitudes plus that
    of `2 * log10(max(magnitude, 1e-5))`, as in the released code behind the paper's tables.
    """
    check_same_shape(estimate, target)
    total = estimate.new_zeros(estimate.shape[0], dtype=torch.float32)
    for window in windows:
        estimate_magnitude, target_magnitude = magnitude(estimate, window), magnitude(target, window)
        log_difference = 2 * (
            estimate_magnitude.clamp(min=FLOOR).log10() - target_magnitude.clamp(min=FLOOR).log10()
        )
        total = total + ((estimate_magnitude - target_magnitude).abs() + log_difference.abs()).mean(
            dim=(1, 2, 3)
        )
    return total


def waveform_l1(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the samples: `[B, C, T]` twice to `[B]`."""
    check_same_shape(estimate, target)
    return (estimate.float() - target.float()).abs().mean(dim=(1, 2))


MEL = Metric("mel", "mel distance",
    "Mean difference of log-mel spectrograms, summed over seven window lengths, as in DAC; 0 is equal. Phase "
    "does not count.", lambda: mel_distance, lower=True, tensors=True)  # fmt: skip
SI_SDR = Metric("si_sdr", "SI-SDR",
    "Energy of the original over the energy of the error, at the best gain. Meaningless for codecs that do "
    "not reproduce the waveform.",
    lambda: lambda estimate, target, _: si_sdr(estimate, target), unit="dB", tensors=True)  # fmt: skip
STFT = Metric("stft", "STFT distance",
    "Mean difference of magnitudes and log-magnitudes at two window lengths, as in DAC; 0 is equal. Finer in "
    "frequency than the mel distance.", lambda: lambda estimate, target, _: stft_distance(estimate, target),
    lower=True, tensors=True)  # fmt: skip
L1 = Metric("l1", "waveform L1", "Mean absolute difference of the samples; full scale is 1, and 0 is equal.",
    lambda: lambda estimate, target, _: waveform_l1(estimate, target), lower=True, tensors=True)  # fmt: skip
SCORES = (SI_SDR, MEL, STFT, L1)  # of every evaluation and validation


def count_codes(codes: Tensor, codebook_sizes: Sequence[int]) -> list[Tensor]:
    """Number of occurrences of each code of each stage of `codes` `[B, K, F]`: K counts `[codebook_size]`.

    Counts of several batches may be added before `codebook_statistics`. Those of codebooks with more than
    `DENSE_CODES` entries are sparse tensors. Codes below 0 are ignored.
    Raises ValueError if K is not the number of sizes or a code is not in its codebook.
    """
    if codes.dim() != 3 or codes.shape[1] != len(codebook_sizes):
        raise ValueError(
            f"codes {list(codes.shape)} do not have {len(codebook_sizes)} stages: expected [B, K, F]"
        )
    counts = []
    for stage, size in enumerate(codebook_sizes):
        stage_codes = codes[:, stage].flatten()
        stage_codes = stage_codes[stage_codes >= 0]
        if stage_codes.numel() and int(stage_codes.max()) >= size:
            raise ValueError(
                f"stage {stage} has code {int(stage_codes.max())}, but its codebook has {size} entries"
            )
        if size <= DENSE_CODES:
            counts.append(torch.bincount(stage_codes, minlength=size))
        else:
            used_codes, occurrences = stage_codes.unique(return_counts=True)
            with torch.sparse.check_sparse_tensor_invariants(True):
                counts.append(torch.sparse_coo_tensor(used_codes[None], occurrences, (size,)))
    return counts


def codebook_statistics(counts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Per stage `[K]`: `usage` (share of codes used), `perplexity` (effective number of codes), `entropy`.

    `entropy` is a share of its maximum, 0..1: times `log2(codebook_size)` it is the bits per code. All
    are 0 for a stage without codes.
    """
    statistics: dict[str, list[float]] = {"usage": [], "perplexity": [], "entropy": []}
    for count in counts:
        occurrences = (count.coalesce().values() if count.is_sparse else count).cpu().double()
        share = occurrences / occurrences.sum().clamp(min=1)
        nats = -float(torch.xlogy(share, share).sum())
        statistics["usage"].append(float((occurrences > 0).sum()) / len(count))
        statistics["perplexity"].append(math.exp(nats) if occurrences.any() else 0.0)
        statistics["entropy"].append(nats / math.log(max(len(count), 2)))
    return {name: torch.tensor(values) for name, values in statistics.items()}


def codebook_usage(codes: Tensor, codebook_sizes: Sequence[int]) -> dict[str, Tensor]:
    """`codebook_statistics` of one tensor of codes `[B, K, F]`; codes below 0 are ignored."""
    return codebook_statistics(count_codes(codes, codebook_sizes))
