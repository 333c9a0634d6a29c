"""metrics.csv: all logged metrics of a run, kept across resumes."""

from __future__ import annotations

import csv
import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from codec.system.files import written_whole

log = logging.getLogger(__name__)


class MetricsCSV(Logger):
    """Appends rows to a csv file; a new metric adds a column, an empty cell means "not measured".

    Lightning's own csv logger deletes the file when a run is resumed. A row that cannot be written, as on a
    full disk, is logged as missing and training continues.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        """Empty: the file is in the run folder itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the file is in the run folder itself."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml in the run folder holds them."""

    @rank_zero_only
    def rewind(self, step: int, scored: bool = True) -> None:
        """Delete the rows after a step, before a resume; without `scored`, also this step's validation."""
        if self.path.is_file():
            rows = [row for row in self.read() if int(row["step"]) <= step]
            if not scored:
                rows = [row for row in rows if int(row["step"]) < step or not has_scores(row)]
            self.rewrite(rows)

    def read(self) -> list[dict[str, str]]:
        """Read all rows; a row truncated by a kill is dropped."""
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row["step"].isdigit() and None not in row.values()]
            self.columns = list(reader.fieldnames or [])
        return rows

    def rewrite(self, rows: list[dict[str, str]]) -> None:
        """Replace the file atomically."""
        with written_whole(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row of metrics at a step."""
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        new = [name for name in ("step", *metrics) if name not in self.columns]
        row = {"step": str(step or 0)} | {name: f"{value:.6g}" for name, value in metrics.items()}
        try:
            if new:
                rows = self.read() if self.path.is_file() else []
                self.columns += [name for name in new if name not in self.columns]
                self.rewrite(rows)
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(row)
        except OSError as error:
            log.error("step %s is missing in %s: %s", step, self.path, error)
            self.columns = []


def has_scores(row: dict[str, str]) -> bool:
    """True for a row with validation scores."""
    return any(name.startswith("valid/") and value for name, value in row.items())


def quiet_libraries() -> None:
    """Silence Lightning's warnings about intended behavior."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*num_workers.*",
        ".*resuming from a checkpoint that ended before.*",
        ".*exists and is not empty.*",
        ".*IterableDataset.*__len__.*",
        ".*isinstance.treespec.*",
        ".*in eval mode at the start of training.*",
        ".*no pre-optimization state was saved.*",
    ):
        warnings.filterwarnings("ignore", message)
