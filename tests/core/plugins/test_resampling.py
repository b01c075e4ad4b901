"""Resamples count how often each example occurs, and keep groups together."""

import numpy as np
from gptask.plugins.resampling import bootstrap, number_groups, swap_masks


def test_groups_are_numbered_in_the_order_of_their_first_example():
    assert number_groups(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_a_resample_draws_as_many_groups_as_exist():
    groups = np.array([0, 0, 0, 1, 2, 2])
    counts = np.concatenate(list(bootstrap(groups, 500, 1)))
    assert counts.shape == (500, 6)
    np.testing.assert_array_equal(counts[:, [0, 3, 4]].sum(1), 3)  # one example represents each group
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    assert abs(counts.mean() - 1) < 0.05


def test_the_examples_of_a_group_are_swapped_together():
    masks = np.concatenate(list(swap_masks(np.array([0, 0, 1]), 400, 1)))
    assert set(np.unique(masks)) == {0, 1}
    np.testing.assert_array_equal(masks[:, 0], masks[:, 1])
    assert 0.4 < (masks[:, 0] == masks[:, 2]).mean() < 0.6


def test_blocks_do_not_change_the_number_of_resamples(monkeypatch):
    monkeypatch.setattr("gptask.plugins.resampling.RESAMPLES_PER_BLOCK", 30)
    parts = list(bootstrap(np.arange(10), 8, 1))
    assert [len(part) for part in parts] == [3, 3, 2]
