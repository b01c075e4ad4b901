"""The metrics of runs, side by side, with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptask.analysis.compare.comparison import compare
from gptask.analysis.report.report_run import ReportRun


@dataclass
class Measured:
    """A metric of one run, its place and its interval in percent of the metric's range where that is finite."""

    value: float
    low: float
    high: float
    n: int
    bar: tuple[float, float, float] | None  # low, value, high


@dataclass
class MetricRow:
    """A metric with what each run has of it."""

    name: str
    direction: str
    signatures: list[str]
    values: list[Measured | None]


def metrics(entries: Sequence[ReportRun]) -> list[MetricRow]:
    """The metrics of runs of one task."""
    names = dict.fromkeys(name for entry in entries for name in entry.record.metrics)
    return [_metric(name, [entry.record.metrics.get(name) for entry in entries]) for name in names]


def _metric(name: str, found: Sequence[dict[str, Any] | None]) -> MetricRow:
    there = [values for values in found if values]
    signatures = list(dict.fromkeys(str(values.get("signature", "")) for values in there))
    return MetricRow(name, str(there[0].get("direction", "")), signatures, [_measured(values) for values in found])


def _measured(values: dict[str, Any] | None) -> Measured | None:
    if not values:
        return None
    (low, high), value = values["interval"], values["value"]
    return Measured(value, low, high, values["n"], bar(low, value, high, *values["range"]))


@dataclass
class VerdictRow:
    """What a paired test says of a run against another, metric by metric."""

    first: ReportRun
    other: ReportRun
    words: dict[str, str]


def verdicts(groups: Sequence[Sequence[ReportRun]]) -> Iterator[VerdictRow]:
    """Paired tests within groups of runs on the same test examples, each run against the first of its group."""
    for first, *others in groups:
        if others and not any(entry.lacking for entry in (first, *others)):
            records = [entry.record for entry in (first, *others)]
            found = compare(records, first.record.folder, every=True, apart=True, grouped=False).tables[0].verdicts
            for number, other in enumerate(others, 1):
                said = {metric: known[number].words for metric, known in found.items() if number in known}
                yield VerdictRow(first, other, said)


def bar(
    low: float, value: float, high: float, start: float | None, end: float | None
) -> tuple[float, float, float] | None:
    """Three numbers as percent of a range, for drawing; nothing without a finite range."""
    if start is None or end is None or end <= start or not all(x == x for x in (low, value, high)):
        return None
    places = [min(max(100 * (x - start) / (end - start), 0.0), 100.0) for x in (low, value, high)]
    return places[0], places[1], places[2]
