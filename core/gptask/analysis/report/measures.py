"""The metrics of runs side by side, with their intervals and the paired tests between runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptask.analysis.compare.comparison import compare
from gptask.analysis.report.report_run import ReportRun
from gptask.plugins.metric import interval_text


@dataclass
class MetricValue:
    """A metric of one run; ``bar`` is low, value and high in percent of the metric's range, if all are finite."""

    value: float | None
    interval: str
    n: int
    bar: tuple[float, float, float] | None


@dataclass
class MetricRow:
    """A metric with its value in each run."""

    name: str
    direction: str
    signatures: list[str]
    values: list[MetricValue | None]


@dataclass
class VerdictRow:
    """What the paired tests conclude about a run against another, by metric."""

    first: ReportRun
    other: ReportRun
    words: dict[str, str]


def metric_rows(runs: Sequence[ReportRun]) -> list[MetricRow]:
    """The metrics of runs of one task."""
    names = dict.fromkeys(name for run in runs for name in run.record.metrics)
    return [_metric_row(name, [run.record.metrics.get(name) for run in runs]) for name in names]


def _metric_row(name: str, entries: Sequence[dict[str, Any] | None]) -> MetricRow:
    """The row of a metric from its entry in each run's metrics.json; at least one run has one."""
    present = [entry for entry in entries if entry]
    signatures = list(dict.fromkeys(str(entry.get("signature", "")) for entry in present))
    return MetricRow(name, str(present[0].get("direction", "")), signatures, [_metric_value(e) for e in entries])


def _metric_value(entry: dict[str, Any] | None) -> MetricValue | None:
    if not entry:
        return None
    interval, value = entry["interval"], entry["value"]
    place = bar(interval, value, *entry["range"]) if interval and value is not None else None
    return MetricValue(value, interval_text(entry), entry["n"], place)


def baseline_rows(runs: Sequence[ReportRun]) -> list[tuple[ReportRun, str, dict[str, Any]]]:
    """Each run's baselines: the run, the baseline's name, and what metrics.json holds of it."""
    return [(run, name, entry) for run in runs for name, entry in (run.record.result.get("baselines") or {}).items()]


def verdict_rows(groups: Sequence[Sequence[ReportRun]]) -> Iterator[VerdictRow]:
    """Paired tests within groups of runs on the same test examples, each run against the first of its group."""
    for group in groups:
        if len(group) < 2 or any(run.unavailable_reason for run in group):
            continue
        records = [run.record for run in group]
        comparison = compare(records, records[0].folder, every=True, apart=True, grouped=False)
        verdicts = comparison.tables[0].verdicts
        for number, other in enumerate(group[1:], 1):
            words = {metric: by_run[number].sentence for metric, by_run in verdicts.items() if number in by_run}
            yield VerdictRow(group[0], other, words)


def bar(
    interval: Sequence[float], value: float, start: float | None, end: float | None
) -> tuple[float, float, float] | None:
    """Low, value and high in percent of a range, for drawing; None for nan or without a finite range."""
    low, high = interval
    if start is None or end is None or end <= start or not all(x == x for x in (low, value, high)):
        return None
    low_place, value_place, high_place = (
        min(max(100 * (x - start) / (end - start), 0.0), 100.0) for x in (low, value, high)
    )
    return low_place, value_place, high_place
