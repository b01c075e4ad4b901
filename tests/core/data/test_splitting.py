"""Cuts by groups with the same share of every label: exact sizes, every label where it can be, nothing torn apart."""

import numpy as np
import pytest
from gptask.data.splitting import joined_groups, stratified_splits
from sklearn.datasets import make_multilabel_classification


def cut(labels_of_groups, splits=2, size=1, by_rarest=False, seed=0):
    group_of_label = np.repeat(np.arange(len(labels_of_groups)), [len(labels) for labels in labels_of_groups])
    labels = np.array([label for labels in labels_of_groups for label in labels], dtype=int)
    generator = np.random.default_rng(seed)
    return stratified_splits(group_of_label, labels, len(labels_of_groups), splits, size, by_rarest, generator)


def counts(split_of_group, labels):
    """How many groups (with one label each) of a split have each label, shape (splits, labels)."""
    table = np.zeros((split_of_group.max() + 1, 6), dtype=int)
    np.add.at(table, (split_of_group, labels), 1)
    return table


def test_each_label_has_its_share_in_every_split():
    labels = np.repeat([0, 1, 2, 3], [600, 300, 70, 30])
    table = counts(cut([[label] for label in labels], size=100), labels)
    assert table[:, :4].tolist() == [[60, 30, 7, 3], [60, 30, 7, 3], [480, 240, 56, 24]]


@pytest.mark.parametrize("seed", range(30))
def test_sizes_are_exact_shares_are_rounded_and_rare_labels_land_in_every_split(seed):
    draw = np.random.default_rng(seed)
    labels = draw.choice(6, 200, p=[0.5, 0.3, 0.12, 0.04, 0.025, 0.015])
    split_of_group = cut([[label] for label in labels], size=20, seed=seed)
    total, table = np.bincount(labels, minlength=6), counts(split_of_group, labels)
    assert np.bincount(split_of_group).tolist() == [20, 20, 160]
    assert (table[:2] > 0)[:, total >= 3].all()
    assert (table[2] > 0)[total > 0].all()
    off = np.abs(table[:2] - total / 10)
    assert (off < np.where(total >= 15, 1.5, 1.01)).all()  # a group more or less, and one that a rare label displaces


def test_the_seed_decides_which_groups_are_drawn():
    groups = [[n % 3] for n in range(90)]
    first, again, other = (cut(groups, size=9, seed=seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


def test_labels_of_one_or_two_groups_stay_in_train():
    groups = [[0]] * 40 + [[1], [2], [2]]
    for seed in range(20):
        table = counts(cut(groups, size=4, seed=seed), [group[0] for group in groups])
        assert table[2, 1] == 1
        assert table[2, 2] >= 1


def test_more_labels_than_a_split_has_room_for_are_no_problem():
    split_of_group = cut([[label] for label in range(50)], size=5)
    assert np.bincount(split_of_group).tolist() == [5, 5, 40]
    assert np.bincount(cut([[label] for label in range(10) for _ in range(3)], size=3)).tolist() == [3, 3, 24]


def test_a_group_without_labels_is_drawn_as_well():
    assert np.bincount(cut([[]] * 30, size=3)).tolist() == [3, 3, 24]
    assert np.bincount(cut([[], [0]] * 30, size=10)).tolist() == [10, 10, 40]


def test_several_labels_are_cut_by_the_rarest_and_none_is_missing_in_a_split():
    matrix = make_multilabel_classification(200, n_classes=8, n_labels=2, random_state=3)[1]
    for seed in range(10):
        split_of_group = cut([np.flatnonzero(row) for row in matrix], size=20, by_rarest=True, seed=seed)
        assert np.bincount(split_of_group).tolist() == [20, 20, 160]
        rarest = matrix.sum(axis=0).argmin()
        share = matrix[:, rarest].sum() / 10
        assert all(abs(matrix[split_of_group == split][:, rarest].sum() - share) <= 1 for split in (0, 1))
        assert all(matrix[split_of_group == split].any(axis=0).all() for split in range(3))


def test_a_label_that_always_stands_beside_rarer_ones_still_lands_in_every_split():
    groups = [[0]] * 24 + [[2], [3], [4]] + [[1, 2], [1, 3], [1, 4]]  # those of label 1 count by three other labels
    for seed in range(20):
        split_of_group = cut(groups, size=3, by_rarest=True, seed=seed)
        assert np.bincount(split_of_group).tolist() == [3, 3, 24]
        assert sorted(split_of_group[27:]) == [0, 1, 2]


def test_a_group_with_several_labels_counts_by_the_most_frequent():
    groups = [[0, 0, 0, 1]] * 20 + [[1, 1, 1, 0]] * 20
    split_of_group = cut(groups, size=8)
    assert [(split_of_group[:20] == split).sum() for split in (0, 1)] == [4, 4]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], [0, 1, 2]),
        ([1, 1, 2], [4, 5, 6], [0, 0, 2]),
        ([1, 2, 3, 4, 5, 1], [7, 7, 8, 8, 9, 9], [0, 0, 2, 2, 0, 0]),  # 5 = 9 = 1 = 7 = 2
        ([1, 2, 2, 3, 3, 4], [9, 9, 8, 8, 7, 7], [0] * 6),  # a chain
        ([], [], []),
    ],
)
def test_rows_that_share_either_value_are_joined(a, b, expected):
    assert joined_groups(np.array(a), np.array(b)).tolist() == expected
