"""The picture of `learning_curve.py`: scores over the cost of the training, beside classical codecs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curve_scores import UNQUANTIZED, Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codec.metrics.registry import described
from codec.system.files import written_whole

LEVELS = ("opus_6", "opus_8", "opus_11", "opus_16")
COSTS = {"cpu_hours": "CPU-hours", "audio_hours": "hours of audio seen"}


def draw(path: Path, rows: Sequence[Row], baselines: Sequence[Row], scores: Sequence[str]) -> None:
    """Write a panel a score, a line a rate and a level a classical codec as a PNG of 1200 pixels' width."""
    cost = next(name for name in COSTS if all(row[name] for row in rows) or name == "audio_hours")
    lines = -(-(len(scores) + 1) // 3)
    figure = Figure(figsize=(12, 3.4 * lines), layout="constrained")
    panels = figure.subplots(lines, 3, squeeze=False).flatten()
    for panel, score in zip(panels, scores, strict=False):
        curves(panel, rows, cost, score)
        levels(panel, baselines, score)
        spread = [float(row[cost]) or 1.0 for row in rows]
        scale = "log" if max(spread) > 5 * min(spread) else "linear"  # whose ticks would overlap
        (metric,) = described([score], [])
        title = f"{metric.heading} (lower is better)" if metric.lower else metric.heading
        panel.set(title=title, xscale=scale, xlabel=COSTS[cost])
        panel.grid(alpha=0.3)
    for panel in panels[len(scores) :]:
        panel.set_axis_off()
    panels[len(scores)].legend(*panels[0].get_legend_handles_labels(), loc="upper left", fontsize=11)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def curves(panel: Axes, rows: Sequence[Row], cost: str, score: str) -> None:
    """Draw a line for each number of stages and beam, the fewest stages first."""
    rates = {(row["stages"], row["beam"]): row for row in rows}
    ordered = sorted(rates, key=lambda rate: (rate[0] == UNQUANTIZED, rate[0].zfill(9), rate[1].zfill(9)))
    stages = list(dict.fromkeys(rate[0] for rate in ordered))
    for rate in ordered:
        points = sorted(
            (float(row[cost]), float(row[score]))
            for row in rows
            if (row["stages"], row["beam"]) == rate and row[score]
        )
        searched = "" if rate[1] == "1" else f", beam {rate[1]}"
        label = f"{float(rates[rate]['kbps'] or 0):g} kbit/s{searched}"
        style = f"C{stages.index(rate[0])}" + (
            ":" if rate[1] == "1" and len({b for _, b in rates}) > 1 else "-"
        )
        if rate[0] == UNQUANTIZED:
            label, style = "unquantized", "k:"
        costs, heights = [cost for cost, _ in points], [height for _, height in points]
        panel.plot(costs, heights, style, marker="o", markersize=4, label=label)


def levels(panel: Axes, baselines: Sequence[Row], score: str) -> None:
    """Draw horizontal lines of classical codecs with their names, side by side: some lines are close."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    known = {row["codec"]: row[score] for row in baselines if row[score]}
    for place, name in enumerate(LEVELS):
        if name in known:
            height, label = float(known[name]), name.replace("opus_", "Opus ")
            panel.axhline(height, color="gray", linewidth=1, linestyle="--", zorder=1)
            where = panel.get_yaxis_transform()
            panel.text(0.02 + 0.15 * place, height, label, transform=where, va="center", fontsize=8, bbox=box)
