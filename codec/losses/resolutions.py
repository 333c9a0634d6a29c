"""Mel and complex distances at several resolutions that share their STFTs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codec.losses.objective import LossGroup
from codec.losses.spectral import check_windows
from codec.metrics import FLOOR, MEL_BINS, MEL_WINDOWS, check_same_shape
from codec.spectrogram import lean_stft, mel_filters, pad_reflect

TERMS = ("mel", "linear_mel", "loudness", "complex", "magnitude")
COMPRESSED = ("complex", "magnitude")
SMALLEST = 1e-6  # of a bin's energy, below which compression stays linear


class MultiResolutionLoss(LossGroup):
    """Distances between STFTs at several windows (samples; hop `window / 4`): any of five terms.

    `mel`: L1 of log10 mels, summed over windows (DAC, arXiv:2306.06546). `linear_mel`: L1 of the mels, as
    ESC adds it. `loudness`: squared distance of band means compressed to magnitude^`power`, summed over
    windows; the exponent is near that of loudness, on whose scale PESQ compares. `complex`: squared distance
    of real and imaginary parts on the same scale, averaged over `complex_windows` (ESC, arXiv:2404.19441,
    eq. 6): the one that sees phase. `magnitude`: the same of magnitudes alone. Where the phase cannot be
    coded, the complex term shrinks the estimate; beside it this one holds the level (Braun and Tashev,
    arXiv:2009.12286).

    With `draw`, a step compares that many windows, of those with the complex term and of the others in
    turn, scaled so that the expectation is that of all. Raises ValueError for impossible lists.
    """

    def __init__(
        self,
        sample_rate: int,
        windows: Sequence[int] = MEL_WINDOWS,
        n_mels: Sequence[int] = MEL_BINS,
        complex_windows: Sequence[int] = (256, 512, 1024, 2048),
        power: float = 0.3,
        terms: Sequence[str] = ("mel", "complex"),
        draw: int | None = None,
    ):
        super().__init__()
        check_windows(windows)
        self.names = tuple(terms)
        unknown = [term for term in terms if term not in TERMS]
        if unknown or not terms:
            raise ValueError(f"terms must be some of {', '.join(TERMS)}, got {list(terms)}")
        if len(windows) != len(n_mels) or not complex_windows or set(complex_windows) - set(windows):
            raise ValueError(
                "n_mels needs one entry a window, and complex_windows some of the windows, got "
                f"{list(windows)}, {list(n_mels)} and {list(complex_windows)}"
            )
        if draw is not None and not 1 <= draw <= len(windows):
            raise ValueError(f"draw must be 1 to {len(windows)} windows, or null for all, got {draw}")
        self.sample_rate, self.power, self.draw = sample_rate, power, draw
        self.n_mels = dict(zip(windows, n_mels, strict=True))
        both = tuple(complex_windows)
        self.groups = [both, tuple(window for window in windows if window not in both)]

    def forward(
        self, estimate: Tensor, target: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Compare `[B, C, T]` with `[B, C, T]`; a scalar a term."""
        check_same_shape(estimate, target)
        losses = dict.fromkeys(self.names, estimate.new_zeros((), dtype=torch.float32))
        for window, factor, count in self.choose(generator):
            with torch.no_grad():
                wanted = self.views(target, window)
            for name, view in self.views(estimate, window).items():
                if name in COMPRESSED:
                    distance = (view - wanted[name]).square().sum(-1).mean() / count
                elif name == "loudness":
                    distance = (view - wanted[name]).square().mean()
                else:
                    distance = (view - wanted[name]).abs().mean()
                losses[name] = losses[name] + factor * distance
        return losses

    def choose(self, generator: torch.Generator | None) -> list[tuple[int, float, int]]:
        """Windows of this step, the factor of each, and how many have a complex term in all."""
        chosen: list[tuple[int, float, int]] = []
        for number, group in enumerate(self.groups):
            share = len(group) if self.draw is None else (self.draw + 1 - number) // 2
            share = min(share, len(group))
            order = torch.randperm(len(group), generator=generator)[:share].tolist()
            chosen += [(group[index], len(group) / share, len(self.groups[0])) for index in order]
        return chosen

    def views(self, audio: Tensor, window: int) -> dict[str, Tensor]:
        """Tensors of one resolution that the terms compare."""
        padded = pad_reflect(audio, window // 2, window // 2)
        spectrum = torch.view_as_real(lean_stft(padded, window, window // 4))
        energy = spectrum.square().sum(-1)
        views: dict[str, Tensor] = {}
        if {"mel", "linear_mel", "loudness"} & set(self.names):
            filters = mel_filters(self.sample_rate, window, self.n_mels[window], True, audio.device)
            with torch.autocast(audio.device.type, enabled=False):
                mels = (energy + FLOOR**2).sqrt() @ filters
            views = {"mel": mels.clamp(min=FLOOR).log10(), "linear_mel": mels}
            if "loudness" in self.names:  # of means over a band, on the scale of single bins
                views["loudness"] = ((mels / filters.sum(0)).square() + SMALLEST) ** (self.power / 2)
        if window in self.groups[0] and set(COMPRESSED) & set(self.names):
            # The last axis is summed: two numbers a bin, or one.
            compression = ((energy + SMALLEST) ** ((self.power - 1) / 2))[..., None]
            views["complex"] = spectrum * compression
            if "magnitude" in self.names:
                views["magnitude"] = (energy + SMALLEST).sqrt()[..., None] * compression
        return {name: view for name, view in views.items() if name in self.names}
