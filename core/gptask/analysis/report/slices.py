"""The main metric on parts of the test set: by length of the input, by label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptask.analysis.report.report_run import ReportRun
from gptask.plugins.metric import Score, score

LABELS = 30  # the most frequent ones


@dataclass
class SliceTable:
    """Slices of one kind; each has a score (or None, where no example falls into it) for each of the runs."""

    title: str
    metric: str
    entries: list[ReportRun]
    rows: list[tuple[str, list[Score | None]]]
    note: str = ""

    @property
    def scale(self) -> tuple[float, float]:
        """From the lowest to the highest end of all intervals, with some air."""
        ends = [end for _, row in self.rows for s in row if s for end in (s.low, s.high) if math.isfinite(end)]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        air = (high - low or 1.0) * 0.05
        return low - air, high + air


def tables(groups: Sequence[Sequence[ReportRun]]) -> Iterator[SliceTable]:
    """By length and by label, for each group of runs on the same test examples."""
    for group in groups:
        if entries := [entry for entry in group if not entry.lacking]:
            yield _table("By input length", entries, [_lengths(entry) for entry in entries])
            if all(entry.labels is not None for entry in entries):
                kinds = {name for row in entries[0].labels or [] for name in row}
                note = f"The {LABELS} most frequent of {len(kinds)} labels." if len(kinds) > LABELS else ""
                yield _table("By true label", entries, [_labels(entry) for entry in entries], note)


def main_metric(entry: ReportRun) -> str:
    """The first metric with a direction."""
    return entry.directed[0]


def _table(
    title: str, entries: Sequence[ReportRun], masks: Sequence[dict[str, np.ndarray]], note: str = ""
) -> SliceTable:
    names = list(dict.fromkeys(name for some in masks for name in some))
    rows = [(name, [_score(e, some.get(name)) for e, some in zip(entries, masks, strict=True)]) for name in names]
    return SliceTable(title, main_metric(entries[0]), list(entries), rows, note)


def _score(entry: ReportRun, mask: np.ndarray | None) -> Score | None:
    """The main metric of the examples in a mask (N,), with an interval; fewer resamples where statistics are wide."""
    if mask is None or not mask.any():
        return None
    name = main_metric(entry)
    rows = entry.statistics(name)[mask]
    with np.errstate(all="ignore"):
        return score(entry.record.metric(name), rows, resamples=int(np.clip(10_000_000 // rows.size, 200, 1000)))


def _lengths(entry: ReportRun) -> dict[str, np.ndarray]:
    """Quartiles of characters; equal ones fall together."""
    lengths = entry.characters
    edges = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    if len(edges) < 2:
        return {f"{edges[0]:,} characters": np.ones(len(lengths), dtype=bool)}
    place = np.clip(np.searchsorted(edges, lengths, side="left") - 1, 0, len(edges) - 2)
    found = {}
    for k in range(len(edges) - 1):
        start = edges[k] + 1 if k else edges[0]
        span = f"{start:,}" if start == edges[k + 1] else f"{start:,} to {edges[k + 1]:,}"
        found[f"{span} characters"] = place == k
    return found


def _labels(entry: ReportRun) -> dict[str, np.ndarray]:
    """The examples of each label, the most frequent label first; one with several labels counts for each."""
    labels = entry.labels or []
    counts = Counter(name for row in labels for name in row)
    found = {name: np.asarray([name in row for row in labels]) for name, _ in counts.most_common(LABELS)}
    if (bare := np.asarray([not row for row in labels])).any():
        found["(no label)"] = bare
    return found
