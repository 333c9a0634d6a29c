"""Statistics of listening tests: ABX with the p of guessing, MUSHRA with mean ratings and paired differences.

Read from the CSVs that listeners download from the page of `codec-evaluate --listening`.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from codec.config import ConfigError
from codec.evaluation.listening import ANCHOR, REFERENCE
from codec.evaluation.statistics import guessing_p_value, holm, interval, wilcoxon_p_value
from codec.evaluation.tables import Table, write_table

# Post-screening of BS.1534-3: a listener who rates the hidden reference below 90 in over 15 % of the trials.
LEAST_RATING, LARGEST_SHARE = 90, 0.15
COLUMNS = {
    "abx": ("listener", "seed", "trial", "a", "b", "x", "answer"),
    "mushra": ("listener", "seed", "trial", "file", "condition", "score"),
}
Row = Mapping[str, str]
# By listener, page, seed and trial: score of each condition.
Ratings = dict[tuple[str, ...], dict[str, float]]


def read(paths: Iterable[Path]) -> dict[str, list[Row]]:
    """Rows of each test, `abx` or `mushra`, without repetitions of one file; ConfigError for other CSVs."""
    rows: dict[str, dict[tuple[str, ...], Row]] = {test: {} for test in COLUMNS}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is no CSV in UTF-8: send the file as the page saved it") from error
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        for number, row in lines_of(text, path):
            columns = COLUMNS.get(row.get("test", ""))
            if not columns or any(not row.get(column) for column in columns):
                raise ConfigError(f"{path}, line {number}: not of the page of codec-evaluate --listening")
            if row["test"] == "mushra" and not is_score(row["score"]):
                raise ConfigError(f"{path}, line {number}: a score is 0 to 100, got {row['score']!r}")
            if row["test"] == "abx" and not {row["x"], row["answer"]} <= {"A", "B"}:
                raise ConfigError(f"{path}, line {number}: x and answer are A or B, got {row['answer']!r}")
            rows[row["test"]][row.get("page", ""), *(row[column] for column in columns)] = row
    return {test: list(members.values()) for test, members in rows.items() if members}


def lines_of(text: str, path: Path) -> list[tuple[int, dict[str, str]]]:
    """Number and fields of each line that is not blank; spreadsheets separate them by semicolons or tabs.

    ConfigError for a file without answers.
    """
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: {error}") from error
    if not rows:
        raise ConfigError(f"{path} holds no answers")
    return rows


def is_score(text: str) -> bool:
    """Test for an integer from 0 to 100."""
    return text.isascii() and text.isdigit() and int(text) <= 100


def abx(rows: Sequence[Row]) -> Table:
    """Correct answers of each pair, and the p of guessing."""
    answers: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    listeners: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        pair = tuple(sorted((row["a"], row["b"]), key=lambda name: (name != REFERENCE, name)))
        answers[pair].append(row["x"] == row["answer"])
        listeners[pair].add(row["listener"])
    p_values = {" / ".join(pair): guessing_p_value(sum(a), len(a)) for pair, a in sorted(answers.items())}
    corrected = holm(p_values)
    body = [
        [name, len(listeners[pair]), len(answers[pair]), sum(answers[pair]), p_values[name], corrected[name]]
        for name, pair in zip(p_values, sorted(answers), strict=True)
    ]
    note = "p: probability of as many correct answers by guessing (binomial, one-sided)."
    head = ["pair", "listeners", "answers", "correct", "p", "p (Holm)"]
    return Table("abx", "ABX", note, head, body)


def mushra(rows: Sequence[Row]) -> list[Table]:
    """Mean ratings and paired differences, without listeners that the screening excludes."""
    ratings: Ratings = defaultdict(dict)
    for row in rows:
        key = row["listener"], row.get("page", ""), row["seed"], row["trial"]
        ratings[key][row["condition"]] = float(row["score"])
    excluded = screened(ratings)
    accepted = {key: scores for key, scores in ratings.items() if key[0] not in excluded}
    if not accepted:
        raise ConfigError(f"no listener passes the screening: {', '.join(excluded)}")
    names = list(dict.fromkeys(name for scores in accepted.values() for name in sorted(scores)))
    names.sort(key=lambda name: -np.mean([s[name] for s in accepted.values() if name in s]))
    means = []
    for name in names:
        scores = [score[name] for score in accepted.values() if name in score]
        means.append([name, len(scores), float(np.mean(scores)), *interval(scores)])
    reason = f"hidden reference below {LEAST_RATING} in over {LARGEST_SHARE:.0%} of the trials"
    listeners = len({listener for listener, *_ in accepted})
    note = f"{listeners} listeners; excluded ({reason}): {', '.join(excluded) or 'none'}. "
    note += "95 % bootstrap intervals."
    head = ["system", "ratings", "mean", "low", "high"]
    pairs = differences(accepted, [name for name in names if name != ANCHOR])
    return [Table("mushra", "MUSHRA", note, head, means), pairs]


def screened(ratings: Ratings) -> list[str]:
    """Listeners whom the post-screening excludes."""
    trials: dict[str, list[bool]] = defaultdict(list)
    for (listener, *_), scores in ratings.items():
        if REFERENCE in scores:
            trials[listener].append(scores[REFERENCE] < LEAST_RATING)
    return sorted(name for name, low in trials.items() if np.mean(low) > LARGEST_SHARE)


def differences(ratings: Ratings, names: Sequence[str]) -> Table:
    """Paired differences of conditions that were rated in one trial by one listener."""
    samples: dict[str, tuple[list[float], list[float]]] = {}
    for one, other in itertools.combinations(names, 2):
        both = [(scores[one], scores[other]) for scores in ratings.values() if {one, other} <= scores.keys()]
        if both:
            first, second = zip(*both, strict=True)
            samples[f"{one} - {other}"] = list(first), list(second)
    p_values = {name: wilcoxon_p_value(*sample) for name, sample in samples.items()}
    corrected = holm(p_values)
    body = []
    for name, (first, second) in samples.items():
        gaps = np.subtract(first, second)
        numbers = float(gaps.mean()), *interval(gaps.tolist())
        body.append([name, len(gaps), *numbers, p_values[name], corrected[name]])
    note = (
        "p: Wilcoxon's signed-rank test of all ratings, as if ratings of one listener were independent; "
        "Holm-corrected over the rows."
    )
    head = ["pair", "ratings", "difference", "low", "high", "p", "p (Holm)"]
    return Table("mushra_pairs", "MUSHRA, paired differences", note, head, body)


def to_markdown(table: Table) -> str:
    """Format a table as Markdown."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells)
    return f"## {table.title}\n\n{table.note}\n\n{body}\n"


def report_listening(paths: Sequence[Path], output: Path | None) -> str:
    """Tables of all tests in some CSVs as Markdown; with `output`, a folder, also written there as CSV."""
    if output and output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file: name a folder")
    tests = read(paths)
    tables = [abx(tests["abx"])] if "abx" in tests else []
    tables += mushra(tests["mushra"]) if "mushra" in tests else []
    if output:
        output.mkdir(parents=True, exist_ok=True)
        for table in tables:
            write_table(output / f"{table.name}.csv", table.head, table.rows)
    return "\n".join(map(to_markdown, tables))
