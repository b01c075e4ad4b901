"""Labels that are likely wrong, by confident learning on rows that no run has learned which predicts them.

Source: Northcutt, Jiang & Chuang 2021, Confident Learning (JAIR 70, arXiv 1911.00068), by the library cleanlab.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptask.analysis.compare.records import RunRecord
from gptask.analysis.report.learned_rows import is_learned
from gptask.analysis.report.report_run import input_fields
from gptask.data.corpus import LOCAL_SUFFIXES, SPLITS
from gptask.errors import UserError, listing
from gptask.plugins.types import Kind
from gptask.runs.validation import is_number

LABEL_KINDS = (Kind.LABEL, Kind.LABELS, Kind.TAGS)
PLACE = re.compile(r"(.+)(?::| (?:record|row) )(\d{1,18})", re.DOTALL)  # as `Row.location` writes it


@dataclass
class LabelIssue:
    """A row whose label is likely wrong; ``row`` is its line of predictions.jsonl.

    ``quality`` is cleanlab's label quality score, the self-confidence: the probability of the given label.
    """

    record: RunRecord
    row: dict[str, Any]
    given: str
    suggested: str  # the likeliest label
    quality: float

    @property
    def probabilities(self) -> tuple[float, float]:
        """The probability of the given label, and that of the suggested one."""
        return self.row["probabilities"][self.given], self.row["probabilities"][self.suggested]


@dataclass
class LabelPair:
    """How many rows of ``total`` with a label are likely to have another one."""

    given: str
    suggested: str
    count: int
    total: int


@dataclass
class LabelIssues:
    """The likely label errors among ``n`` rows, the lowest quality first; ``pairs`` count them, the largest first.

    ``disagreeing`` rows have another label than the run predicts. ``learned`` rows are left out: the run that predicts
    them has learned their input.
    """

    n: int
    disagreeing: int
    learned: int
    issues: list[LabelIssue]
    pairs: list[LabelPair]

    @property
    def share(self) -> float:
        """The estimated share of wrong labels, in percent."""
        return 100 * len(self.issues) / self.n

    @property
    def summary(self) -> str:
        """The counts in sentences."""
        text = f"{len(self.issues):,} of {self.n:,} labels ({self.share:.1f}%) are likely wrong"
        pairs = [f"{pair.given} → {pair.suggested} {pair.count:,}" for pair in self.pairs]
        text += f": {listing(pairs, 6)}." if pairs else "."
        return text + f" {self.learned:,} rows that the run has learned are left out." * bool(self.learned)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The rows for a JSON Lines file."""
        for rank, issue in enumerate(self.issues, 1):
            file, number = _place(issue.row["id"], issue.record.config["data"])
            given_probability, suggested_probability = issue.probabilities
            values = {
                "rank": rank,
                "id": issue.row["id"],
                "file": file,
                "row": number,
                "given_label": issue.given,
                "suggested_label": issue.suggested,
                "given_probability": given_probability,
                "suggested_probability": suggested_probability,
                "label_quality": issue.quality,
                "run": str(issue.record.folder),
            }
            inputs = input_fields(issue.row).items()
            yield values | {f"input_{name}" if name in values else name: value for name, value in inputs}


def find_label_issues(records: Sequence[RunRecord]) -> LabelIssues:
    """The likely label errors in the rows of runs that can be shown, each predicted by one that has not learned it.

    Flagged are as many rows as confident learning counts, those with the lowest probability of their label, unless it
    is the predicted one. Raises `UserError` for another task than one of single labels, for rows that the runs have
    learned or that several of them predict, and where cleanlab is not installed.
    """
    fields = {record.folder: _label_field(record) for record in records}
    rows, learned = _unlearned_rows(records)
    names = _common_labels(rows)
    numbers = {name: number for number, name in enumerate(names)}
    given = np.asarray([_number_of(row, fields[record.folder], numbers, record) for record, row in rows])
    probabilities = np.asarray([[row["probabilities"][name] for name in names] for _, row in rows])
    totals = np.bincount(given, minlength=len(names))
    if totals.max() == len(rows):
        raise UserError(
            f"all {len(rows):,} rows have the label '{names[given[0]]}'; confident learning needs two labels"
        )
    flagged, predicted, qualities = rank_label_issues(given, probabilities)
    issues = []
    for k in flagged:
        record, row = rows[k]
        issues.append(LabelIssue(record, row, names[given[k]], names[predicted[k]], float(qualities[k])))
    counts = Counter((issue.given, issue.suggested) for issue in issues)
    pairs = [LabelPair(*pair, count, int(totals[numbers[pair[0]]])) for pair, count in counts.most_common()]
    return LabelIssues(len(rows), int((predicted != given).sum()), learned, issues, pairs)


