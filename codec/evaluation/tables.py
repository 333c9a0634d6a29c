"""Comparison as CSV, for programs, and as Markdown, for a README."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from codec.evaluation.statistics import SIGNIFICANT

MISSING = "-"


def flat(variant: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Flatten a variant to one row of a table."""
    row: dict[str, Any] = {
        "variant": variant["name"],
        "seeds": len(variant["seeds"]),
        "files": variant["files"],
        "kbit/s": variant["nominal"],
        "kbit/s entropy-coded": variant["entropy"],
        "kbit/s of files": variant["file"],
    }
    for metric in metrics:
        score = variant["scores"].get(metric["key"], {})
        for part, title in (
            ("mean", ""),
            ("low", " low"),
            ("high", " high"),
            ("spread", " sd of seeds"),
            ("p", " p"),
        ):
            row[f"{metric['title']}{title}"] = score.get(part)
    row |= {
        "stages": len(variant["sizes"]),
        "codes of a stage": " ".join(map(str, dict.fromkeys(variant["sizes"]))),
        "usage": fmean(variant["usage"]) if variant["usage"] else None,
        "perplexity": fmean(variant["perplexity"]) if variant["perplexity"] else None,
        **{f"parameters {part}": number for part, number in variant["parameters"].items()},
        "encode ms/s": variant["encode_ms"],
        "decode ms/s": variant["decode_ms"],
    }
    return row


def to_csv(data: Mapping[str, Any]) -> str:
    """Format one row per variant; runs without a result follow with their errors."""
    rows = [flat(variant, data["metrics"]) for variant in data["variants"]]
    rows += [{"variant": run["name"], "error": run["error"]} for run in data["failed"]]
    columns = list({key: None for row in rows for key in row})
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(data: Mapping[str, Any]) -> str:
    """Format as a Markdown table: best score in bold, ≈ before scores not distinguishable from it."""
    titles = [f"{m['title']} {'↓' if m['lower'] else '↑'}" for m in data["metrics"]]
    head = [
        "variant",
        "seeds",
        "kbit/s",
        "entropy-coded",
        "of files",
        *titles,
        "usage",
        "M parameters",
        "encode / decode ms/s",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for variant in data["variants"]:
        row = flat(variant, data["metrics"])
        cells = [
            variant["name"] + (" (ceiling)" if variant["reference"] else ""),
            row["seeds"],
            shown(row["kbit/s"], 2),
            shown(row["kbit/s entropy-coded"], 2),
            shown(row["kbit/s of files"], 2),
            *(score_text(variant["scores"].get(metric["key"])) for metric in data["metrics"]),
            MISSING if row["usage"] is None else f"{row['usage']:.0%}",
            shown(sum(variant["parameters"].values()) / 1e6, 2) if variant["parameters"] else MISSING,
            f"{shown(row['encode ms/s'], 1)} / {shown(row['decode ms/s'], 1)}",
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    lines += [
        "",
        "Means over files with 95 % bootstrap intervals; **best**, ≈ not distinguishable from it.",
        "",
    ]
    lines += [f"- {note}" for note in data["notes"]]
    lines += [f"- no result: {run['name']}: {' '.join(run['error'].split())}" for run in data["failed"]]
    return "\n".join(lines) + "\n"


def score_text(score: Mapping[str, Any] | None) -> str:
    """Format a score as `**1.93** [1.90, 1.97]`, with `≈` if not distinguishable from the best."""
    if score is None:
        return MISSING
    text = f"**{score['mean']:.3f}**" if score["best"] else f"{score['mean']:.3f}"
    tie = "≈ " if score["p"] is not None and score["p"] >= SIGNIFICANT else ""
    spread = f" ± {score['spread']:.3f}" if score["spread"] is not None else ""
    return f"{tie}{text}{spread} [{score['low']:.3f}, {score['high']:.3f}]"


def shown(value: float | None, digits: int) -> str:
    """Format a number with `digits` decimals; missing or infinite ones as `MISSING`."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
