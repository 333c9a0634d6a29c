"""Comparison as one self-contained HTML page, as CSV for programs, and as Markdown for a README."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from codec import __version__
from codec.config import PACKAGE
from codec.evaluation.runs import Comparison
from codec.evaluation.statistics import SIGNIFICANT
from codec.evaluation.tables import Table, write_table
from codec.evaluation.variants import Variant
from codec.metrics.base import Metric
from codec.system.address import absolute
from codec.system.files import printable, write_whole

MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Page:
    """Comparison of `what`, runs or codecs; `failed` are the errors of those without a result.

    `clips` and `worst` are payloads of the script, `made` is the origin in pairs of name and value.
    """

    title: str
    what: str
    metrics: Sequence[Metric]
    variants: Sequence[Variant]
    failed: Mapping[str, str]
    clips: Sequence[Mapping[str, Any]]
    worst: Mapping[str, Any] | None = None
    tables: Sequence[Table] | None = None
    notes: Sequence[str]
    made: Sequence[tuple[str, str]]

    def write(self, output: Path) -> None:
        """Write `index.html`, `table.csv` and `table.md`."""
        output.mkdir(parents=True, exist_ok=True)
        rows = [flat(variant, self.metrics) for variant in self.variants]
        rows += [{"variant": name, "error": error} for name, error in self.failed.items()]
        head = list(dict.fromkeys(key for row in rows for key in row))
        write_table(output / "table.csv", head, [list(map(row.get, head)) for row in rows])
        write_whole(output / "table.md", to_markdown(self))
        entries = {name: value for name, value in vars(self).items() if value is not None}
        entries["metrics"] = [{"key": metric.name, **metric.stated()} for metric in self.metrics]
        entries["failed"] = [{"name": name, "error": error} for name, error in self.failed.items()]
        write_whole(output / "index.html", to_html(entries))


def origin_of_page(command: str, what: str, folders: Sequence[str | Path]) -> list[tuple[str, str]]:
    """Origin of a page, as pairs of name and value: command, version, date, folders."""
    lines = [("command", printable(command))] if command else []
    return [
        *lines,
        ("version", f"neural-audio-codec {__version__}"),
        ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        (what, ", ".join(printable(absolute(folder)) for folder in folders)),
    ]


def flat(variant: Variant, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Flatten a variant to one row of a table."""
    row: dict[str, Any] = {
        "variant": variant.name,
        "seeds": len(variant.seeds),
        "files": variant.files,
        "kbit/s": variant.nominal,
        "kbit/s entropy-coded": variant.entropy,
        "kbit/s of files": variant.file,
        "kbit/s under context": variant.context,
    }
    titles = {"mean": "", "low": " low", "high": " high", "spread": " sd of seeds", "p": " p"}
    for metric in metrics:
        score = variant.scores.get(metric.name)
        row |= {f"{metric.title}{title}": getattr(score, part, None) for part, title in titles.items()}
    return row | {
        "stages": len(variant.sizes),
        "codes of a stage": " ".join(map(str, dict.fromkeys(variant.sizes))),
        "usage": fmean(variant.usage) if variant.usage else None,
        "perplexity": fmean(variant.perplexity) if variant.perplexity else None,
        **{f"parameters {part}": number for part, number in variant.parameters.items()},
        "encode ms/s": variant.encode_ms,
        "decode ms/s": variant.decode_ms,
    }


def to_markdown(page: Page) -> str:
    """Format as a Markdown table: best score in bold, ≈ before scores not distinguishable from it."""
    head = ["variant", "seeds", "kbit/s", "entropy-coded", "of files", "under context"]
    head += [f"{metric.title} {'↓' if metric.lower else '↑'}" for metric in page.metrics]
    head += ["usage", "M parameters", "encode / decode ms/s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for variant in page.variants:
        row = flat(variant, page.metrics)
        cells = [
            variant.name + (" (ceiling)" if variant.reference else ""),
            row["seeds"],
            shown(row["kbit/s"], 2),
            shown(row["kbit/s entropy-coded"], 2),
            shown(row["kbit/s of files"], 2),
            shown(row["kbit/s under context"], 2),
            *(score_text(variant.scores.get(metric.name)) for metric in page.metrics),
            MISSING if row["usage"] is None else f"{row['usage']:.0%}",
            shown(sum(variant.parameters.values()) / 1e6, 2) if variant.parameters else MISSING,
            f"{shown(row['encode ms/s'], 1)} / {shown(row['decode ms/s'], 1)}",
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    legend = "Means over files with 95 % bootstrap intervals; **best**, ≈ not distinguishable from it."
    lines += ["", legend, ""]
    lines += [f"- {note}" for note in page.notes]
    lines += [f"- no result: {name}: {' '.join(error.split())}" for name, error in page.failed.items()]
    return "\n".join(lines) + "\n"


def score_text(score: Comparison | None) -> str:
    """Format a score as `**1.93** [1.90, 1.97]`, with `≈` if not distinguishable from the best."""
    if score is None:
        return MISSING
    text = f"**{score.mean:.3f}**" if score.best else f"{score.mean:.3f}"
    tie = "≈ " if score.p is not None and score.p >= SIGNIFICANT else ""
    spread = f" ± {score.spread:.3f}" if score.spread is not None else ""
    return f"{tie}{text}{spread} [{score.low:.3f}, {score.high:.3f}]"


def shown(value: float | None, digits: int) -> str:
    """Format a number with `digits` decimals; missing or infinite ones as `MISSING`."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def to_html(data: Mapping[str, Any], name: str = "report.html") -> str:
    """Insert the style and the data into the template of a page."""
    template, style = (
        (PACKAGE / "evaluation" / file).read_text(encoding="utf-8") for file in (name, "page.css")
    )
    # In a script element, only "<" can end it or start a comment.
    payload = json.dumps(plain(data), ensure_ascii=False).replace("<", "\\u003c")
    page = template.replace("@style@\n", style).replace("@title@", html.escape(str(data["title"])))
    return page.replace("@data@", payload)


def plain(node: Any) -> Any:
    """Convert records to mappings, and NaN and infinite numbers, which JSON lacks, to None."""
    if isinstance(node, Variant | Comparison | Table):
        node = vars(node)
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [plain(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
