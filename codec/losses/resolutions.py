"""Mel and complex distances at several resolutions that share their STFTs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codec.audio.spectrogram import lean_stft, mel_filters, pad_reflect
from codec.losses.objective import LossGroup
from codec.losses.spectral import check_windows
from codec.metrics.signal import FLOOR, MEL_BINS, MEL_WINDOWS, check_same_shape

TERMS = ("mel", "linear_mel", "loudness", "complex", "magnitude")
COMPRESSED = ("complex", "magnitude")
SMALLEST = 1e-6  # energy of a bin; compression is linear below it


class MultiResolutionLoss(LossGroup):
    """Distances between STFTs at several windows (samples; hop `window / 4`), any of five terms.

    `mel`: L1 of log10 mels, summed over windows (DAC, arXiv:2306.06546).
    `linear_mel`: L1 of the mels, the term that ESC adds.
    `loudness`: squared distance of band means compressed to magnitude^`power`, summed over windows. The
    exponent is close to that of loudness, the scale of PESQ.
    `complex`: squared distance of real and imaginary parts on the same scale, averaged over `complex_windows`
    (ESC, arXiv:2404.19441, eq. 6). It is the only term that depends on phase.
    `magnitude`: the same distance of magnitudes. The complex term shrinks an estimate whose phase cannot be
    coded; this term preserves the level (Braun and Tashev, arXiv:2009.12286).

    `draw` is the number of windows compared per step, taken alternately from the complex windows and the
    others, and scaled to the expectation over all windows. Raises ValueError for unknown terms, lists of
    different lengths, `complex_windows` outside `windows` and an impossible `draw`.
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
        """Compare `[B, C, T]` with `[B, C, T]`; one scalar per term."""
        check_same_shape(estimate, target)
        losses = dict.fromkeys(self.names, estimate.new_zeros((), dtype=torch.float32))
        for window, factor, count in self.choose(generator):
            with torch.no_grad():
                target_views = self.views(target, window)
            for name, view in self.views(estimate, window).items():
                if name in COMPRESSED:
                    distance = (view - target_views[name]).square().sum(-1).mean() / count
                elif name == "loudness":
                    distance = (view - target_views[name]).square().mean()
                else:
                    distance = (view - target_views[name]).abs().mean()
                losses[name] = losses[name] + factor * distance
        return losses

    def choose(self, generator: torch.Generator | None) -> list[tuple[int, float, int]]:
        """Windows of this step, with the factor of each and the total number of complex windows."""
        selection: list[tuple[int, float, int]] = []
        for number, group in enumerate(self.groups):
            share = len(group) if self.draw is None else (self.draw + 1 - number) // 2
            share = min(share, len(group))
            order = torch.randperm(len(group), generator=generator)[:share].tolist()
            selection += [(group[index], len(group) / share, len(self.groups[0])) for index in order]
        return selection

    def views(self, audio: Tensor, window: int) -> dict[str, Tensor]:
        """Tensor per term at one resolution, of audio `[B, C, T]`."""
        padded = pad_reflect(audio, window // 2, window // 2)
        spectrum = torch.view_as_real(lean_stft(padded, window, window // 4))
        energy = spectrum.square().sum(-1)
        views: dict[str, Tensor] = {}
        if {"mel", "linear_mel", "loudness"} & set(self.names):
            filters = mel_filters(self.sample_rate, window, self.n_mels[window], True, audio.device)
            with torch.autocast(audio.device.type, enabled=False):
                mels = (energy + FLOOR**2).sqrt() @ filters
            views = {"mel": mels.clamp(min=FLOOR).log10(), "linear_mel": mels}
            if "loudness" in self.names:  # band means keep the scale of single bins
                views["loudness"] = ((mels / filters.sum(0)).square() + SMALLEST) ** (self.power / 2)
        if window in self.groups[0] and set(COMPRESSED) & set(self.names):
            # The loss sums over the last axis: two values per bin, or one.
            compression = ((energy + SMALLEST) ** ((self.power - 1) / 2))[..., None]
            views["complex"] = spectrum * compression
            if "magnitude" in self.names:
                views["magnitude"] = (energy + SMALLEST).sqrt()[..., None] * compression
        return {name: view for name, view in views.items() if name in self.names}
