"""Tables over several evaluations: delta rates, domains, paired differences, token stability, costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from codec.evaluation.analysis import Analysis
from codec.evaluation.bdrate import bd_rate
from codec.evaluation.context import context_table
from codec.evaluation.records import Means
from codec.evaluation.runs import EvaluationRun
from codec.evaluation.statistics import SIGNIFICANT, holm, interval, paired_p_value, smallest_p
from codec.evaluation.tables import Table
from codec.metrics.base import Metric
from codec.metrics.signal import L1


def comparison_tables(
    runs: Mapping[str, EvaluationRun],
    analyses: Mapping[str, Analysis],
    metrics: Sequence[Metric],
    anchor: str,
) -> list[Table]:
    """Build the tables of a comparison, except for its first one."""
    families = curves(runs)
    perceived = [metric for metric in metrics if metric != L1]
    tables = [
        delta_rates(runs, perceived, anchor) if len(families) > 1 and anchor in families else None,
        domains(runs, metrics),
        pairs(runs, metrics) if len(runs) > 1 else None,
        stages(runs, analyses),
        context_table({name: run.summary for name, run in runs.items() if run.summary}),
        tokens(analyses),
        costs(analyses),
    ]
    return [table for table in tables if table and table.rows]


def curves(runs: Mapping[str, EvaluationRun]) -> dict[str, list[Means]]:
    """Rate–distortion points by codec; a classical codec at several bitrates is one curve."""
    families: dict[str, list[Means]] = {}
    for name, run in runs.items():
        assert run.summary
        families.setdefault(run.summary.family or name, []).extend(run.summary.rate_distortion)
    return families


def delta_rates(runs: Mapping[str, EvaluationRun], metrics: Sequence[Metric], anchor: str) -> Table:
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


def delta_rate(points: Sequence[Means], anchor: Sequence[Means], metric: Metric) -> float | str:
    """BD-rate of two curves, or the reason for its absence."""
    pairs = [
        [
            (rate, score)
            for point in curve
            if (rate := point["kbit/s"]) is not None and (score := point.get(metric.name)) is not None
        ]
        for curve in (points, anchor)
    ]
    try:
        return round(bd_rate(*pairs, lower_is_better=metric.lower), 1)
    except ValueError as error:
        return str(error)


def domains(runs: Mapping[str, EvaluationRun], metrics: Sequence[Metric]) -> Table:
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


def pairs(runs: Mapping[str, EvaluationRun], metrics: Sequence[Metric]) -> Table:
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
        numbers = len(first_scores), float(difference.mean()), low, high, p
        rows.append([f"{first} - {second}", metric.title, *numbers, better])
    note = (
        "Differences of the same files, 95 % paired bootstrap intervals; p of the sign-flip permutation "
        "test, Holm-corrected over all rows. Bitrates differ: see the first table. "
    )
    if comparisons:
        note += smallest_p(max(len(entry[3]) for entry in comparisons), len(comparisons))
    head = ["pair", "score", "files", "difference", "low", "high", "p", "better"]
    return Table("pairs", "Paired differences", note, head, rows)


def tokens(analyses: Mapping[str, Analysis]) -> Table | None:
    """Token stability: shares of codes that change under batching, streaming, shift, gain and re-encoding."""
    shares = {name: analysis.stability for name, analysis in analyses.items() if analysis.stability}
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


def stages(runs: Mapping[str, EvaluationRun], analyses: Mapping[str, Analysis]) -> Table:
    """Codebook usage, entropy and residual energy of each quantizer stage."""
    rows = []
    for name, run in runs.items():
        assert run.summary
        s, energies = run.summary, analyses[name].energy_left if name in analyses else itertools.repeat(None)
        columns = s.codebook_sizes, s.codebook_usage, s.codebook_perplexity, s.codebook_entropy
        stages = zip(*columns, energies, strict=False)
        for number, (size, usage, perplexity, entropy, energy) in enumerate(stages, start=1):
            bits = round(entropy * math.log2(size), 3)
            rows.append([f"{name}: {number}", size, round(100 * usage, 1), perplexity, bits, energy])
    note = (
        "In the scored files: codes that occur, effective number of codes, bits a code carries; share of "
        "the latents' energy that is left after the stage."
    )
    head = ["codec: stage", "codes", "used %", "perplexity", "bits", "energy left"]
    return Table("stages", "Stages", note, head, rows)


def costs(analyses: Mapping[str, Analysis]) -> Table | None:
    """Speed, multiply–accumulates, latency and receptive fields."""
    if not analyses:
        return None
    rows = []
    for name, analysis in analyses.items():
        cost = analysis.cost
        speeds = cost.encode_speed, cost.decode_speed
        speeds += cost.encode_speed_all_threads, cost.decode_speed_all_threads
        macs = [round(cost.macs_per_second[p] / 1e9, 4) for p in ("encoder", "quantizer", "decoder")]
        rows.append([name, *speeds, *macs, cost.latency, cost.encoder_field, cost.decoder_field])
    head = ["codec", "encoding, times real time, 1 thread", "decoding", "encoding, all threads", "decoding"]
    head += ["encoder GMAC/s", "quantizer", "decoder", "latency ms", "encoder sees ms", "a latent changes ms"]
    threads = max(analysis.cost.threads for analysis in analyses.values())
    note = (
        f"Seconds of audio a second, of {threads} threads, whatever else ran. Multiply-accumulates per "
        "second of audio. Latency: until a sample can be given back. Empty: without end (recurrent)."
    )
    return Table("cost", "Speed, size, latency", note, head, rows)


def domain_of(name: str) -> str:
    """Domain of a file: the first folder of its name, or `.` without a folder."""
    parts = PurePath(name).parts
    return parts[0] if len(parts) > 1 else "."


def scores_of(run: EvaluationRun, metric: Metric) -> Mapping[str, float]:
    """Scores of one metric by file."""
    return run.scores.get(metric.name, {})


def is_classical(run: EvaluationRun) -> bool:
    """Return True for a baseline, or a codec that loses frames."""
    return run.summary is not None and run.summary.family is not None


def worst(run: EvaluationRun, metric: Metric, count: int = 10) -> list[str]:
    """Files with the worst scores, at most `count` and a third of all, worst first."""
    table = scores_of(run, metric)
    sign = -1 if metric.lower else 1
    return sorted(table, key=lambda file: sign * table[file])[: min(count, len(table) // 3)]
