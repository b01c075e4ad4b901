"""An example with what runs said about it, cut to what a reader can take in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptask.analysis.report.report_run import ReportRun, inputs
from gptask.data.messages import told

HEAD, LENGTH = 360, 900  # characters of a text: shown at once, and embedded at most
CLASSES = 5  # probabilities shown


@dataclass
class Passage:
    """A text: its start, what unfolds behind it, and how long it really is."""

    head: str
    rest: str = ""
    cut: int = 0  # characters of the whole text, where some were left out


@dataclass
class AnswerCell:
    """What one run said. ``state`` is right, wrong or empty; ``value`` the metric of this example alone."""

    entry: ReportRun
    said: Passage
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


def card(shown: Sequence[tuple[ReportRun, int]], change: str = "", metric: str = "") -> ExampleCard:
    """The card of an example, given as the row it has in each run; ``metric`` is the one to show, or the main one."""
    entry, place = shown[0]
    row = entry.rows[place]
    references = {name: value for name, value in row.get("references", {}).items() if value is not None}
    return ExampleCard(
        str(row["id"]),
        [(name, passage(value)) for name, value in inputs(row).items() if value not in (None, [], "")],
        [(name, passage(value)) for name, value in references.items()],
        entry.labels[place] if entry.labels is not None else [],
        [_answer(run, number, metric) for run, number in shown],
        change,
    )


def _answer(entry: ReportRun, place: int, metric: str) -> AnswerCell:
    row = entry.rows[place]
    metric = metric or next(iter(entry.alone), "")
    state = "" if entry.right is None else "right" if entry.right[place] else "wrong"
    value = float(entry.alone[metric][place]) if metric in entry.alone else None
    table = row.get("probabilities")
    chances = sorted(table.items(), key=lambda item: -item[1])[:CLASSES] if isinstance(table, dict) else []
    sure = row.get("score")
    return AnswerCell(entry, passage(row.get("prediction")), state, sure, value, metric, chances)


def passage(value: Any) -> Passage:
    """Any value of a JSON line as text."""
    text = _text(value)
    kept = text[:LENGTH]
    if len(text) <= HEAD + 60:
        return Passage(text)
    return Passage(kept[:HEAD], kept[HEAD:], len(text) if len(text) > LENGTH else 0)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        items = list(map(str, value))
        return (", " if all(len(item) < 40 for item in items) else "\n").join(items)
    return told(value) or json.dumps(value, ensure_ascii=False)
