"""Hyperparameter search with Optuna: `codec-train -m search=optuna a.b=interval(1,9)`; extra `sweep`.

Hydra's own plugin requires Optuna before version 3 and cannot resume after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from codec.config import ConfigError
from codec.evaluation.runs import read_json
from codec.metrics.registry import known

Values = dict[str, str]


class Search:
    """Resumable search: `trials` runs whose options Optuna's TPE suggests to improve `metric`.

    Tree-structured Parzen estimator of Bergstra et al. 2011, in Optuna (arXiv 1907.10902).

    `parallel` trials are suggested at a time, without each other's results. ValueError for numbers below 1.
    """

    def __init__(self, trials: int = 20, metric: str = "mel", *, parallel: int = 1, seed: int = 0):
        if trials < 1 or parallel < 1:
            raise ValueError(f"trials and parallel must be at least 1, got {trials} and {parallel}")
        metrics = known([metric])
        if metric not in metrics:
            raise ValueError(f"metric: expected one of {', '.join(metrics)}, got {metric!r}")
        self.trials, self.metric, self.parallel, self.seed = trials, metrics[metric], parallel, seed

    def run(
        self,
        overrides: Sequence[Override],
        folder: Path,
        start: Callable[[list[Values]], list[Path]],
    ) -> str:
        """Call `start` with suggested values, which returns their run folders; returns the best as text."""
        try:
            import optuna  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ConfigError(f'search=optuna: {error}: pip install "neural-audio-codec[sweep]"') from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
        if not space:
            raise ConfigError("search=optuna: no option to search: give options as a,b or interval(low,high)")
        study = open_study(optuna, folder, self)
        states = optuna.trial.TrialState
        while len(finished_trials := study.get_trials(states=(states.COMPLETE, states.FAIL))) < self.trials:
            number = min(self.parallel, self.trials - len(finished_trials))
            trials = [study.ask() for _ in range(number)]
            places = start([{key: pick(trial, key, space[key]) for key in space} for trial in trials])
            for trial, place in zip(trials, places, strict=True):
                value = score(place, self.metric.name)
                study.tell(trial, value, state=None if value is not None else states.FAIL)
        if not study.get_trials(states=(states.COMPLETE,)):
            return f"no trial of {self.trials} ended with a score"
        best = study.best_trial
        best_options = " ".join(f"{key}={value}" for key, value in best.params.items())
        return f"best {self.metric.name} of {self.trials} trials: {best.value:.4g} with {best_options}"


def open_study(optuna: Any, folder: Path, search: Search) -> Any:
    """Study of a metric in a folder; interrupted trials are enqueued again."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "optuna.log"))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(
        storage=storage,
        study_name=search.metric.name,
        direction="minimize" if search.metric.lower else "maximize",
        load_if_exists=True,
    )
    # A resumed search must not draw the same values again.
    study.sampler = optuna.samplers.TPESampler(seed=search.seed + len(study.get_trials()))
    for trial in study.get_trials():
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
    return study


def pick(trial: Any, key: str, override: Override) -> str:
    """Suggested value of an option, as text for an override."""
    sweep = override.value()
    log = isinstance(sweep, IntervalSweep | RangeSweep) and "log" in (sweep.tags or ())
    if isinstance(sweep, IntervalSweep):
        low, high = float(sweep.start or 0), float(sweep.end or 0)
        if isinstance(sweep.start, int) and isinstance(sweep.end, int):
            return str(trial.suggest_int(key, int(low), int(high), log=log))
        # Four digits keep a folder's name readable.
        return f"{trial.suggest_float(key, low, high, log=log):.4g}"
    if isinstance(sweep, ChoiceSweep | RangeSweep):
        return str(trial.suggest_categorical(key, list(override.sweep_string_iterator())))
    raise ConfigError(f"search=optuna: {key}: expected a,b, range(...) or interval(...)")


def score(place: Path, metric: str) -> float | None:
    """Score of a run; None if the run failed. ConfigError for a metric that is not in its summary."""
    path = place / "evaluation" / "summary.json"
    if not path.is_file():
        return None
    summary: Mapping[str, Any] = read_json(path)
    if not isinstance(summary.get(metric), float):
        names = ", ".join(key for key, value in summary.items() if isinstance(value, float))
        raise ConfigError(f"search.metric: expected one of {names}, got {metric!r}")
    return summary[metric]
