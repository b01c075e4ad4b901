"""The run's own test examples that are worth explaining: the worst ones, or the most surprising ones. No torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptask.analysis.compare.records import read_run
from gptask.analysis.report.example_lists import surprising_rows, worst_rows
from gptask.analysis.report.report_run import ReportRun, input_fields, report_runs
from gptask.data.rows import Row
from gptask.errors import UserError
from gptask.plugins.types import Kind
from gptask.runs.predictor import InputRow

CHOICES = ("worst", "surprising")  # names that input= takes in the place of a file
SMALLEST = 1e-6  # a probability that predictions.jsonl, which has six digits, calls zero


class ReferencedRow(NamedTuple):
    """A row to explain, and what its prediction is compared with, None where that is not known."""

    entry: InputRow
    reference: Any


def chosen_examples(folder: Path, choice: str, limit: int) -> tuple[list[ReferencedRow], str]:
    """At most ``limit`` test examples of a finished run, the first one first, and a sentence on their order.

    ``worst``: the most confident of the wrong predictions or, where no metric tells right from wrong, the examples with
    the lowest values of the main metric. ``surprising``: those to whose reference the run gives the lowest
    probability; where it gives none, the report's most surprising ones. Raises `UserError` for a run that is unfinished
    or damaged, or that has nothing to order by.
    """
    runs, damaged = report_runs([read_run(folder)])
    if damaged:
        raise UserError(f"input={choice} reads the run's own test predictions: {folder}: {damaged[0].problem}")
    (run,) = runs
    rows, order = (_worst if choice == "worst" else _surprising)(run)
    if not len(rows):
        raise UserError(f"input={choice}: {folder} has no such test examples ({order}); give a file: input=FILE")
    total = len(rows)
    shown = "" if total <= limit else f"; the first {limit:,} of {total:,}"
    return [_chosen(run, number) for number in rows[:limit].tolist()], f"{order}{shown}"


def _chosen(run: ReportRun, number: int) -> ReferencedRow:
    row = run.rows[number]
    example = {"id": row["id"]} | input_fields(row)
    # further targets, such as the place of an answer, only add to the first one
    target = next(iter(run.record.plugin.targets()), None)
    reference = row.get("references", {}).get(target.name) if target else None
    if target and target.kind is Kind.TEXTS and isinstance(reference, list) and len(reference) == 1:
        (reference,) = reference
    return ReferencedRow(InputRow(Row(number + 1, example), example, f"test example {row['id']}"), reference)


def _worst(run: ReportRun) -> tuple[np.ndarray, str]:
    if run.right is not None and run.confidence is not None:
        return surprising_rows(run), "wrong predictions, the most confident first"
    if run.right is not None:
        return worst_rows(run), "wrong predictions"
    if not run.example_scores:
        raise UserError(f"input=worst: no metric orders the examples of {run.record.folder}: {run.unavailable_reason}")
    return worst_rows(run), f"the lowest values of {next(iter(run.example_scores))} first"


def _surprising(run: ReportRun) -> tuple[np.ndarray, str]:
    if (likelihoods := _reference_likelihoods(run)) is not None:
        known = np.flatnonzero(~np.isnan(likelihoods))
        return known[np.argsort(likelihoods[known], kind="stable")], "the lowest probability of the reference first"
    if run.confidence is None:
        raise UserError(
            f"input=surprising: {run.record.folder} has no probabilities and no scores to order by; take input=worst"
        )
    return surprising_rows(run), "wrong or low-scoring predictions, the most confident first"


def _reference_likelihoods(run: ReportRun) -> np.ndarray | None:
    """(N,) log-probability of each example's true labels, nan without a reference; None for a run without them.

    Where an example may have several labels, each is a yes or no of its own.
    """
    tables: list[dict[str, float]] = [row.get("probabilities") or {} for row in run.rows]
    if run.true_labels is None or not all(tables):
        return None
    several = any(target.kind is Kind.LABELS for target in run.record.plugin.targets())
    references = [row.get("references", {}) for row in run.rows]
    known = [any(value is not None for value in reference.values()) for reference in references]
    return np.array(
        [
            _log_likelihood(table, labels, several) if is_known else math.nan
            for table, labels, is_known in zip(tables, run.true_labels, known, strict=True)
        ]
    )


def _log_likelihood(table: dict[str, float], labels: list[str], several: bool) -> float:
    if not several:
        return math.log(max([table.get(label, 0.0) for label in labels] + [SMALLEST]))
    shares = [p if label in labels else 1 - p for label, p in table.items()]
    return sum(math.log(max(share, SMALLEST)) for share in shares)
