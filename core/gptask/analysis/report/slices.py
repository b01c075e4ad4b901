"""The main metric on slices of the test set: by input length and by true label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptask.analysis.report.report_run import ReportRun
from gptask.plugins.metric import Score, score
from gptask.plugins.resampling import number_groups

MAX_LABELS = 30  # the most frequent ones have a slice


@dataclass
class SliceTable:
    """Slices of one kind; each has a score for each of the runs, None if no example falls into it."""

    title: str
    metric: str
    runs: list[ReportRun]
    rows: list[tuple[str, list[Score | None]]]
    note: str = ""

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest and the highest end of all intervals, with a margin of 5%."""
        scores = [score for _, row in self.rows for score in row if score]
        ends = [end for score in scores for end in (*(score.interval or ()), score.value) if math.isfinite(end)]
        low, high = min(ends, default=0.0), max(ends, default=1.0)
        margin = (high - low or 1.0) * 0.05
        return low - margin, high + margin


def slice_tables(groups: Sequence[Sequence[ReportRun]]) -> Iterator[SliceTable]:
    """Tables by length and by label, for each group of runs on the same test examples."""
    for group in groups:
        runs = [run for run in group if not run.unavailable_reason]
        if not runs:
            continue
        yield _slice_table("By input length", runs, [_length_masks(run) for run in runs])
        if all(run.true_labels is not None for run in runs):
            labels = {label for row in runs[0].true_labels or [] for label in row}
            note = f"The {MAX_LABELS} most frequent of {len(labels)} labels." if len(labels) > MAX_LABELS else ""
            yield _slice_table("By true label", runs, [_label_masks(run) for run in runs], note)


def _slice_table(
    title: str, runs: Sequence[ReportRun], masks_by_run: Sequence[dict[str, np.ndarray]], note: str = ""
) -> SliceTable:
    """The table of slices that are given for each run by name, as masks (N,) of its examples."""
    names = list(dict.fromkeys(name for masks in masks_by_run for name in masks))
    rows = [
        (name, [_score(run, masks.get(name)) for run, masks in zip(runs, masks_by_run, strict=True)]) for name in names
    ]
    return SliceTable(title, runs[0].directed_metrics[0], list(runs), rows, note)


def _score(run: ReportRun, mask: np.ndarray | None) -> Score | None:
    """The main metric of the examples in a mask (N,), with an interval; wide statistics get fewer resamples."""
    if mask is None or not mask.any():
        return None
    metric = run.directed_metrics[0]
    statistics = run.statistics(metric)[mask]
    groups = number_groups(run.record.predictions.groups[mask])
    resamples = int(np.clip(10_000_000 // statistics.size, 200, 1000))
    with np.errstate(all="ignore"):
        return score(run.record.metric(metric), statistics, groups, resamples)


def _length_masks(run: ReportRun) -> dict[str, np.ndarray]:
    """Masks (N,) of the quartiles of input characters; quartiles with equal bounds are one slice."""
    lengths = run.input_lengths
    bounds = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    if len(bounds) < 2:
        return {f"{bounds[0]:,} characters": np.ones(len(lengths), dtype=bool)}
    slice_numbers = np.clip(np.searchsorted(bounds, lengths, side="left") - 1, 0, len(bounds) - 2)
    masks = {}
    for k in range(len(bounds) - 1):
        start, end = bounds[k] + 1 if k else bounds[0], bounds[k + 1]
        name = f"{start:,}" if start == end else f"{start:,} to {end:,}"
        masks[f"{name} characters"] = slice_numbers == k
    return masks


def _label_masks(run: ReportRun) -> dict[str, np.ndarray]:
    """Masks (N,) of each label's examples, the most frequent label first; an example counts for each of its labels."""
    label_rows = run.true_labels or []
    counts = Counter(label for row in label_rows for label in row)
    masks = {label: np.asarray([label in row for row in label_rows]) for label, _ in counts.most_common(MAX_LABELS)}
    if (unlabelled := np.asarray([not row for row in label_rows])).any():
        masks["(no label)"] = unlabelled
    return masks
