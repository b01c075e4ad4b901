"""Two runs on the same test examples: which are matched, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptask.analysis.report.report_run import ReportRun


@dataclass
class Disagreements:
    """Where ``other`` differs from ``first``. ``pairs`` are row numbers in either, the plainest cases first."""

    first: ReportRun
    other: ReportRun
    reason: str = ""  # why there are none
    metric: str = ""
    judged: bool = False  # by right and wrong, else by the change of the metric on each example alone
    better: int = 0
    worse: int = 0
    same: int = 0
    pairs: tuple[tuple[int, int], ...] = ()
    gains: tuple[float, ...] = ()  # above 0 where ``other`` is better


def flips(first: ReportRun, other: ReportRun) -> Disagreements:
    """The examples two runs are apart on, or why they can't be matched."""
    order = matched(first, other)
    if isinstance(order, str):
        return Disagreements(first, other, order)
    judge = first.judge or other.judge
    if judge and all(judge in e.directed and np.isin(e.statistics(judge), (0, 1)).all() for e in (first, other)):
        before, after = (e.statistics(judge)[:, 0] for e in (first, other))
        return _sorted(Disagreements(first, other, metric=judge, judged=True), order, after[order] - before)
    common = [name for name in first.alone if name in other.alone]
    if not common:
        return Disagreements(
            first, other, first.lacking or other.lacking or "no metric has a value for a single example"
        )
    metric = common[0]
    gains = first.sign(metric) * (other.alone[metric][order] - first.alone[metric])
    return _sorted(Disagreements(first, other, metric=metric), order, gains)


def _sorted(found: Disagreements, order: np.ndarray, gains: np.ndarray) -> Disagreements:
    """The largest changes first; among equal ones those where the run that lost was surest."""
    losers = [found.other if gain < 0 else found.first for gain in gains]
    rows = [(k, int(order[k])) for k in range(len(order))]
    sure = [_confidence(loser, row[loser is found.other]) for loser, row in zip(losers, rows, strict=True)]
    ranked = [int(k) for k in np.lexsort([-np.asarray(sure), -np.abs(gains)]) if gains[k]]
    found.pairs = tuple(rows[k] for k in ranked)
    found.gains = tuple(float(gains[k]) for k in ranked)
    found.better, found.worse = int((gains > 0).sum()), int((gains < 0).sum())
    found.same = len(gains) - found.better - found.worse
    return found


def _confidence(entry: ReportRun, row: int) -> float:
    return float(entry.confidence[row]) if entry.confidence is not None else 0.0


def matched(first: ReportRun, other: ReportRun) -> np.ndarray | str:
    """(N,) row of ``other`` for each row of ``first``, or why their examples are not the same."""
    if first.record.task != other.record.task:
        return f"they are different tasks: {first.record.task} and {other.record.task}"
    keys, theirs = first.record.predictions.keys, other.record.predictions.keys
    if len(set(keys)) < len(keys) or len(set(theirs)) < len(theirs):
        return "examples are not told apart by id and input"
    places = {key: place for place, key in enumerate(theirs)}
    if places.keys() != set(keys):
        common = len(places.keys() & set(keys))
        return f"they were tested on different examples ({common:,} of {len(keys):,} are common)"
    return np.asarray([places[key] for key in keys])


def groups(entries: Sequence[ReportRun]) -> list[list[ReportRun]]:
    """Runs of one task and main metric that were tested on the same examples, together."""
    found: list[list[ReportRun]] = []
    for entry in entries:
        for group in found:
            if group[0].directed[:1] == entry.directed[:1] and not isinstance(matched(group[0], entry), str):
                group.append(entry)
                break
        else:
            found.append([entry])
    return found
