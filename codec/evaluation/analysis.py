"""Tables over several evaluations: delta rates, domains, paired differences, token stability, costs."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codec.evaluation.bdrate import bd_rate
from codec.evaluation.runs import Run
from codec.evaluation.statistics import SIGNIFICANT, holm, interval, paired_p_value, smallest_p
from codec.evaluation.summary import domain_of
from codec.metrics.base import Metric

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Table with a title, a note, column heads, and rows of text, numbers or None."""

    name: str
    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def to_csv(self) -> str:
        """Format as csv; None is an empty cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.head, *self.rows])
        return text.getvalue()


def curves(runs: Mapping[str, Run]) -> dict[str, list[dict[str, Any]]]:
    """Rate–distortion points by codec; a classical codec at several bitrates is one curve."""
    families: dict[str, list[dict[str, Any]]] = {}
    for name, run in runs.items():
        assert run.summary
        families.setdefault(run.summary.get("family", name), []).extend(run.summary["rate_distortion"])
    return families


def delta_rates(runs: Mapping[str, Run], metrics: Sequence[Metric], anchor: str) -> Table:
    """BD-rate in % of every curve against the anchor's, by metric, or the reason for its absence."""
    families = curves(runs)
    rows = []
    for name, points in families.items():
        if name != anchor and any(point["kbit/s"] is not None for point in points):
            rows.append([name, *(delta_rate(points, families[anchor], metric) for metric in metrics)])
    return Table(
        "bd_rate",
        f"Bitrate at equal quality, against {anchor}",
        "BD-rate: mean difference of the bitrate in % over the range of quality that both reach; negative is "
        "fewer bits. Nominal kbit/s of codes, payload of classical codecs.",
        ["codec", *(metric.title for metric in metrics)],
        rows,
    )


def delta_rate(points: Sequence[dict], anchor: Sequence[dict], metric: Metric) -> Any:
    """BD-rate of two curves, or the reason for its absence."""
    pairs = [
        [
            (point["kbit/s"], point[metric.name])
            for point in curve
            if point["kbit/s"] is not None and point.get(metric.name) is not None
        ]
        for curve in (points, anchor)
    ]
    try:
        return round(bd_rate(*pairs, lower_is_better=metric.lower), 1)
    except ValueError as error:
        return str(error)


def domains(runs: Mapping[str, Run], metrics: Sequence[Metric]) -> Table:
    """Means and intervals by domain: the first sub-folder of a file."""
    rows = []
    names = {domain_of(file) for run in runs.values() for file in scores_of(run, metrics[0])}
    for domain, (name, run) in itertools.product(sorted(names), runs.items()):
        tables = {
            m: [v for file, v in scores_of(run, m).items() if domain_of(file) == domain] for m in metrics
        }
        row: list[Any] = [f"{domain}: {name}", len(tables[metrics[0]])]
        for values in tables.values():
            row += [float(np.mean(values)), *interval(values)] if values else [None, None, None]
        rows.append(row)
    heads = itertools.chain.from_iterable(
        (metric.title, f"{metric.title} low", f"{metric.title} high") for metric in metrics
    )
    note = "Means over the files of each first sub-folder, with 95 % bootstrap intervals."
    return Table("domains", "Domains", note, ["domain: codec", "files", *heads], rows)


def pairs(runs: Mapping[str, Run], metrics: Sequence[Metric]) -> Table:
    """Paired differences of all pairs of models and of each model with each classical codec."""
    comparisons: list[tuple[str, str, Metric, list[float], list[float]]] = []
    models = [name for name, run in runs.items() if not is_classical(run)]
    for first, second in itertools.combinations(runs, 2):
        if first not in models and second not in models:
            continue
        for metric in metrics:
            tables = scores_of(runs[first], metric), scores_of(runs[second], metric)
            common = sorted(tables[0].keys() & tables[1].keys())
            if len(common) > 1:
                first_scores, second_scores = ([table[file] for file in common] for table in tables)
                comparisons.append((first, second, metric, first_scores, second_scores))
    p_values = {str(n): paired_p_value(entry[3], entry[4]) for n, entry in enumerate(comparisons)}
    corrected = holm(p_values)
    rows = []
    for number, (first, second, metric, first_scores, second_scores) in enumerate(comparisons):
        difference = np.subtract(first_scores, second_scores)
        low, high = interval(difference.tolist())
        p = corrected[str(number)]
        leader = first if (difference.mean() < 0) == metric.lower else second
        better = leader if p < SIGNIFICANT else ""
        rows.append(
            [
                *(f"{first} - {second}", metric.title, len(first_scores), float(difference.mean())),
                *(low, high, p, better),
            ]
        )
    note = (
        "Differences of the same files, 95 % paired bootstrap intervals; p of the sign-flip permutation "
        "test, Holm-corrected over all rows. Bitrates differ: see the first table. "
    )
    if comparisons:
        note += smallest_p(max(len(entry[3]) for entry in comparisons), len(comparisons))
    head = ["pair", "score", "files", "difference", "low", "high", "p", "better"]
    return Table("pairs", "Paired differences", note, head, rows)


