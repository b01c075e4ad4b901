"""Resamples of a test set, as counts of its examples, for intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES_PER_BLOCK = 4_000_000  # limit on the counts held in memory at once


def number_groups(groups: Sequence[object]) -> np.ndarray:
    """Return the groups as numbers (N,), counted in the order of their first example."""
    _, first, inverse = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def bootstrap(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield counts (R, N) of N examples in resamples with replacement, block by block, ``resamples`` rows in total.

    Whole groups (N,) are drawn, as many as exist, since questions on one context are not independent (Efron &
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).
    """
    generator, n_groups = np.random.default_rng(seed), int(groups.max()) + 1
    for size in _block_sizes(resamples, len(groups)):
        draws = generator.integers(0, n_groups, (size, n_groups))
        draws += np.arange(size)[:, None] * n_groups  # a range of numbers for each resample: one bincount serves all
        counts = np.bincount(draws.ravel(), minlength=size * n_groups).reshape(size, n_groups)
        yield counts[:, groups].astype(float)


def percentile_interval(
    draws: np.ndarray, value: float, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float] | None:
    """Return the 95% interval of a ``value`` from its resamples ``draws`` (R,), None where they are all equal.

    It has the percentiles of the draws (Efron & Tibshirani 1993, section 13.3), within ``bounds``. Where resampling
    shifts the metric by more than the draws' own noise, the interval is shifted back: calibration error rises with
    noise, so that the interval would otherwise lie above its own value.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws) or np.ptp(draws) <= 1e-9 * max(1.0, abs(value)):
        return None
    bias, noise = draws.mean() - value, draws.std() / len(draws) ** 0.5
    low, high = np.percentile(draws, [2.5, 97.5]) - (bias if abs(bias) > 3 * noise else 0)
    return float(np.clip(low, bounds[0], value)), float(np.clip(high, value, bounds[1]))


def swap_masks(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield masks (R, N), block by block, for a paired permutation test of two systems.

    A coin decides for each group (N,) whether its examples keep (1.0) or swap (0.0) the two systems' answers.
    """
    generator, n_groups = np.random.default_rng(seed), int(groups.max()) + 1
    for size in _block_sizes(resamples, len(groups)):
        yield generator.integers(0, 2, (size, n_groups)).astype(float)[:, groups]


def _block_sizes(resamples: int, examples: int) -> Iterator[int]:
    size = max(1, RESAMPLES_PER_BLOCK // examples)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
