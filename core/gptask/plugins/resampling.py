"""How often each test example occurs in resamples of a test set: for intervals and for paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES_PER_BLOCK = 4_000_000  # counts that are held at once


def numbered(groups: Sequence[object]) -> np.ndarray:
    """(N,) groups as numbers, in the order of their first example."""
    _, first, inverse = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def bootstrap(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Counts (R, N) of N examples in resamples with replacement, block by block.

    Whole groups (N,) are drawn, as many as there are: questions on one context are no independent witnesses (Efron &
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).
    """
    generator, total = np.random.default_rng(seed), int(groups.max()) + 1
    for size in _blocks(resamples, len(groups)):
        drawn = generator.integers(0, total, (size, total))
        drawn += np.arange(size)[:, None] * total
        counts = np.bincount(drawn.ravel(), minlength=size * total).reshape(size, total)
        yield counts[:, groups].astype(float)


def swap_masks(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Zeros and ones (R, N): which examples stay where they are when two systems' answers are swapped by coin, the same
    coin for a group (N,); block by block."""
    generator, total = np.random.default_rng(seed), int(groups.max()) + 1
    for size in _blocks(resamples, len(groups)):
        yield generator.integers(0, 2, (size, total)).astype(float)[:, groups]


def _blocks(resamples: int, examples: int) -> Iterator[int]:
    size = max(1, RESAMPLES_PER_BLOCK // examples)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
