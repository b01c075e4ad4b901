"""Which sequences begin with the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MAX_GROUP = 64  # sequences that are looked at for a common prefix


def prefix_groups(rows: Sequence[np.ndarray]) -> Iterator[tuple[list[int], int]]:
    """Split token ids into runs of row numbers and the length of their common prefix, so that most tokens are shared.

    Sorted rows with a prefix in common are neighbours, so the best split is found by dynamic programming over them.
    Each row keeps a last token of its own; a row alone in its run "shares" all others.
    """
    order = sorted(range(len(rows)), key=lambda row: rows[row].astype(">u4").tobytes())
    ordered = [rows[row] for row in order]
    common = [0, *map(_common, ordered, ordered[1:])]
    best, start = [0] * (len(rows) + 1), [0] * (len(rows) + 1)
    for end in range(1, len(rows) + 1):
        best[end], start[end] = best[end - 1], end - 1
        prefix = len(ordered[end - 1]) - 1
        for begin in range(end - 2, max(-1, end - 1 - MAX_GROUP), -1):
            prefix = min(prefix, common[begin + 1], len(ordered[begin]) - 1)
            if not prefix:
                break
            saved = best[begin] + prefix * (end - begin - 1)
            if saved > best[end]:
                best[end], start[end] = saved, begin
    end = len(rows)
    while end:
        begin = start[end]
        shortest = min(len(row) for row in ordered[begin:end]) - 1
        yield order[begin:end], min([shortest, *common[begin + 1 : end]])
        end = begin


def prefixes(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each of N rows of token ids the number (N,) of its run and the length (N,) of the prefix it shares there."""
    of, length = np.zeros(len(rows), dtype=int), np.zeros(len(rows), dtype=int)
    for number, (members, prefix) in enumerate(prefix_groups(rows)):
        of[members], length[members] = number, prefix
    return of, length


def _common(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
