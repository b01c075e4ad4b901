"""Whether confidence can be trusted: predictions in bins of confidence, and how many of each bin are right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gptask.analysis.report.report_run import ReportRun

BINS = 10


@dataclass
class Bin:
    """n predictions with confidences from ``start`` to ``end``: their mean, and the share that is right."""

    start: float
    end: float
    n: int
    confidence: float
    share: float
    low: float  # 95% interval of the share
    high: float


def bins(entry: ReportRun) -> list[Bin] | str:
    """The bins that have predictions, or why there are none."""
    if entry.right is None:
        return "none of its metrics tells right from wrong for a single example"
    if entry.confidence is None:
        return "its predictions have no scores"
    place = np.clip((entry.confidence * BINS).astype(int), 0, BINS - 1)
    return [_bin(k, entry.confidence[place == k], entry.right[place == k]) for k in np.unique(place)]


def _bin(number: int, confidence: np.ndarray, right: np.ndarray) -> Bin:
    low, high = wilson(int(right.sum()), len(right))
    share = float(right.mean())
    return Bin(number / BINS, (number + 1) / BINS, len(right), float(confidence.mean()), share, low, high)


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927), which stays within 0 and 1 and has width at 0 and n hits."""
    share, scale = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)
