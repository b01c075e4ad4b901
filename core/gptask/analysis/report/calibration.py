"""Calibration: predictions in bins of confidence, and the share of each bin that is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptask.analysis.report.report_run import ReportRun
from gptask.plugins.metric import wilson

BINS = 10


@dataclass
class Bin:
    """n predictions with confidences from ``start`` to ``end``: their mean confidence, and the share that is right."""

    start: float
    end: float
    n: int
    confidence: float
    share: float
    low: float  # 95% interval of the share
    high: float


def confidence_bins(run: ReportRun) -> list[Bin] | str:
    """The bins that hold predictions, or the reason why there are none."""
    if run.right is None:
        return "none of the run's metrics tells right from wrong for a single example"
    if run.confidence is None:
        return "not every prediction has a score"
    bin_numbers = np.clip((run.confidence * BINS).astype(int), 0, BINS - 1)
    return [_bin(k, run.confidence[bin_numbers == k], run.right[bin_numbers == k]) for k in np.unique(bin_numbers)]


def _bin(number: int, confidence: np.ndarray, right: np.ndarray) -> Bin:
    low, high = wilson(int(right.sum()), len(right))
    share = float(right.mean())
    return Bin(number / BINS, (number + 1) / BINS, len(right), float(confidence.mean()), share, low, high)