def tokens(analyses: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Token stability: shares of codes that change under batching, streaming, shift, gain and re-encoding."""
    shares = {name: analysis["stability"] for name, analysis in analyses.items() if analysis["stability"]}
    if not shares:
        return None
    names = list(dict.fromkeys(itertools.chain.from_iterable(shares.values())))
    titles = {"shift": "shift by a sample", "gain_up": "gain +6 dB", "gain_down": "gain -6 dB"}
    titles |= {"reencode": "encoding the decoded audio again", "batch": "batch of 4", "chunks": "streaming"}
    rows = [
        [name, *(None if key not in share else round(100 * share[key], 3) for key in names)]
        for name, share in shares.items()
    ]
    note = "Codes in % that are not those of the clip coded alone."
    return Table("tokens", "Do the tokens stay?", note, ["codec", *(titles[key] for key in names)], rows)


def stages(runs: Mapping[str, Run], analyses: Mapping[str, Mapping[str, Any]]) -> Table:
    """Codebook usage, entropy and residual energy of each quantizer stage."""
    rows = []
    for name, run in runs.items():
        summary = run.summary or {}
        energies = analyses.get(name, {}).get("energy_left") or [None] * len(summary["codebook_sizes"])
        columns = [summary[f"codebook_{key}"] for key in ("sizes", "usage", "perplexity", "entropy")]
        for number, (size, usage, perplexity, entropy) in enumerate(zip(*columns, strict=True), start=1):
            bits = round(entropy * math.log2(size), 3)
            rows.append(
                [f"{name}: {number}", size, round(100 * usage, 1), perplexity, bits, energies[number - 1]]
            )
    note = (
        "In the scored files: codes that occur, effective number of codes, bits a code carries; share of "
        "the latents' energy that is left after the stage."
    )
    head = ["codec: stage", "codes", "used %", "perplexity", "bits", "energy left"]
    return Table("stages", "Stages", note, head, rows)


def costs(analyses: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Speed, multiply–accumulates, latency and receptive fields."""
    if not analyses:
        return None
    rows = []
    for name, analysis in analyses.items():
        cost = analysis["cost"]
        macs = [cost["macs_per_second"][part] / 1e9 for part in ("encoder", "quantizer", "decoder")]
        speeds = [
            cost[f"{part}_speed{suffix}"] for suffix in ("", "_all_threads") for part in ("encode", "decode")
        ]
        fields = [cost[key] for key in ("latency", "encoder_field", "decoder_field")]
        rows.append([name, *speeds, *(round(value, 4) for value in macs), *fields])
    head = ["codec", "encoding, times real time, 1 thread", "decoding", "encoding, all threads", "decoding"]
    head += ["encoder GMAC/s", "quantizer", "decoder", "latency ms", "encoder sees ms", "a latent changes ms"]
    threads = max(analysis["cost"]["threads"] for analysis in analyses.values())
    note = (
        f"Seconds of audio a second, of {threads} threads, whatever else ran. Multiply-accumulates per "
        "second of audio. Latency: until a sample can be given back. Empty: without end (recurrent)."
    )
    return Table("cost", "Speed, size, latency", note, head, rows)


def scores_of(run: Run, metric: Metric) -> Scores:
    """Scores of one metric by file."""
    return (run.scores or {}).get(metric.name, {})


def is_classical(run: Run) -> bool:
    """Return True for a baseline, or a codec that loses frames."""
    return "family" in (run.summary or {})


def worst(run: Run, metric: Metric, count: int = 10) -> list[str]:
    """Files with the worst scores, at most `count` and a third of all, worst first."""
    table = scores_of(run, metric)
    sign = -1 if metric.lower else 1
    return sorted(table, key=lambda file: sign * table[file])[: min(count, len(table) // 3)]