def rank_label_issues(given: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows whose label is likely wrong, the predicted label of each row (N,), and the quality of its label (N,).

    ``given`` (N,) are numbers of labels, ``probabilities`` (N, K) those of a model that has not learned the rows. Of
    cleanlab's filters it is ``low_self_confidence``: on real runs it is more precise than the one by noise rates.
    Raises `UserError` where cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues as rank_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise UserError(
            f"--labels needs a package that is not installed ({error.name}): pip install 'gptask[labels]'"
        ) from error
    by = "self_confidence"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a label without rows
        ranked = rank_issues(given, probabilities, filter_by=f"low_{by}", return_indices_ranked_by=by, n_jobs=1)
        qualities = get_label_quality_scores(given, probabilities, method=by)
    is_likeliest = probabilities[np.arange(len(given)), given] == probabilities.max(1)
    predicted = np.where(is_likeliest, given, probabilities.argmax(1))
    return ranked[predicted[ranked] != given[ranked]], predicted, qualities


def _place(example_id: Any, data: dict[str, Any]) -> tuple[str | None, int | None]:
    """The file and the row in it that an id names; None for the row's own id."""
    match = PLACE.fullmatch(str(example_id))
    if match is None:
        return None, None
    file, number = match[1], int(match[2])
    path, sources = Path(file.partition("#")[0]), json.dumps([data.get(split) for split in SPLITS], ensure_ascii=False)
    is_named = re.search(rf'["/]{re.escape(path.as_posix())}["#]', sources) is not None
    is_file = is_named or bool({suffix.lower() for suffix in path.suffixes} & LOCAL_SUFFIXES)
    is_hub_split = file.startswith(f"{data.get('path')}[")
    return (file, number) if is_file or is_hub_split else (None, None)


def _label_field(record: RunRecord) -> str:
    """The name of the field with the label of an example; raises `UserError` for a task whose examples have not one."""
    targets = record.plugin.targets()
    label_fields = [target for target in targets if target.kind in LABEL_KINDS]
    if len(label_fields) != 1 or label_fields[0].kind is not Kind.LABEL:
        found = listing(f"{target.name} ({target.kind.value})" for target in targets)
        raise UserError(
            f"{record.folder}: --labels is for tasks whose examples have one label each, and the targets of "
            f"'{record.task}' are {found}; leave the run or --labels out"
        )
    return label_fields[0].name


def _unlearned_rows(records: Sequence[RunRecord]) -> tuple[list[tuple[RunRecord, dict[str, Any]]], int]:
    """The rows of all runs, each with its run, without those that the run has learned, and how many those are.

    Raises `UserError` where a run has learned all its rows, where two predict the same row, and for different tasks.
    """
    if len(tasks := {record.task for record in records}) > 1:
        raise UserError(f"--labels is for runs of one task, got {listing(sorted(tasks))}: name one with --task")
    rows: dict[tuple[str, str], RunRecord] = {}
    kept: list[tuple[RunRecord, dict[str, Any]]] = []
    total = 0
    for record in records:
        table, learned = record.predictions, is_learned(record)
        total += len(learned)
        if learned.all():
            raise UserError(_learned_message(record, len(learned)))
        unlearned = np.flatnonzero(~learned)
        keys = {table.keys[k] for k in unlearned}
        if repeated := keys & rows.keys():
            raise UserError(
                f"{len(repeated):,} rows are predicted by {record.folder} and by {rows[min(repeated)].folder}; with "
                "--labels each row needs one prediction: name one of these runs"
            )
        rows |= dict.fromkeys(keys, record)
        kept += [(record, table.rows[k]) for k in unlearned]
    return kept, total - len(kept)


def _learned_message(record: RunRecord, count: int) -> str:
    """Why the labels of a run's rows say nothing, and the commands for labels of training data."""
    data = record.config["data"]
    half, run = data.get("half"), record.config.get("parent") or str(record.folder)
    text = (
        f"{record.folder}: all {count:,} rows are among those that {run} has learned, and a model repeats the labels "
        "that it learned. "
    )
    if half:
        return text + f"Evaluate it on the other half: gptask evaluate run={run} split=train data.half={3 - half}"
    return text + (
        "Take its test or validation split; for training data, train one run with data.half=1 and one with "
        "data.half=2, and evaluate each on the other half (split=train data.half=2 and 1)"
    )


def _common_labels(rows: Sequence[tuple[RunRecord, dict[str, Any]]]) -> list[str]:
    """The labels, sorted, of which each row has the probability; raises `UserError` where rows have those of others."""
    names: set[str] = set()
    for record, row in rows:
        probabilities = row.get("probabilities")
        if not isinstance(probabilities, dict) or not probabilities:
            raise UserError(
                f"{record.folder}: --labels needs the probability of every label, and the predictions of "
                f"'{record.task}' have none; leave the run or --labels out"
            )
        if not all(is_number(value) and 0 <= value <= 1 for value in probabilities.values()):
            raise UserError(f"{record.folder} is damaged: the probabilities of row {row['id']} are not in 0 to 1")
        names = names or set(probabilities)
        if differing := names ^ set(probabilities):
            raise UserError(
                f"{record.folder}: its predictions and those of {rows[0][0].folder} have different labels: "
                f"{listing(sorted(differing))} are in one of them; name runs of one label set"
            )
    return sorted(names)


def _number_of(row: dict[str, Any], field: str, numbers: dict[str, int], record: RunRecord) -> int:
    """The number of a row's given label."""
    label = row.get("references", {}).get(field)
    if not isinstance(label, str) or label not in numbers:
        raise UserError(
            f"{record.folder}: the {field} of row {row['id']} is {label!r}, none of those that the run predicts: "
            f"{listing(numbers)}"
        )
    return numbers[label]
