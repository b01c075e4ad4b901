"""One example with the answers of the runs, its texts shortened to what a reader can take in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptask.analysis.report.report_run import ReportRun, input_fields
from gptask.data.messages import format_message

SHOWN_CHARACTERS, MAX_CHARACTERS = 360, 900  # of a text: visible at once, and embedded at most
MAX_CLASSES = 5  # whose probabilities are shown


@dataclass
class Passage:
    """A text: its visible start, the rest that unfolds, and its full length."""

    head: str
    rest: str = ""
    full_length: int = 0  # characters of the whole text; 0 if nothing is left out


@dataclass
class AnswerCell:
    """One run's answer. ``state`` is right, wrong or empty; ``value`` is the metric of this example alone."""

    run: ReportRun
    prediction: Passage
    state: str
    confidence: float | None
    value: float | None
    metric: str
    probabilities: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class ExampleCard:
    """An example: its fields, its references, and an answer for each run shown."""

    id: str
    fields: list[tuple[str, Passage]]
    references: list[tuple[str, Passage]]
    labels: list[str]
    answers: list[AnswerCell]
    change: str = ""  # better or worse, from the first answer to the second


def example_card(run_rows: Sequence[tuple[ReportRun, int]], change: str = "", metric: str = "") -> ExampleCard:
    """The card of one example, named by its row number in each run; it shows ``metric``, or else the main one."""
    first_run, first_number = run_rows[0]
    row = first_run.rows[first_number]
    references = {name: value for name, value in row.get("references", {}).items() if value is not None}
    return ExampleCard(
        str(row["id"]),
        [(name, passage(value)) for name, value in input_fields(row).items() if value not in (None, [], "")],
        [(name, passage(value)) for name, value in references.items()],
        first_run.true_labels[first_number] if first_run.true_labels is not None else [],
        [_answer(run, number, metric) for run, number in run_rows],
        change,
    )


def _answer(run: ReportRun, number: int, metric: str) -> AnswerCell:
    row = run.rows[number]
    metric = metric or next(iter(run.example_scores), "")
    state = "" if run.right is None else "right" if run.right[number] else "wrong"
    value = float(run.example_scores[metric][number]) if metric in run.example_scores else None
    probabilities = row.get("probabilities")
    highest: list[tuple[str, float]] = []
    if isinstance(probabilities, dict):
        highest = sorted(probabilities.items(), key=lambda item: -item[1])[:MAX_CLASSES]
    return AnswerCell(run, passage(row.get("prediction")), state, row.get("score"), value, metric, highest)


def passage(value: Any) -> Passage:
    """Any value of a JSON line as text."""
    text = _text(value)
    if len(text) <= SHOWN_CHARACTERS + 60:
        return Passage(text)
    full_length = len(text) if len(text) > MAX_CHARACTERS else 0
    return Passage(text[:SHOWN_CHARACTERS], text[SHOWN_CHARACTERS:MAX_CHARACTERS], full_length)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        items = list(map(str, value))
        return (", " if all(len(item) < 40 for item in items) else "\n").join(items)
    return format_message(value) or json.dumps(value, ensure_ascii=False)
