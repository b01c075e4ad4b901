"""Insertion − deletion against known answers, and what a file's summary says."""

import numpy as np
import pytest
from gptask.analysis.explain.explanation import AttributionMap, Explanation, Word
from gptask.analysis.explain.faithfulness import (
    cut_orders,
    importance_order,
    insertion_minus_deletion,
    random_order,
    summarize,
)

WORDS = [Word("text", 2 * n, 2 * n + 1, chr(97 + n)) for n in range(10)]


def explanation(value, at_random, places=(None,)):
    maps = [AttributionMap("x", 0.5, [0.1], place, faithfulness=value, random=at_random) for place in places]
    return Explanation("1", {}, [], "x", maps)


def test_one_word_that_decides_all():
    # the probability is 1 with word 7 and 0 without it
    value = insertion_minus_deletion([7, *range(7), 8, 9], lambda dropped: float(7 not in dropped))
    assert value == 1.0
    assert insertion_minus_deletion([*range(7), 8, 9, 7], lambda dropped: float(7 not in dropped)) == -1.0


def test_half_of_the_probability_by_each_of_two_words():
    value = insertion_minus_deletion([0, 1, 2, 3], lambda dropped: 0.5 * (0 not in dropped) + 0.5 * (1 not in dropped))
    # with 1, 2, 3 of four words: inserted 0.5, 1, 1; deleted 0.5, 0, 0
    assert value == pytest.approx(2.5 / 3 - 0.5 / 3)


def test_random_orders_are_worth_nothing_on_average():
    draw = np.random.default_rng(0)
    values = [
        insertion_minus_deletion(
            draw.permutation(10).tolist(), lambda dropped: sum(n not in dropped for n in (1, 2)) / 2
        )
        for _ in range(400)
    ]
    assert abs(np.mean(values)) < 0.06
    assert np.std(values) > 0.1


def test_fewer_than_two_words_have_no_order():
    assert insertion_minus_deletion([3], lambda dropped: 1.0) is None
    assert insertion_minus_deletion([], lambda dropped: 1.0) is None
    assert insertion_minus_deletion([1, 2], lambda dropped: None) is None


def test_orders():
    assert importance_order([0.1, None, -0.4, 0.9], [0, 2, 3]) == [3, 0, 2]
    order = random_order(WORDS, [0, 2, 4, 6])
    assert sorted(order) == [0, 2, 4, 6]
    assert order == random_order(WORDS, [0, 2, 4, 6])
    inserted, deleted = cut_orders([*range(20)])
    assert [len(part) for part in deleted] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [sorted({*range(20)} - part) for part in inserted] == [sorted(part) for part in deleted]


def test_a_method_that_is_better_than_random_is_called_so():
    summary = summarize("ig", [explanation(0.4 + n / 100, n / 50) for n in range(10)])
    assert (summary.n, summary.is_better) == (10, True)
    assert summary.difference == pytest.approx(summary.value - summary.random)
    assert summary.low < summary.difference < summary.high
    assert summary.low > 0
    assert "integrated gradients" in summary.sentence
    assert "matter to this run" in summary.sentence


def test_a_method_that_is_not_is_called_so():
    summary = summarize("attention", [explanation((-1) ** n * 0.3, 0.0) for n in range(11)])
    assert not summary.is_better
    assert "no better than random on this run" in summary.sentence


def test_one_input_is_too_few_for_a_verdict():
    summary = summarize("ig", [explanation(0.9, 0.0)])
    assert (summary.low, summary.high, summary.is_better) == (None, None, False)
    assert "1 input is too few" in summary.sentence
    assert summarize("ig", [explanation(None, None)]) is None


def test_an_input_counts_once():
    whole = Explanation("1", {}, [], "x", [*explanation(0.2, 0.0).maps, *explanation(0.8, 0.0).maps])
    assert summarize("ig", [whole]).value == pytest.approx(0.2)  # the predicted class
    places = explanation(0.2, 0.0, (1, 2))
    places.maps[1].faithfulness = 0.8
    assert summarize("ig", [places]).value == pytest.approx(0.5)  # the mean of its tags
