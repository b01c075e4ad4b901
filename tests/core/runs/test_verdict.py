"""The words of a verdict."""

from dataclasses import replace
from math import inf, nan

import pytest
from gptask.runs.significance import Difference
from gptask.runs.verdict import Verdict, decimal_places

GAIN = Difference(
    metric="accuracy", value=3.0, low=1.0, high=5.0, error=1.0, freedom=None, p=0.01, test="McNemar mid-p",
    p_bootstrap=0.01, n=500, groups=500, differing=40, seeds=(1, 1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("difference", "higher_is_better", "p", "word", "words"),
    [
        (GAIN, True, 0.01, "better", "this model is better: +3.00 (+1.00 to +5.00), p = 0.01"),
        (GAIN, False, 0.01, "worse", "this model is worse: +3.00 (+1.00 to +5.00), p = 0.01"),
        (replace(GAIN, seeds=(3, 3)), True, 0.01, "better", "this method is better: +3.00 (+1.00 to +5.00), p = 0.01"),
        (replace(GAIN, differing=0), True, 0.01, "same", "equal on every example"),
        (replace(GAIN, value=nan), True, 0.01, "none", "no number to compare"),
        (GAIN, True, 0.05, "inconclusive",
         "not enough data to tell (this test set detects differences above 2.8)"),
        (replace(GAIN, value=0.0, low=0.0, high=0.0, error=0.0), True, 1.0, "inconclusive",
         "not enough data to tell (the difference is the same in every resample)"),
        (replace(GAIN, value=100.0, low=100.0, high=100.0, error=0.0), True, 0.01, "better",
         "this model is better: +100.00 in every resample, p = 0.01"),
        (replace(GAIN, groups=3, differing=3), True, 0.5, "inconclusive",
         "not enough data to tell (this test set is too small to detect any difference)"),
    ],
)  # fmt: skip
def test_a_verdict_has_a_word_and_a_sentence(difference, higher_is_better, p, word, words):
    verdict = Verdict(difference, higher_is_better, range_width=100.0, p=p)
    assert (verdict.word, verdict.sentence) == (word, words)


def test_wide_ranges_have_fewer_digits():
    assert [decimal_places(width) for width in (1.0, 100.0, inf)] == [3, 1, 3]
