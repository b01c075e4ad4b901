"""Splits cut from train by groups that stay together, with the same share of every label in each."""

from __future__ import annotations

import numpy as np

MAX_SWAPS = 1000  # tries to bring a label into a split that lacks it; more labels than that don't fit into every split


def joined_groups(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number the sets of rows that are connected by equal values of ``a`` or of ``b``; all shapes (N,)."""
    keys = [np.unique(values, return_inverse=True)[1] for values in (a, b)]
    joined = np.arange(len(a))
    while True:  # each row takes the lowest number among its neighbours, until none changes
        before = joined
        for key in keys:
            lowest = np.full(len(a), len(a))
            np.minimum.at(lowest, key, joined)
            joined = lowest[key]
        if np.array_equal(before, joined):
            return joined


def stratified_splits(
    group_of_label: np.ndarray,
    labels: np.ndarray,
    groups: int,
    splits: int,
    size: int,
    by_rarest: bool,
    generator: np.random.Generator,
) -> np.ndarray:
    """The split of each group, shape (G,): 0 to ``splits`` - 1 with exactly ``size`` groups each, the rest is train.

    ``labels`` (M,) are the examples' labels, numbers from 0, each with the group of its example. A group counts by its
    most frequent label, or ``by_rarest``. Of each label a split gets its share, rounded; every label stays in train,
    and one of more than ``splits`` groups lands in every split, where that is possible.
    """
    count = int(labels.max(initial=-1)) + 1
    cells, examples = np.unique(group_of_label * count + labels, return_counts=True)  # a label in a group
    cell_groups, cell_labels = np.divmod(cells, max(count, 1))
    label_groups = np.bincount(cell_labels, minlength=count)
    rarity = np.argsort(np.argsort(label_groups, kind="stable"))
    strata = np.full(groups, count)  # of a group without a label
    order = np.lexsort((rarity[cell_labels], np.zeros_like(examples) if by_rarest else -examples, cell_groups))
    strata[cell_groups[order[::-1]]] = cell_labels[order[::-1]]  # the first of each group is written last
    split_of_group = _proportional(strata, splits, size, generator)
    wanted = np.vstack([np.tile(label_groups > splits, (splits, 1)), np.ones((1, count), dtype=bool)])
    return _with_every_label(split_of_group, cell_groups, cell_labels, wanted, generator)


def _proportional(strata: np.ndarray, splits: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Draw ``size`` groups for each split, from each stratum its share by largest remainder (Hamilton's method)."""
    shuffled = generator.permutation(len(strata))
    names, codes, sizes = np.unique(strata[shuffled], return_inverse=True, return_counts=True)
    ties = generator.permutation(len(names))  # equal remainders are served in this order
    queue = shuffled[np.argsort(codes, kind="stable")]  # the groups of one stratum after another
    first, free, taken = np.cumsum(sizes) - sizes, sizes.copy(), np.zeros_like(sizes)
    split_of_group = np.full(len(strata), splits)
    for split in range(splits):
        share = sizes * size * (split + 1) / len(strata) - taken
        needed = sizes > splits
        reserved = 1 + np.where(needed, splits - 1 - split, 0)  # for train and for the splits that follow
        limit = np.maximum(free - reserved, 0)
        counts = np.minimum(np.maximum(np.floor(share).astype(int), needed), limit)
        while missing := size - counts.sum():
            step = np.sign(missing)
            open_now = counts < limit if step > 0 else counts > needed
            if not open_now.any():
                open_now = counts < free if step > 0 else counts > 0
            ranked = ties[np.argsort(-step * (share - counts)[ties], kind="stable")]
            counts[ranked[open_now[ranked]][: abs(missing)]] += step
        for start, number in zip(first + taken, counts, strict=True):
            split_of_group[queue[start : start + number]] = split
        taken, free = taken + counts, free - counts
    return split_of_group


def _with_every_label(
    split_of_group: np.ndarray,
    cell_groups: np.ndarray,
    cell_labels: np.ndarray,
    wanted: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Swap groups so that each split has the labels ``wanted`` in it, shape (splits, labels), where that is possible.

    It matters for a label that always stands beside rarer or more frequent ones, by which the groups are drawn.
    """

    def counts() -> np.ndarray:
        table = np.zeros(wanted.shape, dtype=int)
        np.add.at(table, (split_of_group[cell_groups], cell_labels), 1)
        return table

    for split, label in np.argwhere(wanted & (counts() == 0))[::-1][:MAX_SWAPS]:  # train, the last split, first
        now = counts()
        splits = split_of_group[cell_groups]
        last = wanted[splits, cell_labels] & (now[splits, cell_labels] == 1)  # the split has no other with this label
        movable = np.ones(len(split_of_group), dtype=bool)
        movable[cell_groups[last]] = False
        givers = cell_groups[(cell_labels == label) & movable[cell_groups]]
        takers = np.flatnonzero(movable & (split_of_group == split))
        if not now[split, label] and len(givers) and len(takers):
            giver, taker = generator.choice(givers), generator.choice(takers)
            split_of_group[[giver, taker]] = split_of_group[[taker, giver]]
    return split_of_group
