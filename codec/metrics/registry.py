"""All metrics: those of this package in the order of tables, and those of registered packages."""

from __future__ import annotations

import hashlib
import importlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codec.config import PARTS, ConfigError, registered_modules
from codec.metrics import perceptual, speech
from codec.metrics.base import Metric, metrics_in
from codec.metrics.perceptual import DNSMOS_P808, ESTOI, PESQ_WB, STOI, VISQOL_AUDIO, VISQOL_SPEECH, ZIMTOHRLI
from codec.metrics.process import MetricProcess
from codec.metrics.signal import L1, MEL, SCORES, SI_SDR, STFT
from codec.system.files import sha256

PERCEPTUAL = tuple(metrics_in(perceptual).values())
METRICS = {metric.name: metric for metric in (MEL, SI_SDR, STFT, L1, *PERCEPTUAL)}
WITH_MODEL = metrics_in(speech)  # each takes the folder of a model
# Groups combine intrusive metrics and, if available, one without reference, because they disagree.
GROUPS = {
    "speech": (STOI, ESTOI, PESQ_WB, VISQOL_SPEECH, DNSMOS_P808),
    "music": (VISQOL_AUDIO, ZIMTOHRLI),
    "all": PERCEPTUAL,
}


def registered() -> dict[str, Metric]:
    """Metrics of the registered modules, by name.

    ConfigError for a module that cannot be imported, and for a name of two metrics.
    """
    extra: dict[str, Metric] = {}
    for module in sorted(registered_modules()):
        try:
            members = metrics_in(importlib.import_module(module))
        except Exception as error:  # any error of another package
            raise ConfigError(f"{module}, registered in {PARTS}, cannot be imported: {error}") from error
        for name, metric in members.items():
            if (METRICS | extra).get(name, metric) != metric:
                raise ConfigError(f"{module}: there is another metric {name!r}: rename one of them")
            extra[name] = replace(metric, place=module)
    return {name: metric for name, metric in extra.items() if name not in METRICS}


def known(names: Iterable[str]) -> dict[str, Metric]:
    """Metrics by name: of this package and, for other names, of registered ones too."""
    return METRICS if METRICS.keys() >= set(names) else METRICS | registered()


def described(names: Iterable[str], summaries: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """Metrics of scores in the order of tables; others than this package's as `summary.json` states them."""
    others = {name: Metric(name) for name in sorted(set(names) - METRICS.keys())}
    for summary, name in itertools.product(summaries, others):
        stated = summary.get("own_metrics", {}).get(name)
        texts = {key: str(stated.get(key, "")) for key in ("title", "meaning", "unit")} if stated else {}
        lower = others[name].lower or name in summary.get("lower_is_better", ())
        others[name] = replace(others[name], lower=lower, **texts)
    return [*(metric for metric in METRICS.values() if metric.name in set(names)), *others.values()]


def choose_metrics(names: Sequence[str], plugins: Sequence[str] = ()) -> tuple[list[Metric], list[str]]:
    """Select metrics by name or group, and plug-ins; returns them and the reasons for omitted ones.

    Plug-ins are `NAME=MODULE:ATTRIBUTE[,PATH...]`, of a function or a `Metric`, or `NAME=FOLDER` of a metric
    with a model. Missing metrics of a group are omitted; ConfigError for a missing one selected by name.
    """
    metrics, chosen, omitted = known(set(names) - GROUPS.keys()), [], []
    selected: dict[str, tuple[Metric, bool]] = {}
    for name in names:
        if name in WITH_MODEL and name not in metrics:
            raise ConfigError(f"--metrics {name}: it takes a model: --metric {name}=FOLDER")
        if name not in metrics and name not in GROUPS:
            choices = ", ".join([*GROUPS, *(one.name for one in metrics.values() if not one.tensors)])
            raise ConfigError(f"--metrics: no metric {name!r}; there are {choices}")
        for metric in GROUPS.get(name) or (metrics[name],):
            _, optional = selected.get(metric.name, (None, True))
            if metric not in SCORES:  # which every evaluation has
                selected[metric.name] = metric, optional and name in GROUPS
    for text in plugins:
        name, _, rest = text.partition("=")
        if name in WITH_MODEL and not rest:
            raise ConfigError(f"--metric {text}: it takes a model: --metric {name}=FOLDER")
        if name in WITH_MODEL and ":" not in rest:
            selected[name] = replace(WITH_MODEL[name], paths=(rest,)), False
            continue
        place, *paths = rest.split(",")
        if not name.isidentifier() or name in selected.keys() | METRICS.keys() or ":" not in place:
            expected = "NAME=MODULE:ATTRIBUTE or NAME=FILE.py:ATTRIBUTE,PATH with a new name"
            raise ConfigError(f"--metric {text}: expected {expected}")
        selected[name] = Metric(name, place=place, paths=tuple(paths)), False
    process = MetricProcess()
    try:
        for metric, optional in selected.values():
            try:
                chosen.append(identified(process.check(metric)))
            except ConfigError as error:
                if not optional:
                    raise
                omitted.append(str(error))
    finally:
        process.close()
    return chosen, omitted


def identified(metric: Metric) -> Metric:
    """Metric whose version has a hash of its files and folders, so that another model is another version."""
    files = [
        file
        for path in map(Path, metric.paths)
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        return metric
    content = hashlib.sha256("".join(file.name + sha256(file) for file in files).encode()).hexdigest()
    return replace(metric, version=f"{metric.version}, files {content[:12]}")
