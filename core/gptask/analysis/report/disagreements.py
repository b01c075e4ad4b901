"""Two runs on the same test examples: which rows belong together, and where the runs disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptask.analysis.report.report_run import ReportRun


@dataclass
class Disagreements:
    """Where ``other`` differs from ``first``; ``row_pairs`` are row numbers in both, the largest changes first."""

    first: ReportRun
    other: ReportRun
    reason: str = ""  # why the runs can't be compared example by example
    metric: str = ""
    by_correctness: bool = False  # whether right and wrong are compared, or else the metric of each example alone
    better: int = 0
    worse: int = 0
    same: int = 0
    row_pairs: tuple[tuple[int, int], ...] = ()
    gains: tuple[float, ...] = ()  # above 0 where ``other`` is better


def find_flips(first: ReportRun, other: ReportRun) -> Disagreements:
    """The examples on which two runs disagree, or the reason why their examples can't be matched."""
    order = matching_rows(first, other)
    if isinstance(order, str):
        return Disagreements(first, other, order)
    metric = first.correctness_metric or other.correctness_metric
    if metric and all(_is_binary(run, metric) for run in (first, other)):
        before, after = (run.statistics(metric)[:, 0] for run in (first, other))
        pair = Disagreements(first, other, metric=metric, by_correctness=True)
        return _with_flips(pair, order, after[order] - before)
    shared = [name for name in first.example_scores if name in other.example_scores]
    if not shared:
        reason = first.unavailable_reason or other.unavailable_reason
        return Disagreements(first, other, reason or "no metric has a value for a single example")
    metric = shared[0]
    gains = first.sign(metric) * (other.example_scores[metric][order] - first.example_scores[metric])
    return _with_flips(Disagreements(first, other, metric=metric), order, gains)


def _is_binary(run: ReportRun, metric: str) -> bool:
    return metric in run.directed_metrics and bool(np.isin(run.statistics(metric), (0, 1)).all())


def _with_flips(pair: Disagreements, order: np.ndarray, gains: np.ndarray) -> Disagreements:
    """The pair with its rows, the largest gains (N,) first; on a tie the worse run's higher confidence comes first."""
    row_pairs = list(enumerate(map(int, order)))
    confidences = [
        _confidence(pair.other, b) if gain < 0 else _confidence(pair.first, a)
        for (a, b), gain in zip(row_pairs, gains, strict=True)
    ]
    ranked = [int(k) for k in np.lexsort([-np.asarray(confidences), -np.abs(gains)]) if gains[k]]
    pair.row_pairs = tuple(row_pairs[k] for k in ranked)
    pair.gains = tuple(float(gains[k]) for k in ranked)
    pair.better, pair.worse = int((gains > 0).sum()), int((gains < 0).sum())
    pair.same = len(gains) - pair.better - pair.worse
    return pair


def _confidence(run: ReportRun, row: int) -> float:
    return float(run.confidence[row]) if run.confidence is not None else 0.0


def matching_rows(first: ReportRun, other: ReportRun) -> np.ndarray | str:
    """(N,) row number in ``other`` for each row of ``first``, or the reason why their examples are not the same."""
    if first.record.task != other.record.task:
        return f"the runs have different tasks: {first.record.task} and {other.record.task}"
    first_keys, other_keys = first.record.predictions.keys, other.record.predictions.keys
    if len(set(first_keys)) < len(first_keys) or len(set(other_keys)) < len(other_keys):
        return "some examples have the same id and input"
    row_numbers = {key: number for number, key in enumerate(other_keys)}
    if row_numbers.keys() != set(first_keys):
        common = len(row_numbers.keys() & set(first_keys))
        return f"the runs were tested on different examples ({common:,} of {len(first_keys):,} are in both)"
    return np.asarray([row_numbers[key] for key in first_keys])


def groups_on_same_examples(runs: Sequence[ReportRun]) -> list[list[ReportRun]]:
    """Groups of runs that share the task, the main metric and the test examples."""
    groups: list[list[ReportRun]] = []
    for run in runs:
        for group in groups:
            same_metric = group[0].directed_metrics[:1] == run.directed_metrics[:1]
            if same_metric and not isinstance(matching_rows(group[0], run), str):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups
