"""Which sequences begin with the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MAX_GROUP = 64  # rows that one group may hold


def prefix_groups(rows: Sequence[np.ndarray]) -> Iterator[tuple[list[int], int]]:
    """Group rows of token ids so that most tokens are shared; yields each group's row numbers and common prefix length.

    Sorted rows with a prefix in common are neighbours, so the best grouping is found by dynamic programming over them.
    The prefix never holds a row's last token; a row alone in its group "shares" all its other tokens.
    """
    order = sorted(range(len(rows)), key=lambda row: rows[row].astype(">u4").tobytes())
    ordered = [rows[row] for row in order]
    common = [0, *map(_common_length, ordered, ordered[1:])]  # tokens that each row shares with the one before
    # of the first n rows: the most tokens that can be saved, and where their last group begins
    saved, last_begin = [0] * (len(rows) + 1), [0] * (len(rows) + 1)
    for end in range(1, len(rows) + 1):
        saved[end], last_begin[end] = saved[end - 1], end - 1
        prefix = len(ordered[end - 1]) - 1
        for begin in range(end - 2, max(-1, end - 1 - MAX_GROUP), -1):
            prefix = min(prefix, common[begin + 1], len(ordered[begin]) - 1)
            if not prefix:
                break
            candidate = saved[begin] + prefix * (end - begin - 1)
            if candidate > saved[end]:
                saved[end], last_begin[end] = candidate, begin
    end = len(rows)
    while end:
        begin = last_begin[end]
        shortest = min(len(row) for row in ordered[begin:end]) - 1
        yield order[begin:end], min([shortest, *common[begin + 1 : end]])
        end = begin


def shared_prefixes(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each of N rows of token ids, the number (N,) of its group and the length (N,) of the group's prefix."""
    group_of_row, lengths = np.zeros(len(rows), dtype=int), np.zeros(len(rows), dtype=int)
    for number, (members, prefix) in enumerate(prefix_groups(rows)):
        group_of_row[members], lengths[members] = number, prefix
    return group_of_row, lengths


def _common_length(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    differences = np.flatnonzero(first[:length] != second[:length])
    return int(differences[0]) if len(differences) else length
